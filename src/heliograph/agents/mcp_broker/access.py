"""Which caller may use which tool, prompt or resource (stage 3): rules by name, role, scope and argument."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.identity import Principal
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.tokens import caller_of
from heliograph.agents.mcp_broker.tools import ToolCatalog
from heliograph.errors import BadInput

__all__ = ["DENIED_CODE", "AccessControl", "ArgumentTest", "Rule"]

DENIED_CODE = -32010
"""JSON-RPC code of a refusal by a rule."""

_NAMED = {
    "tools/call": ("tool", "name"),
    "prompts/get": ("prompt", "name"),
    "resources/read": ("resource", "uri"),
    "resources/subscribe": ("resource", "uri"),
    "resources/unsubscribe": ("resource", "uri"),
}
_LISTED = {
    "tools/list": ("tool", "tools", "name"),
    "prompts/list": ("prompt", "prompts", "name"),
    "resources/list": ("resource", "resources", "uri"),
    "resources/templates/list": ("resource", "resourceTemplates", "uriTemplate"),
}


class ArgumentTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one argument must be; exactly one of the three.

    Attributes:
        at: JSON pointer (RFC 6901) into the arguments.
        equals: this value.
        one_of: one of these.
        matches: a text that this regular expression matches whole.
    """

    at: str
    equals: Any = msgspec.UNSET
    one_of: list[Any] | msgspec.UnsetType = msgspec.UNSET
    matches: str | msgspec.UnsetType = msgspec.UNSET

    def passes(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the argument is there and fits."""
        found, value = _resolve(arguments, self.at)
        if not found:
            return False
        if self.equals is not msgspec.UNSET:
            return _same(value, self.equals)
        if isinstance(self.one_of, list):
            return any(_same(value, allowed) for allowed in self.one_of)
        return isinstance(value, str) and _pattern(str(self.matches)).fullmatch(value) is not None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Applies to requests that fit every field; globs know ``*``, ``?`` and ``[...]``.

    Attributes:
        effect: "allow" or "deny".
        tool, prompt, resource: globs; a rule is about one of the three kinds.
        subject, tenant: globs over the caller's.
        role, scope: that the caller must have, as globs; "*" also fits callers without any.
        access: "read" for tools that change nothing, "write" for the others.
        arguments: tests that all must pass. A list does not show arguments, so there a rule to allow counts as
            passed, and a rule to deny as not.
    """

    effect: Literal["allow", "deny"]
    tool: str = ""
    prompt: str = ""
    resource: str = ""
    subject: str = "*"
    tenant: str = "*"
    role: str = "*"
    scope: str = "*"
    access: Literal["any", "read", "write"] = "any"
    arguments: list[ArgumentTest] = []


class AccessControl:
    """Interceptor: a request passes if some rule allows it and none denies it.

    The name is always that of the message's body. Lists show only what their reader may use.

    Args:
        rules: in any order, since denying wins.
        catalog: knows which tools only read; without it all count as writing.
        name: in the chain.

    Raises:
        BadInput: a rule that could never apply as written.
    """

    def __init__(
        self, rules: Sequence[Rule], *, catalog: ToolCatalog | None = None, name: str = "access_control"
    ) -> None:
        for number, rule in enumerate(rules):
            _check(rule, f"rules[{number}]")
        self.rules, self.name = tuple(rules), name
        self._catalog = catalog or ToolCatalog()

    @classmethod
    def from_mappings(cls, rules: Any, *, catalog: ToolCatalog | None = None, where: str = "rules") -> AccessControl:
        """From JSON values.

        Raises:
            BadInput: with the place of the mistake.
        """
        try:
            return cls(msgspec.convert(rules, list[Rule]), catalog=catalog)
        except msgspec.ValidationError as error:
            raise BadInput(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path, *, catalog: ToolCatalog | None = None) -> AccessControl:
        """From a JSON file with a list of rules.

        Raises:
            BadInput: unreadable, or with the place of the mistake.
        """
        try:
            rules = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, line {error.lineno}: {error.msg}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read the access rules {path}: {error}") from None
        return cls.from_mappings(rules, catalog=catalog, where=str(path))

    def decide(
        self, who: Principal, kind: str, name: str, arguments: Mapping[str, Any] | None = None
    ) -> tuple[bool, Rule | None]:
        """Whether the caller may use it, and the rule that decided; None where no rule applies.

        Args:
            who: the caller.
            kind: "tool", "prompt" or "resource".
            name: of it; a resource's URI.
            arguments: None in a list.
        """
        allowed: Rule | None = None
        for rule in self.rules:
            if self._applies(rule, who, kind, name, arguments):
                if rule.effect == "deny":
                    return False, rule
                allowed = allowed or rule
        return allowed is not None, allowed

    def _applies(self, rule: Rule, who: Principal, kind: str, name: str, arguments: Mapping[str, Any] | None) -> bool:
        pattern = getattr(rule, kind)
        if not pattern or not fnmatchcase(name, pattern):
            return False
        if not fnmatchcase(who.subject, rule.subject) or not fnmatchcase(who.tenant, rule.tenant):
            return False
        for wanted, has in ((rule.role, who.roles), (rule.scope, who.scopes)):
            if wanted != "*" and not any(fnmatchcase(one, wanted) for one in has):
                return False
        if kind == "tool" and rule.access != "any":
            reads = self._catalog.facts(name).effect == "read"
            if reads != (rule.access == "read"):
                return False
        if rule.arguments and arguments is None:
            return rule.effect == "allow"
        return all(test.passes(arguments or {}) for test in rule.arguments)

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes, refuses, or shortens a list."""
        payload = env.payload if isinstance(env.payload, Mapping) else {}
        method, params = str(payload.get("method", "")), payload.get("params") or {}
        who = caller_of(env)
        if method in _NAMED:
            kind, key = _NAMED[method]
            self._require(who, kind, str(params.get(key, "")), params.get("arguments") or {})
        elif method == "completion/complete":
            ref = params.get("ref") or {}
            uri = "uri" in ref
            self._require(who, "resource" if uri else "prompt", str(ref.get("uri" if uri else "name", "")), None)
        answer = await call_next(env)
        if method in _LISTED:
            return self._shortened(answer, who, *_LISTED[method])
        return answer

    def _require(self, who: Principal, kind: str, name: str, arguments: Mapping[str, Any] | None) -> None:
        allowed, rule = self.decide(who, kind, name, arguments)
        if not allowed:
            # The same words whether it is forbidden or does not exist: a refusal must not tell names.
            data: dict[str, Any] = {"reason": "denied", "retryable": False}
            if rule is None:
                needed = sorted({r.scope for r in self.rules if r.effect == "allow" and _open(r, kind, name)} - {"*"})
                if needed:
                    data["scopes"] = needed
            raise Rejected(f"{who.subject or 'this caller'} may not use the {kind} {name}", code=DENIED_CODE, data=data)

    def _shortened(self, answer: Envelope, who: Principal, kind: str, key: str, named: str) -> Envelope:
        result = answer.payload.get("result") if isinstance(answer.payload, Mapping) else None
        if not isinstance(result, Mapping) or not isinstance(result.get(key), list):
            return answer
        if kind == "tool":
            self._catalog.learn(result[key])
        kept = [
            entry
            for entry in result[key]
            if isinstance(entry, Mapping) and self.decide(who, kind, str(entry.get(named, "")))[0]
        ]
        private = {"cacheScope": "private"} if "cacheScope" in result else {}
        return answer.replace(payload={**answer.payload, "result": {**result, key: kept, **private}})


def _open(rule: Rule, kind: str, name: str) -> bool:
    pattern = getattr(rule, kind)
    return bool(pattern) and fnmatchcase(name, pattern) and rule.scope != "*" and "*" not in rule.scope


def _check(rule: Rule, where: str) -> None:
    kinds = [kind for kind in ("tool", "prompt", "resource") if getattr(rule, kind)]
    if len(kinds) != 1:
        raise BadInput(f"{where}: a rule is about a tool, a prompt or a resource, one of them; got {kinds or 'none'}")
    if rule.access != "any" and kinds != ["tool"]:
        raise BadInput(f"{where}: access is about tools; leave it out for a {kinds[0]}")
    for number, test in enumerate(rule.arguments):
        given = [name for name in ("equals", "one_of", "matches") if getattr(test, name) is not msgspec.UNSET]
        if len(given) != 1 or not (test.at == "" or test.at.startswith("/")):
            raise BadInput(
                f"{where}.arguments[{number}]: needs a JSON pointer in at, and equals, one_of or matches, one of them"
            )
        if isinstance(test.matches, str):
            try:
                re.compile(test.matches)
            except re.error as error:
                raise BadInput(f"{where}.arguments[{number}].matches: {error}") from None


@lru_cache(maxsize=1000)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _resolve(document: Any, pointer: str) -> tuple[bool, Any]:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, Mapping) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            return False, None
    return True, document
