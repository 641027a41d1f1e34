"""The enforcement stages at a gateway, in their order: size, message authentication, capability, origin, flow, audit.

What concerns a caller's message as a whole happens in the chain; everything else happens at each server's link, since
only there a message is one server's. A refusal leaves one audit record and one structured error.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NoReturn

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from heliograph.agents.core.audit import AuditLog
from heliograph.agents.core.canonical import canonical_hash
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.gateway import current_call
from heliograph.agents.core.guard import Onward
from heliograph.agents.core.identity import Identity
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.core.links import LOST_CODE, TOO_LARGE_CODE, LinkInfo
from heliograph.agents.core.namespace import LISTS
from heliograph.agents.mcp_sec.asking import Asker, request_digest
from heliograph.agents.mcp_sec.certificates import EXTENSION, SecurityError
from heliograph.agents.mcp_sec.channel import own_fields, without_fields
from heliograph.agents.mcp_sec.denial import AUTH_CODE, DenialLog
from heliograph.agents.mcp_sec.flow import FlowTracker, Influence
from heliograph.agents.mcp_sec.grants import GrantBook
from heliograph.agents.mcp_sec.origin import named_question, origin_of, tagged, tagged_list
from heliograph.agents.mcp_sec.peers import Met, Peer, State
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.agents.mcp_sec.registry import Peers
from heliograph.agents.mcp_sec.states import StateLedger
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.errors import BadInput

__all__ = ["SecurityEnforcer"]

_CONTEXT: ContextVar[str] = ContextVar("mcpsec_context", default="")
_CAN_ASK: ContextVar[bool] = ContextVar("mcpsec_can_ask", default=False)
"""Whether the caller of the stateless era takes questions; the link's own request need not say so any more."""
_NEEDS = {
    "tools/list": "tools",
    "tools/call": "tools",
    "prompts/list": "prompts",
    "prompts/get": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "resources/read": "resources",
    "resources/subscribe": "resources",
    "resources/unsubscribe": "resources",
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}
_FLOWS = frozenset({"tools/call", "prompts/get", "resources/read", "completion/complete"})
_LOCAL_ERRORS = frozenset({types.REQUEST_TIMEOUT, types.CONNECTION_CLOSED, LOST_CODE, TOO_LARGE_CODE})
_REPLAYS = frozenset({"replay", "expired"})
_LINKS_KEPT = 256


