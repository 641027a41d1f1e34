"""Atomic claims, and what takes a message apart into them and puts it together again.

A payload carries claims as data (:class:`StructuredClaims`) or as text (:class:`RegexClaims`, :class:`LMClaims`). Each
claim keeps its place, so that a message can go on without the claims that were refused and with marks at those that
nobody confirmed. A message from which nothing is taken leaves as the same object.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.lm import LM
from heliograph.agents.error_cascade.values import base_number, norm, parse_value
from heliograph.errors import BadInput

__all__ = [
    "FREE_TEXT",
    "Atom",
    "Claim",
    "ClaimSource",
    "EveryClaim",
    "LMClaims",
    "RegexClaims",
    "Split",
    "StructuredClaims",
    "TooManyClaims",
]

Stance = Literal["asserted", "denied", "quoted"]
Operator = Literal["=", ">=", "<=", ">", "<"]
Value = str | float | int | bool | None
FREE_TEXT = "states"
"""Predicate of a sentence that no pattern takes apart; its subject is the sentence."""

MAX_CLAIMS = 256
MAX_TEXT = 200_000
MAX_FIELD = 4096


class TooManyClaims(BadInput):
    """A message holds more claims, or a longer text, than is screened."""


@dataclass(frozen=True)
class Claim:
    """One statement.

    Attributes:
        subject, predicate, object: what is said of what.
        unit: of a number.
        operator: how the value compares; ``price >= 5`` is another claim than ``price = 5``.
        stance: asserted; denied ("it is false that ..."); or quoted, which asserts nothing.
        scope: run, conversation or tenant within which it holds; "" for everywhere.
        kind: "factuality" (of the world) or "faithfulness" (of the task and its state).
        text: as it was said.
        sources: ids of claims that it says it follows from.
    """

    subject: str
    predicate: str
    object: Value
    unit: str = ""
    operator: Operator = "="
    stance: Stance = "asserted"
    scope: str = ""
    kind: Literal["factuality", "faithfulness"] = "factuality"
    text: str = field(default="", compare=False)
    sources: tuple[str, ...] = field(default=(), compare=False)
    id: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Computes the id from the normal form, so that spelling and units do not make another claim."""
        value: Any = self.object
        unit = norm(self.unit)
        if isinstance(value, int | float) and not isinstance(value, bool):
            number, unit = base_number(float(value), self.unit)
            value = float(f"{number:.12g}")
        elif isinstance(value, str):
            value = norm(value)
        form = [*self.key, self.operator, value, unit, self.stance]
        object.__setattr__(self, "id", hashlib.blake2b(canonical_bytes(form), digest_size=16).hexdigest())

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """Scope, subject and predicate in normal form: claims with one key are about one thing."""
        return self.scope, norm(self.subject), norm(self.predicate)

    def said(self) -> str:
        """The claim in words."""
        if self.text:
            return self.text
        if self.predicate == FREE_TEXT:
            return self.subject
        whole = (
            f"the {self.predicate} of {self.subject} {self.operator} {self.object}{' ' * bool(self.unit)}{self.unit}"
        )
        return whole if self.stance == "asserted" else f"not: {whole}"


@dataclass(frozen=True)
class Atom:
    """A claim and its place: a path into the payload, and for text the span of its sentence."""

    claim: Claim
    path: tuple[str | int, ...] = ()
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Split:
    """What a message holds.

    Attributes:
        atoms: in the order in which they stand.
        unscreened: parts that are neither text nor claims, such as images.
    """

    atoms: tuple[Atom, ...] = ()
    unscreened: int = 0


class ClaimSource(Protocol):
    """Takes payloads apart and puts them together."""

    def split(self, payload: Any, scope: str = "") -> Split:
        """The claims of a payload.

        Raises:
            TooManyClaims: there are more than are screened.
        """
        ...

    def join(self, payload: Any, dropped: Sequence[Atom], marked: Mapping[Atom, str]) -> Any:
        """The payload without the dropped claims, and with a mark at the marked ones."""
        ...