class SecurityEnforcer:
    """Interceptor of a gateway: attestation, authentication, origins and flow control for the servers behind it.

    Servers and clients that know nothing of it work on, at the level that ``policy.mode`` gives them.

    Args:
        trust: whom to believe.
        mode, isolation: of the policy, for short.
        policy: what to enforce.
        grants: allowed flows; none by default.
        log: for refusals; the gateway's own audit log is taken if it has one.
        name: in the chain.
        now: seconds since 1970.

    Attributes:
        denials: what was refused.
    """

    def __init__(
        self,
        trust: TrustStore | None = None,
        *,
        mode: str = "",
        isolation: str = "",
        policy: SecurityPolicy | None = None,
        grants: GrantBook | None = None,
        log: AuditLog | None = None,
        name: str = "mcpsec",
        now: Callable[[], float] = time.time,
    ) -> None:
        wanted = policy or SecurityPolicy()
        if mode or isolation:
            plain = msgspec.to_builtins(wanted)
            plain["mode"] = mode or wanted.mode
            plain["flow"]["isolation"] = isolation or wanted.flow.isolation
            wanted = SecurityPolicy.from_mapping(plain)
        self.name, self.policy, self._now = name, wanted, now
        self.trust = trust if trust is not None else TrustStore()
        self.grants = grants if grants is not None else GrantBook(Identity.generate(), now=now)
        self.denials = DenialLog(log)
        flow = wanted.flow
        self.flow = FlowTracker(
            flow.isolation,
            min_argument=flow.min_argument,
            min_shared=flow.min_shared,
            min_words=flow.min_words,
            window=flow.window,
        )
        for rule in flow.grants:
            self.grants.issue(rule.source, rule.target, rule.tool)
        self._asker = Asker(flow.asks_per_minute, now=now)
        self._states = StateLedger()
        self._peers = Peers(self.trust, wanted, self.denials, now)
        self._contexts: OrderedDict[str, str] = OrderedDict()

    def take_audit(self, log: AuditLog) -> None:
        """Writes to the gateway's log from now on."""
        self.denials.log = log

    def peer(self, server: str) -> Peer:
        """What is known of a server."""
        return self._peers.peer(server)

    def readmit(self, server: str) -> None:
        """Ends a disconnection early."""
        self._peers.readmit(server)

    def approve(self, server: str, tool: str) -> None:
        """Takes a tool out of quarantine, as it was last listed.

        Raises:
            BadInput: it is not in quarantine.
        """
        self._peers.approve(server, tool)

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Bounds a caller's message, takes forged fields out, and names its conversation."""
        payload = env.payload
        params = payload.get("params") if isinstance(payload, Mapping) else None
        params = params if isinstance(params, Mapping) else {}
        size = len(msgspec.json.encode(payload))
        method = str(payload.get("method", ""))
        if size > self.policy.max_request_bytes:
            raise self._deny(
                "too_large",
                f"the request has {size} bytes; this gateway takes {self.policy.max_request_bytes}",
                method=method,
            )
        said = own_fields(params.get("_meta"))
        named = said.get("context") if isinstance(said, Mapping) else None
        context = f"{env.tenant}|{env.sender}|{env.conv or (named if isinstance(named, str) else '')}"
        if said is not None:  # what a caller says of origins and codes counts for nothing
            env = env.replace(payload={**payload, "params": without_fields(params)})
        if env.conv:
            self._contexts[env.conv] = context
            self._contexts.move_to_end(env.conv)
            if len(self._contexts) > 10_000:
                self._contexts.popitem(last=False)
        meta = params.get("_meta")
        declared = meta.get(types.CLIENT_CAPABILITIES_META_KEY) if isinstance(meta, Mapping) else None
        can_ask = isinstance(declared, Mapping) and declared.get("elicitation") is not None
        token, asks = _CONTEXT.set(context), _CAN_ASK.set(can_ask)
        try:
            return await call_next(env)
        finally:
            _CAN_ASK.reset(asks)
            _CONTEXT.reset(token)

    async def hello(self, server: str, info: LinkInfo) -> LinkInfo | None:
        """Hides what a refused server says of itself."""
        met = self._peers.meet(self.peer(server), info)
        if met.state is State.REFUSED:
            return None
        hidden = {
            place: {k: v for k, v in info.capabilities[place].items() if k != EXTENSION}
            for place in ("extensions", "experimental")
            if isinstance(info.capabilities.get(place), Mapping)
        }
        capabilities = {k: v for k, v in {**info.capabilities, **hidden}.items() if v or k not in hidden}
        instructions = info.instructions
        if instructions and self.policy.tag == "text":
            instructions = f"[origin={origin_of(server)} assurance={met.assurance}] {instructions}"
        return LinkInfo(info.version, capabilities, info.server_info, instructions)

    async def exchange(
        self, server: str, info: LinkInfo, method: str, params: dict[str, Any], call_next: Onward
    ) -> dict[str, Any]:
        """One request to one server, and its answer."""
        peer, context = self.peer(server), _CONTEXT.get()
        met = self._peers.meet(peer, info)
        about = self._about(server, method, params, context)
        if met.state is State.REFUSED:
            raise self._deny(met.reason, met.message, **about)
        state = params.get("requestState")
        digest = _Digest(method, params)
        if Asker.is_ours(state):
            params = self._take_answer(peer, context, digest, params, about)
        elif state is not None and not self._states.known(state, context, server, digest.value):
            raise self._deny(
                "state", "requestState is not one that this server gave for this call, or was used", **about
            )
        carried = params.get("requestState")
        if met.ask and method not in LISTS and context not in peer.agreed:
            question = await self._ask(
                context,
                digest,
                f"{server} {met.message} Use it all the same, without any proof of what it says?",
                {"kind": "server"},
                carried,
                met.reason,
                about,
            )
            if question is not None:
                return question
            self._peers.agree(peer, context)
        self._check_capability(peer, met, info, method, params, about)
        influence = Influence()
        if method in _FLOWS:
            influence = self.flow.label(
                context, server, _carried(params), writes=self._writes(peer, met, method, params)
            )
            question = await self._check_flow(influence, peer, context, digest, method, params, about)
            if question is not None:
                return question
        origin = "host" if not influence.sources else f"derived:[{','.join(sorted(influence.sources))}]"
        result = await self._send(peer, met, method, params, origin, call_next, about, context, influence)
        if carried is not None and result.get("resultType") != "input_required":
            self._states.use(carried)
        if result.get("resultType") == "input_required":
            result = self._police_questions(peer, met, context, digest, result, about)
        if method in _FLOWS:
            self.flow.delivered(
                context, server, result, influence=influence.sources, verified=met.state is State.ATTESTED
            )
        return self._marked(peer, met, info, method, params, result, influence)

    async def asked(
        self, server: str, session: str, method: str, params: dict[str, Any], call_next: Onward
    ) -> dict[str, Any]:
        """A server's request to a session's caller: only what its certificate allows, and in its own name."""
        peer, context = self.peer(server), self._contexts.get(session, f"||{session}")
        met = next(reversed(peer.met.values()), None)
        about = self._about(server, method, params, context)
        if met is None or met.state is State.REFUSED or self._now() < peer.until:
            raise self._deny(met.reason if met and met.reason else "unattested", f"{server} may not ask", **about)
        need = _NEEDS.get(method)
        if need is not None and not met.may(need):
            raise self._deny("capability", f"{server} is not certified for {need}", **about)
        if need is not None and method != "roots/list":
            self.flow.delivered(context, server, params, verified=met.state is State.ATTESTED)
        answer = await call_next(named_question(method, params, server, met.assurance))
        # What goes back was written by a model or person that has read other servers' answers.
        influence = self.flow.label(context, server, answer)
        missing = self.grants.missing(influence.sources, server, method, context)
        if missing and method == "sampling/createMessage" and self.policy.flow.on_flow != "allow":
            raise self._deny(
                "flow",
                f"the answer to {server} holds what came from {', '.join(missing)}; grant it, or answer without",
                sources=missing,
                **about,
            )
        return answer

    async def told(self, server: str, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """A server's notification: unauthenticated, and marked so; nothing from a refused server."""
        peer = self.peer(server)
        met = next(reversed(peer.met.values()), None)
        if (met is not None and met.state is State.REFUSED) or self._now() < peer.until:
            return None
        if method not in ("notifications/message", "notifications/progress"):
            return params
        meta = params.get("_meta")
        kept = dict(meta) if isinstance(meta, Mapping) else {}
        return {**params, "_meta": {**kept, EXTENSION: {"origin": origin_of(server), "assurance": "unverified"}}}

    # -- what may be asked of it --------------------------------------------------------------------------------------

    def _check_capability(
        self, peer: Peer, met: Met, info: LinkInfo, method: str, params: Mapping[str, Any], about: dict[str, Any]
    ) -> None:
        need = _NEEDS.get(method)
        if need is not None and not met.may(need) and (method not in LISTS or need in info.capabilities):
            raise self._deny("capability", f"{peer.name} is not certified for {need}", **about)
        if method != "tools/call":
            return
        tool = str(params.get("name", ""))
        if tool in peer.quarantined:
            raise self._deny(
                "quarantine",
                f"{peer.name} changed {tool} ({peer.quarantined[tool]}) after it was approved; look at it and approve "
                "it again, or do without",
                **about,
            )
        approved = peer.approved(met.certificate)
        if approved is not None and tool not in approved:
            raise self._deny("unlisted_tool", f"{tool} is not among the approved tools of {peer.name}", **about)

    def _writes(self, peer: Peer, met: Met, method: str, params: Mapping[str, Any]) -> bool:
        if method != "tools/call":
            return False
        tool = str(params.get("name", ""))
        if met.certificate is None:
            for pattern, effect in self.policy.side_effects.items():
                if fnmatchcase(f"{peer.name}.{tool}", pattern):
                    return effect != "read"
        pin = (peer.approved(met.certificate) or {}).get(tool)
        return pin is None or pin.side_effect != "read"

    async def _check_flow(
        self,
        influence: Influence,
        peer: Peer,
        context: str,
        digest: _Digest,
        method: str,
        params: Mapping[str, Any],
        about: dict[str, Any],
    ) -> dict[str, Any] | None:
        target = str(params.get("name") or params.get("uri") or method)
        missing = self.grants.missing(influence.sources, peer.name, target, context)
        if not missing or self.policy.flow.on_flow == "allow":
            return None
        about = {**about, "sources": missing, "why": influence.why}
        sources = ", ".join(missing)
        if self.policy.flow.on_flow == "deny":
            raise self._deny("flow", f"what came from {sources} may not go to {peer.name}.{target}", **about)
        how = {
            "context": f"after {sources} answered",
            "unverified": f"after {sources}, which has no certificate, answered",
        }.get(influence.why, f"with content from {sources}")
        question = await self._ask(
            context,
            digest,
            f"{peer.name}.{target} is to be called {how}. Allow it?",
            {"kind": "flow", "sources": missing, "tool": target},
            params.get("requestState"),
            "flow",
            about,
        )
        if question is None:
            self._grant(peer, context, missing, target)
        return question

    def _grant(self, peer: Peer, context: str, sources: list[str], target: str) -> None:
        for source in sources:
            grant = self.grants.issue(source, peer.name, target, context=context, seconds=self.policy.flow.remember_s)
            self.denials.note("mcpsec.granted", grant=grant.id, source=source, server=peer.name, tool=target)

    async def _ask(
        self,
        context: str,
        digest: _Digest,
        message: str,
        subject: dict[str, Any],
        state: Any,
        reason: str,
        about: dict[str, Any],
    ) -> dict[str, Any] | None:
        """None if a person agreed; a question to send where the era asks that way.

        Raises:
            Rejected: nobody can be asked, nobody agreed, or too much was asked.
        """
        call = current_call()
        if call is None:
            raise self._deny(reason, f"{message} Nobody can be asked here.", **about)
        if not self._asker.may_ask(context):
            raise self._deny("ask_rate", f"{message} Too much was asked in the last minute.", **about)
        if call.version in MODERN_PROTOCOL_VERSIONS:
            if not _CAN_ASK.get():
                raise self._deny(reason, f"{message} This client cannot ask anybody.", **about)
            return self._asker.question(context, digest.value, message, subject, state)
        if not await self._asker.ask_session(call, context, message):
            raise self._deny(reason, f"{message} Nobody agreed.", **about)
        return None

    def _take_answer(
        self, peer: Peer, context: str, digest: _Digest, params: Mapping[str, Any], about: dict[str, Any]
    ) -> dict[str, Any]:
        found = self._asker.answered(context, digest.value, params)
        if found is None:
            raise self._deny("state", "this approval is old, changed, or about another call", **about)
        subject, allowed, onward = found
        if not allowed:
            raise self._deny("ask_refused", "the person who was asked did not agree", **about)
        if subject.get("kind") == "server":
            self._peers.agree(peer, context)
        else:
            self._grant(peer, context, list(subject["sources"]), str(subject["tool"]))
        return onward

    # -- the message itself -------------------------------------------------------------------------------------------

    async def _send(
        self,
        peer: Peer,
        met: Met,
        method: str,
        params: dict[str, Any],
        origin: str,
        call_next: Onward,
        about: dict[str, Any],
        context: str,
        influence: Influence,
    ) -> dict[str, Any]:
        channel = met.channel
        if channel is None:
            try:
                return without_fields(await call_next(without_fields(params)))
            except MCPError as error:
                self._hear_error(peer, met, method, error, context, influence)
                raise
        try:
            signed, pending = channel.sign(method, params, origin)
        except SecurityError as error:
            raise self._deny(error.reason, str(error), **about) from None
        try:
            result = await call_next(signed)
        except MCPError as error:
            code, message = error.error.code, error.error.message
            if code in _LOCAL_ERRORS and own_fields(error.error.data) is None:
                raise
            if code == AUTH_CODE and own_fields(error.error.data) is None:
                reason = (
                    str((error.error.data or {}).get("reason", "mac")) if isinstance(error.error.data, dict) else "mac"
                )
                self._refused_there(peer, reason, about)
            try:
                data = channel.check_error(pending, code, message, error.error.data)
            except SecurityError:
                # Its code may steer a client, its words could steer a model: the words go.
                raise MCPError(code, f"{peer.name} answered with an error that is not authenticated") from None
            known = MCPError(code, message, data)
            self._hear_error(peer, met, method, known, context, influence)
            raise known from None
        try:
            return channel.check_result(pending, result)
        except SecurityError as error:
            self._count_replay(peer, error.reason)
            raise self._deny(error.reason, f"{peer.name}: {error}", sent=True, **about) from None

    def _refused_there(self, peer: Peer, reason: str, about: dict[str, Any]) -> NoReturn:
        self._count_replay(peer, reason)
        raise self._deny(
            reason, f"{peer.name} could not authenticate the request ({reason})", sent=False, **about
        ) from None

    def _count_replay(self, peer: Peer, reason: str) -> None:
        wanted, now = self.policy, self._now()
        if reason in _REPLAYS and peer.replayed(now, wanted.replays_to_disconnect, wanted.replay_span_s):
            peer.until = now + wanted.disconnect_s
            self.denials.note("mcpsec.disconnected", server=peer.name, seconds=wanted.disconnect_s)

    def _hear_error(
        self, peer: Peer, met: Met, method: str, error: MCPError, context: str, influence: Influence
    ) -> None:
        if method in _FLOWS and error.error.code not in _LOCAL_ERRORS:
            said = {"message": error.error.message, "data": error.error.data}
            self.flow.delivered(
                context, peer.name, said, influence=influence.sources, verified=met.state is State.ATTESTED
            )

    def _police_questions(
        self, peer: Peer, met: Met, context: str, digest: _Digest, result: dict[str, Any], about: dict[str, Any]
    ) -> dict[str, Any]:
        questions = {}
        for key, request in (result.get("inputRequests") or {}).items():
            asked = str(request.get("method", "")) if isinstance(request, Mapping) else ""
            need = _NEEDS.get(asked)
            if need is None or not met.may(need):
                raise self._deny(
                    "capability", f"{peer.name} asks for {asked or 'nothing known'} without being certified", **about
                )
            params = request.get("params")
            said = named_question(asked, params if isinstance(params, Mapping) else {}, peer.name, met.assurance)
            questions[key] = {**request, "params": said}
        if isinstance(result.get("requestState"), str):
            self._states.gave(result["requestState"], context, peer.name, digest.value)
        return {**result, "inputRequests": questions} if "inputRequests" in result else result

    def _marked(
        self,
        peer: Peer,
        met: Met,
        info: LinkInfo,
        method: str,
        params: Mapping[str, Any],
        result: dict[str, Any],
        influence: Influence,
    ) -> dict[str, Any]:
        origin = origin_of(peer.name, influence.sources)
        if method == "tools/list":
            result = self._peers.check_list(peer, met, info, params, result)
        if method in LISTS:
            return tagged_list(result, LISTS[method][0], origin, met.assurance)
        if method in _FLOWS:
            return tagged(result, origin, met.assurance, as_text=self.policy.tag == "text")
        return result

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _about(self, server: str, method: str, params: Mapping[str, Any], context: str) -> dict[str, Any]:
        about: dict[str, Any] = {"server": server, "method": method, "context": context}
        name = params.get("name") or params.get("uri")
        if isinstance(name, str):
            about["target"] = name
        about["arguments"] = params.get("arguments")  # hashed when it is written
        return about

    def _deny(self, reason: str, message: str, **about: Any) -> Rejected:
        arguments = about.pop("arguments", None)
        if arguments is not None:
            try:
                about["arguments_hash"] = canonical_hash(arguments)
            except BadInput:  # an integer beyond 2**53 is JSON without a canonical form
                about["arguments_hash"] = ""
        return self.denials.deny(reason, message, by=self.name, **about)


class _Digest:
    """Of what a request asks for; made when it is needed."""

    def __init__(self, method: str, params: Mapping[str, Any]) -> None:
        self._method, self._params = method, params

    @cached_property
    def value(self) -> str:
        return request_digest(self._method, self._params)


def _carried(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a request carries to its server beside the name of what it asks for."""
    return {k: v for k, v in params.items() if k not in ("_meta", "name", "requestState", "ref")}