class StructuredClaims:
    """Claims that messages carry as data.

    They stand in the payload, or in the ``structuredContent`` of an MCP result or the ``arguments`` of an MCP call,
    under ``claims`` (a list of ``[subject, predicate, object]`` or of objects with these and any other field of
    :class:`Claim`) or under ``facts`` (an object from ``subject.predicate`` to a value).

    Args:
        max_claims: more in one message are refused.

    Raises:
        BadInput: ``max_claims`` below 1.
    """

    def __init__(self, max_claims: int = MAX_CLAIMS) -> None:
        if max_claims < 1:
            raise BadInput(f"max_claims is 1 or more; got {max_claims}")
        self.max_claims = max_claims

    def split(self, payload: Any, scope: str = "") -> Split:
        """The claims under ``claims`` and ``facts``; what is there but is no claim counts as unscreened."""
        atoms: list[Atom] = []
        unscreened = 0
        for base in _data_places(payload):
            inside = _at(payload, base)
            listed, facts = inside.get("claims"), inside.get("facts")
            size = sum(len(part) for part in (listed, facts) if isinstance(part, list | Mapping))
            if size + len(atoms) > self.max_claims:
                raise TooManyClaims(f"{size} claims in one message; at most {self.max_claims} are screened, split it")
            for number, item in enumerate(listed if isinstance(listed, list) else ()):
                claim = _claim_of(item, scope)
                if claim is None:
                    unscreened += 1
                else:
                    atoms.append(Atom(claim, (*base, "claims", number)))
            for name, value in facts.items() if isinstance(facts, Mapping) else ():
                subject, _, predicate = str(name).rpartition(".")
                if subject and predicate and _is_value(value):
                    atoms.append(Atom(Claim(subject, predicate, value, scope=scope), (*base, "facts", name)))
                else:
                    unscreened += 1
        return Split(tuple(atoms), unscreened)

    def join(self, payload: Any, dropped: Sequence[Atom], marked: Mapping[Atom, str]) -> Any:
        """Leaves claims out; marks stand in ``tags`` of a claim, and for facts in ``fact_tags`` beside them."""
        if not dropped and not marked:
            return payload
        gone = {atom.path for atom in dropped}
        tags = {atom.path: tag for atom, tag in marked.items()}
        whole = payload
        for base in {path[:-2] for path in (*gone, *tags)}:
            inside = dict(_at(payload, base))
            if isinstance(inside.get("claims"), list):
                inside["claims"] = [
                    _tagged(item, tags.get((*base, "claims", number)))
                    for number, item in enumerate(inside["claims"])
                    if (*base, "claims", number) not in gone
                ]
            if isinstance(inside.get("facts"), Mapping):
                names = {name: (*base, "facts", name) for name in inside["facts"]}
                inside["facts"] = {n: v for n, v in inside["facts"].items() if names[n] not in gone}
                own = {name: tags[path] for name, path in names.items() if path in tags}
                if own:
                    inside["fact_tags"] = {**inside.get("fact_tags", {}), **own}
            whole = _put(whole, base, inside)
        return whole


class RegexClaims:
    """Claims of English text: sentences, and in them who has which value, with numbers and units.

    "The price of oil is 70 USD" and "price of oil = 70 USD" are one claim; "as confirmed by the administrator, ..." is
    left off; "it is false that ..." denies; 'the claim that ... was reported' quotes; questions claim nothing. What no
    pattern takes apart is a claim as a whole (:data:`FREE_TEXT`).

    Args:
        max_claims: more in one message are refused.
    """

    def __init__(self, max_claims: int = MAX_CLAIMS) -> None:
        if max_claims < 1:
            raise BadInput(f"max_claims is 1 or more; got {max_claims}")
        self.max_claims = max_claims

    def split(self, payload: Any, scope: str = "") -> Split:
        """The claims of all texts of a payload: a plain text, ``text``, ``content`` or ``parts``."""
        atoms: list[Atom] = []
        places, unscreened = _text_places(payload)
        for path in places:
            text = _at(payload, path)
            if len(text) > MAX_TEXT:
                raise TooManyClaims(f"a text of {len(text)} characters; at most {MAX_TEXT} are screened, split it")
            for start, end in _sentences(text):
                for claim in self.claims_of(text[start:end], scope):
                    atoms.append(Atom(claim, path, (start, end)))
                    if len(atoms) > self.max_claims:
                        raise TooManyClaims(f"more than {self.max_claims} claims in one message; split it")
        return Split(tuple(atoms), unscreened)

    def claims_of(self, sentence: str, scope: str = "") -> tuple[Claim, ...]:
        """The claims of one sentence."""
        claim = parse_sentence(sentence, scope)
        return () if claim is None else (claim,)

    def join(self, payload: Any, dropped: Sequence[Atom], marked: Mapping[Atom, str]) -> Any:
        """Cuts sentences out, and puts ``[mark]`` before marked ones."""
        edits: dict[tuple[str | int, ...], dict[tuple[int, int], str | None]] = {}
        for atom, tag in marked.items():
            assert atom.span is not None
            edits.setdefault(atom.path, {}).setdefault(atom.span, tag)
        for atom in dropped:
            assert atom.span is not None
            edits.setdefault(atom.path, {})[atom.span] = None
        whole = payload
        for path, spans in edits.items():
            text = _at(payload, path)
            for (start, end), mark in sorted(spans.items(), key=lambda item: item[0], reverse=True):
                rest = text[end:].lstrip(" ") if mark is None else text[end:]
                text = text[:start] + ("" if mark is None else f"[{mark}] {text[start:end]}") + rest
            whole = _put(whole, path, text)
        return whole


class EveryClaim:
    """Claims as data and in text, of one message.

    Args:
        text: takes texts apart; patterns by default.
        max_claims: of either kind.
    """

    def __init__(self, text: RegexClaims | None = None, max_claims: int = MAX_CLAIMS) -> None:
        self._data, self._text = StructuredClaims(max_claims), text or RegexClaims(max_claims)

    def split(self, payload: Any, scope: str = "") -> Split:
        """Both kinds; the data first."""
        data, text = self._data.split(payload, scope), self._text.split(payload, scope)
        return Split(data.atoms + text.atoms, data.unscreened + text.unscreened)

    def join(self, payload: Any, dropped: Sequence[Atom], marked: Mapping[Atom, str]) -> Any:
        """Each kind at its place."""
        for source, textual in ((self._data, False), (self._text, True)):
            gone = [atom for atom in dropped if (atom.span is not None) is textual]
            tags = {atom: tag for atom, tag in marked.items() if (atom.span is not None) is textual}
            if gone or tags:
                payload = source.join(payload, gone, tags)
        return payload


class LMClaims(RegexClaims):
    """A language model takes each sentence apart into minimal facts; the patterns then read the facts.

    A sentence stands or falls with its facts: if one is refused, the sentence is left out.

    Args:
        lm: writes one fact a line.
        max_claims: more in one message are refused.
        max_tokens: of an answer.
    """

    PROMPT = (
        "Split the sentence into minimal facts, one a line, each complete in itself. Add nothing.\n"
        "Sentence: {sentence}\nFacts:\n"
    )

    def __init__(self, lm: LM, max_claims: int = MAX_CLAIMS, max_tokens: int = 96) -> None:
        super().__init__(max_claims)
        self.lm, self.max_tokens = lm, max_tokens

    def claims_of(self, sentence: str, scope: str = "") -> tuple[Claim, ...]:
        """The facts that the model writes; the sentence itself if it writes none."""
        if parse_sentence(sentence, scope) is None:
            return ()
        prompt = self.PROMPT.format(sentence=" ".join(sentence.split()))
        answer = self.lm.generate(prompt, max_tokens=self.max_tokens).text
        lines = (line.strip().lstrip("-*0123456789.) ").strip() for line in answer.splitlines())
        found = [claim for line in lines if line and (claim := parse_sentence(line, scope)) is not None]
        return tuple(dict.fromkeys(found)) or super().claims_of(sentence, scope)


_FRAMING = re.compile(
    r"^(?:(?:as )?per|according to|(?:as )?(?:verified|confirmed|stated|required|approved|reported|ordered) (?:by|in)|"
    r"under|following|due to|(?:urgent|important|notice|note|attention|reminder)(?=:))[^,:]{0,80}[,:]\s+",
    re.I,
)
_MARK = re.compile(r"^\[[a-z -]{1,24}\]\s+", re.I)
_QUOTED = re.compile(
    r"^(?:the|a|this) (?:claim|statement|rumou?r|allegation) (?:that )?(.+?) (?:was|has been|is being) "
    r"(?:made|reported|discussed|received|checked|quoted|withdrawn|rejected)$",
    re.I,
)
_DENIED = (
    re.compile(r"^it is (?:false|wrong|untrue|not true|not the case) that (.+)$", re.I),
    re.compile(
        r"^(?:the|a) (?:claim|statement|rumou?r) that (.+?) is (?:false|wrong|untrue|not true|incorrect)$", re.I
    ),
)
_VERB = r"\s+(?:is|are|was|were|equals?|remains?)\s+"
_OF = re.compile(r"^(?:the |a |an )?([^,;]{1,60}?) (?:of|for) ([^,;]{1,80}?)(?:" + _VERB + r"|\s*[=:]\s*)(.+)$", re.I)
_IS = re.compile(r"^(?:the |a |an )?([^,;]{1,80}?)(?:" + _VERB + r"|\s*=\s*)(.+)$", re.I)
_COMPARED: tuple[tuple[re.Pattern[str], Operator], ...] = (
    (re.compile(r"^(?:at least|no less than|>=)\s*(.+)$", re.I), ">="),
    (re.compile(r"^(?:at most|no more than|up to|<=)\s*(.+)$", re.I), "<="),
    (re.compile(r"^(?:more than|greater than|above|>)\s*(.+)$", re.I), ">"),
    (re.compile(r"^(?:less than|below|under|<)\s*(.+)$", re.I), "<"),
)


def _sentences(text: str) -> list[tuple[int, int]]:
    """Spans; a full stop within a number or a name ends nothing, a line's end does."""
    spans = []
    for line in re.finditer(r"[^\n]+", text):
        start = line.start()
        for stop in re.finditer(r"[.!?]+(?=\s|$)", line.group()):
            spans.append((start, line.start() + stop.end()))
            start = line.start() + stop.end()
        spans.append((start, line.end()))
    trimmed = ((s + len(text[s:e]) - len(text[s:e].lstrip()), s + len(text[s:e].rstrip())) for s, e in spans)
    return [(s, e) for s, e in trimmed if any(c.isalnum() for c in text[s:e])]


def parse_sentence(sentence: str, scope: str = "") -> Claim | None:
    """The claim of a sentence; None if it is a question or holds nothing."""
    said = " ".join(sentence.split())
    if said.endswith("?") or not any(c.isalnum() for c in said):
        return None
    core = said.rstrip(".! ")
    for _ in range(4):
        bare = _FRAMING.sub("", _MARK.sub("", core), count=1)
        if bare == core:
            break
        core = bare
    quoted = _QUOTED.match(core)
    if quoted:
        return _parse_core(quoted.group(1), scope, said, "quoted")
    for pattern in _DENIED:
        denied = pattern.match(core)
        if denied:
            return _parse_core(denied.group(1), scope, said, "denied")
    return _parse_core(core, scope, said, "asserted")


def _parse_core(core: str, scope: str, said: str, stance: Stance) -> Claim:
    core = core.strip(" \"'`\u201c\u201d")
    of = _OF.match(core)
    plain = None if of else _IS.match(core)
    if of:
        subject, predicate, rest = of.group(2), of.group(1), of.group(3)
    elif plain:
        subject, predicate, rest = plain.group(1), "is", plain.group(2)
    else:
        return Claim(core, FREE_TEXT, True, stance=stance, scope=scope, text=said)
    if rest.casefold().startswith("not "):
        rest = rest[4:]
        stance = {"asserted": "denied", "denied": "asserted", "quoted": "quoted"}[stance]  # type: ignore[assignment]
    operator: Operator = "="
    for pattern, sign in _COMPARED:
        compared = pattern.match(rest)
        if compared and isinstance(parse_value(compared.group(1))[0], float):
            rest, operator = compared.group(1), sign
            break
    value, unit = parse_value(rest)
    return Claim(subject, predicate, value, unit, operator, stance, scope, text=said)


def _is_value(value: Any) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return True
    return isinstance(value, int | float) and abs(value) < 1e300


def _claim_of(item: Any, scope: str) -> Claim | None:
    if isinstance(item, list | tuple) and len(item) == 3:
        item = dict(zip(("subject", "predicate", "object"), item, strict=True))
    if not isinstance(item, Mapping) or "object" not in item or not _is_value(item["object"]):
        return None
    texts = {name: item.get(name, "") for name in ("subject", "predicate", "unit", "text")}
    if not all(isinstance(text, str) for text in texts.values()) or not texts["subject"] or not texts["predicate"]:
        return None
    if max(len(text) for text in (*texts.values(), str(item["object"])[: MAX_FIELD + 1])) > MAX_FIELD:
        raise TooManyClaims(f"a claim with a text of more than {MAX_FIELD} characters; split it")
    operator, stance = item.get("operator", "="), item.get("stance", "asserted")
    kind, sources = item.get("kind", "factuality"), item.get("sources", ())
    if operator not in ("=", ">=", "<=", ">", "<") or stance not in ("asserted", "denied", "quoted"):
        return None
    if kind not in ("factuality", "faithfulness") or not isinstance(sources, list | tuple):
        return None
    told = tuple(source for source in sources if isinstance(source, str))[:64]
    try:
        return Claim(
            texts["subject"], texts["predicate"], item["object"], texts["unit"], operator, stance, scope, kind,
            texts["text"], told,
        )  # fmt: skip
    except BadInput:  # a lone surrogate has no canonical form
        return None


def _tagged(item: Any, tag: str | None) -> Any:
    if tag is None:
        return item
    if isinstance(item, list | tuple):
        item = dict(zip(("subject", "predicate", "object"), item, strict=True))
    return {**item, "tags": [*item.get("tags", ()), tag]}


def _bases(payload: Any) -> list[tuple[str | int, ...]]:
    """Where a message's own content stands: the payload itself, or inside a JSON-RPC message of MCP."""
    if not isinstance(payload, Mapping):
        return [()]
    if payload.get("jsonrpc") != "2.0":
        return [()]
    if isinstance(payload.get("result"), Mapping):
        return [("result",)]
    params = payload.get("params")
    if isinstance(params, Mapping) and isinstance(params.get("arguments"), Mapping):
        return [("params", "arguments")]
    return []


def _data_places(payload: Any) -> list[tuple[str | int, ...]]:
    places = []
    for base in _bases(payload):
        inside = _at(payload, base)
        if isinstance(inside, Mapping):
            places.append(base)
            if isinstance(inside.get("structuredContent"), Mapping):
                places.append((*base, "structuredContent"))
    return places


def _text_places(payload: Any) -> tuple[list[tuple[str | int, ...]], int]:
    places: list[tuple[str | int, ...]] = []
    unscreened = 0
    for base in _bases(payload):
        inside = _at(payload, base)
        if isinstance(inside, str):
            places.append(base)
        if not isinstance(inside, Mapping):
            continue
        for name in ("text", "content", "parts"):
            part = inside.get(name)
            if isinstance(part, str):
                places.append((*base, name))
            for number, item in enumerate(part if isinstance(part, list) else ()):
                if isinstance(item, str):
                    places.append((*base, name, number))
                elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
                    places.append((*base, name, number, "text"))
                else:
                    unscreened += 1
    return places, unscreened


def _at(payload: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        payload = payload[step]
    return payload


def _put(payload: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with one place changed."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        return [*payload[:step], _put(payload[step], rest, value), *payload[step + 1 :]]
    return {**payload, step: _put(payload[step], rest, value)}
