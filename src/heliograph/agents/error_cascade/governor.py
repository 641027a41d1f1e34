"""The governor: screens each claim of each message, verifies, blocks, and rolls back (arXiv:2603.04474).

An interceptor between senders and the bus. A claim is green if something confirmed entails it, red if something
confirmed contradicts it or it was rejected before, yellow otherwise. What becomes of yellow claims is the policy. A
message with a red claim goes back to its sender with the evidence; after ``max_retries`` the red claims are cut out
instead. A claim that turns out false later is rolled back: what was derived from it is withdrawn with it, messages that
still wait are recalled, and everybody who passed it on gets a correction.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected, as_mcp_middleware
from heliograph.agents.error_cascade.claims import Atom, Claim, ClaimSource, StructuredClaims, TooManyClaims
from heliograph.agents.error_cascade.judges import ExactJudge, Judge
from heliograph.agents.error_cascade.keeping import Correction, Counts, KeyLocks, Nearest
from heliograph.agents.error_cascade.lineage import LineageGraph, Node, Rollback
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

if TYPE_CHECKING:
    from heliograph.agents.core.audit import AuditLog
    from heliograph.agents.core.bus import Bus
    from heliograph.agents.core.lm import LM

__all__ = ["Correction", "Counts", "Governor", "Policy", "Verifier"]

Policy = Literal["speed", "balanced", "strict"]
Verifier = Callable[[Claim], "bool | Awaitable[bool | None] | None"]
"""Looks a claim up: true, false, or None if it cannot tell."""

CODE = -32005
CORRECTIONS, WITHDRAWN = "governor.correction", "governor.withdrawn"
UNVERIFIED, HIGH_RISK = "unverified", "high-risk"
_MAX_SENDERS = 10_000


@dataclass
class _Screened:
    """One message's claims by their fate."""

    green: list[Atom] = field(default_factory=list)
    yellow: list[Atom] = field(default_factory=list)
    red: dict[Atom, str] = field(default_factory=dict)


class Governor:
    """An interceptor that lets no claim pass that is known to be false.

    Put it innermost, next to the bus: what it lets through is then delivered without a wait in which the claim could be
    rejected. Answers of tools, seen in a gateway, are screened as messages of ``tool:NAME``; since a tool cannot be
    asked to say it again, its red claims are cut out at once.

    Args:
        policy: "speed" forwards yellow claims marked, "balanced" verifies those of hubs, "strict" all.
        hubs: senders whose yellow claims the policy "balanced" verifies.
        claims: takes messages apart.
        judge: compares a claim with confirmed ones about the same thing.
        verifier: looks claims up; without one, nothing can be verified.
        max_retries: of a sender, before red claims are cut out.
        lineage: to continue.
        block: off, red claims are delivered with the mark "rejected".
        rollback: off, a rejection does not reach what was derived or delivered before.
        quorum: senders that must have said an inferred claim before others are judged by it.
        expire_rounds: after which an inferred confirmation no longer counts; 0 for never.
        verifier_timeout_s: for one look-up.
        verify_per_message, verify_per_minute: look-ups, at most.
        on_failure: of judge or verifier, "open" leaves the claim yellow, "closed" makes it red; by default closed under
            "strict", open otherwise.
        embedder: for free text: confirmed sentences near in meaning are judged too.
        hold: keeps messages in a record for :func:`~heliograph.agents.error_cascade.replay`, this many at most.
        name: in the chain.
        clock: for budgets.

    Raises:
        BadInput: an option that does not exist or a limit out of range.
    """

    def __init__(
        self,
        policy: Policy = "balanced",
        *,
        hubs: Collection[str] = (),
        claims: ClaimSource | None = None,
        judge: Judge | None = None,
        verifier: Verifier | None = None,
        max_retries: int = 2,
        lineage: LineageGraph | None = None,
        block: bool = True,
        rollback: bool = True,
        quorum: int = 1,
        expire_rounds: int = 0,
        verifier_timeout_s: float = 10.0,
        verify_per_message: int = 32,
        verify_per_minute: int = 600,
        on_failure: Literal["open", "closed"] | None = None,
        embedder: LM | None = None,
        hold: int = 100_000,
        name: str = "governor",
        clock: Clock | None = None,
    ) -> None:
        if policy not in ("speed", "balanced", "strict"):
            raise BadInput(f"policy is speed, balanced or strict; got {policy!r}")
        if on_failure not in (None, "open", "closed"):
            raise BadInput(f"on_failure is open or closed; got {on_failure!r}")
        if max_retries < 0 or quorum < 1 or expire_rounds < 0 or verify_per_message < 0 or verify_per_minute < 0:
            raise BadInput("max_retries, expire_rounds and the look-up limits are 0 or more, quorum 1 or more")
        if not verifier_timeout_s > 0:
            raise BadInput(f"verifier_timeout_s is above 0; got {verifier_timeout_s}")
        if isinstance(hubs, str):
            raise BadInput(f"hubs is a set of names, not one text; got {hubs!r}")
        self.policy, self.hubs, self.name = policy, frozenset(hubs), name
        self.claims, self.judge, self.verifier = claims or StructuredClaims(), judge or ExactJudge(), verifier
        self.lineage = lineage or LineageGraph()
        self.max_retries, self.block, self.rollback, self.quorum = max_retries, block, rollback, quorum
        self.expire_rounds, self.verifier_timeout_s = expire_rounds, verifier_timeout_s
        self.verify_per_message, self.verify_per_minute = verify_per_message, verify_per_minute
        self.on_failure = on_failure or ("closed" if policy == "strict" else "open")
        self.counts = Counts()
        self.corrections: deque[Correction] = deque(maxlen=10_000)
        self.record: deque[dict[str, Any]] = deque(maxlen=hold)
        self.tainted: OrderedDict[str, None] = OrderedDict()
        self.round = 0
        self._clock = clock or WallClock()
        self._bus: Bus | None = None
        self._audit: AuditLog | None = None
        self._own: set[str] = set()
        self._attempts: OrderedDict[tuple[str, str, str, str], int] = OrderedDict()
        self._locks: dict[tuple[str, str, str], tuple[asyncio.Lock, int]] = {}
        self._lookups: deque[float] = deque()
        self._unsent: list[Rollback] = []
        self._near = Nearest(embedder) if embedder is not None else None

    def attach(self, bus: Bus) -> None:
        """The bus on which messages are recalled and corrections published."""
        self._bus = bus

    def take_audit(self, log: AuditLog) -> None:
        """The gateway's log, in which decisions stand from here on."""
        self._audit = log

    def as_mcp_middleware(self) -> Callable[[Any, Any], Awaitable[Any]]:
        """For a server of the official SDK."""
        return as_mcp_middleware(self)

    def next_round(self) -> int:
        """Begins the next round; callers that work in rounds say so, and others stay in round 0."""
        self.round += 1
        self.record.append({"op": "round", "round": self.round})
        return self.round

    # What operators do

    def trust(self, claim: Claim, evidence: str = "given as trusted") -> None:
        """The same as :meth:`confirm` before any message has passed, outside a running loop.

        Raises:
            BadInput: messages have passed; then there may be something to roll back.
        """
        if self.counts.messages:
            raise BadInput("messages have passed already; use `await governor.confirm(claim)`")
        self.record.append({"op": "confirm", "claim": _plain(claim), "evidence": evidence})
        self._confirm(claim, evidence)

    async def confirm(self, claim: Claim, evidence: str = "operator") -> tuple[Rollback, ...]:
        """Makes a claim trusted; what it contradicts is rejected and rolled back.

        Returns:
            One entry for each claim that was rejected.
        """
        self.record.append({"op": "confirm", "claim": _plain(claim), "evidence": evidence})
        done = self._confirm(claim, evidence)
        await self._spread()
        return done

    async def revoke(self, claim: Claim | str, evidence: str = "revoked by the operator") -> Rollback:
        """Rejects a claim, even a confirmed one, and rolls it back.

        Args:
            claim: or its id.
            evidence: told to those who passed it on.

        Raises:
            BadInput: an id that is not in the lineage.
        """
        if isinstance(claim, Claim):
            self.lineage.add(claim, round=self.round)
        id_ = claim.id if isinstance(claim, Claim) else claim
        plain = _plain(self.lineage._node(id_).claim)
        self.record.append({"op": "revoke", "claim": plain, "evidence": evidence})
        done = self._reject(id_, evidence)
        await self._spread()
        return done

    async def release(self, claim: Claim | str) -> None:
        """Forgets what is known of a claim, whether it is trusted or rejected; the next message is screened afresh."""
        id_ = claim.id if isinstance(claim, Claim) else claim
        plain = _plain(self.lineage._node(id_).claim)
        self.record.append({"op": "release", "claim": plain})
        self.lineage.release(id_, "released by the operator")

    # The message path

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Screens a message, and in a gateway the answer of a tool.

        Raises:
            Rejected: red claims; ``data`` holds the refused claims, the evidence, what to do, and the attempt.
        """
        if env.id in self._own:
            return await call_next(env)
        payload = env.payload
        rpc = isinstance(payload, dict) and payload.get("jsonrpc") == "2.0"
        if rpc and payload.get("method") != "tools/call":
            return await call_next(env)
        onward = await self.screen(env)
        if not rpc:
            answer = await call_next(onward)
            if any(not self._live(id_) for id_ in self.lineage.claims_of(env.id)) and self._bus is not None:
                # Rejected while stages further in were holding the message.
                self.counts.recalled += (await self._bus.recall(env.id)).removed
            return answer
        answer = await call_next(onward)
        if not isinstance(answer.payload, dict) or not isinstance(answer.payload.get("result"), dict):
            return answer
        params = payload.get("params") or {}
        heard = answer.replace(sender=f"tool:{params.get('name', '')}", conv=env.conv, tenant=env.tenant)
        screened = await self.screen(heard, retries=False)
        if screened is heard:
            return answer
        return answer.replace(payload=screened.payload, meta=screened.meta)

    def _live(self, id_: str) -> bool:
        node = self.lineage.nodes.get(id_)
        return not self.block or not self.rollback or node is None or node.live

    async def screen(self, env: Envelope, *, retries: bool = True) -> Envelope:
        """The message as it may go on; the same object if nothing had to be changed.

        Args:
            env: to screen.
            retries: off, red claims are cut out at once.

        Raises:
            Rejected: red claims, and the sender has retries left; or more claims than are screened.
        """
        scope = _scope(env)
        entry: dict[str, Any] = {"op": "message", "env": env.to_builtins(), "retries": retries, "lookups": {}}
        self.record.append(entry)
        self.counts.messages += 1
        try:
            split = self.claims.split(env.payload, scope)
        except TooManyClaims as error:
            self._log("refused", env, reason=str(error))
            raise Rejected(str(error), code=CODE, by=self.name, data={"directive": "split the message"}) from None
        except Exception as error:
            return self._unsplit(env, error)
        atoms = tuple(atom for atom in split.atoms if atom.claim.stance != "quoted")
        self.counts.atoms += len(atoms)
        if not atoms:
            self._forget_attempts(env)
            return _label(env, "unscreened", str(split.unscreened)) if split.unscreened else env
        async with self._serialised(atoms):
            found = await self._sort(env, atoms, entry)
            self._keep_edges(env, found)
        await self._spread()
        return self._decide(env, found, split.unscreened, retries=retries)

    def _unsplit(self, env: Envelope, error: Exception) -> Envelope:
        """A message that could not be taken apart, for example since a model did not answer."""
        self.counts.failures += 1
        self._log("failed", env, part="claims", error=type(error).__name__, fails=self.on_failure)
        if self.on_failure == "closed":
            reason = f"this message could not be screened ({type(error).__name__}), so it is not sent"
            raise Rejected(reason, code=CODE, by=self.name, data={"directive": "send it again later"}) from None
        return _label(env, "unscreened", "all")

    def _decide(self, env: Envelope, found: _Screened, unscreened: int, *, retries: bool) -> Envelope:
        """Stage 4. Nothing is awaited between here and the delivery."""
        who = (env.tenant, env.conv, env.topic, env.sender)
        found = self._sorted_out(found)
        marks = dict.fromkeys(found.yellow, UNVERIFIED)
        dropped: list[Atom] = []
        if found.red and self.block:
            attempt = self._attempts.pop(who, 0) + 1
            if retries and attempt <= self.max_retries:
                self._attempts[who] = attempt
                if len(self._attempts) > _MAX_SENDERS:
                    self._attempts.popitem(last=False)
                self.counts.returned += 1
                raise self._refusal(env, found, attempt)
            self.counts.broken += 1
            dropped = list(found.red)
            marks = dict.fromkeys(found.yellow, HIGH_RISK)
            self._log("cut", env, claims=[atom.claim.id for atom in dropped])
        elif found.red:
            marks |= dict.fromkeys(found.red, "rejected")
        self._forget_attempts(env)
        self._carry(env, [*found.green, *found.yellow, *(() if self.block else found.red)], marks)
        self.counts.delivered += 1
        self.counts.dropped += len(dropped)
        self.counts.tagged += len(marks)
        if dropped or marks:
            env = env.replace(payload=self.claims.join(env.payload, dropped, marks))
        return _label(env, "unscreened", str(unscreened)) if unscreened else env

    def _forget_attempts(self, env: Envelope) -> None:
        self._attempts.pop((env.tenant, env.conv, env.topic, env.sender), None)

    def _refusal(self, env: Envelope, found: _Screened, attempt: int) -> Rejected:
        refused = [{"id": atom.claim.id, "text": atom.claim.said(), "evidence": why} for atom, why in found.red.items()]
        self._log("returned", env, claims=[each["id"] for each in refused], attempt=attempt)
        directive = "leave these claims out, or replace them by what the evidence says, and send the message again"
        data = {"atoms": refused, "directive": directive, "attempt": attempt, "attempts": self.max_retries + 1}
        return Rejected(
            f"{len(refused)} claims of this message are known to be false", code=CODE, data=data, by=self.name
        )

    # Stages 1 to 3

    async def _sort(self, env: Envelope, atoms: tuple[Atom, ...], entry: dict[str, Any]) -> _Screened:
        found = _Screened()
        budget = self.verify_per_message
        lookup = self.policy == "strict" or (self.policy == "balanced" and env.sender in self.hubs)
        for atom in atoms:
            node = self.lineage.add(atom.claim, agent=env.sender, round=self.round)
            label, why = self._label(node, env)
            if label == "yellow" and lookup and self.verifier is not None and budget > 0:
                budget -= 1
                label, why = await self._verify(node, entry)
            if label == "green":
                found.green.append(atom)
            elif label == "red":
                found.red[atom] = why
            else:
                found.yellow.append(atom)
        return found

    def _sorted_out(self, found: _Screened) -> _Screened:
        """Moves to red what has been taken back since it was screened."""
        red = dict(found.red)
        for atom in (*found.green, *found.yellow):
            node = self.lineage.nodes.get(atom.claim.id)
            if node is not None and not node.live:
                red[atom] = node.evidence[-1] if node.evidence else "taken back"
        kept = [[atom for atom in part if atom not in red] for part in (found.green, found.yellow)]
        return _Screened(kept[0], kept[1], red)

    def _label(self, node: Node, env: Envelope) -> tuple[str, str]:
        if not node.live:
            return "red", node.evidence[-1] if node.evidence else "taken back"
        if node.grounded:
            return "green", ""
        supporter: Node | None = None
        for other in self._candidates(node):
            try:
                relation = self.judge(other.claim, node.claim)
            except Exception as error:
                return self._failed(node, "judge", error)
            self.counts.judged += 1
            if relation == "contradicts":
                why = f"contradicts what is confirmed: {other.claim.said()}"
                self.lineage.link(other.claim.id, node.claim.id, "contradicts", env.id)
                self._reject(node.claim.id, why)
                return "red", why
            if relation == "entails":
                supporter = supporter or other
        if supporter is None:
            return "yellow", ""
        if supporter is not node:
            self.lineage.link(supporter.claim.id, node.claim.id, "restates", env.id)
        node.backers.add(env.sender)
        if node.live:
            self.lineage.confirm(node.claim.id, grounded=False, round=self.round)
        return "green", ""

    def _candidates(self, node: Node) -> Iterable[Node]:
        """Confirmed claims about the same thing, that count; those that stand on their own first."""
        near = list(self.lineage.at_key(node.claim))
        if self._near is not None and node.claim.predicate == "states":
            near += [self.lineage.nodes[i] for i in self._near.find(node.claim) if i in self.lineage.nodes]
        counted = []
        for other in near:
            if other.status != "confirmed" or not other.live or other is node:
                continue
            if not other.grounded:
                old = self.expire_rounds and self.round - other.confirmed_round > self.expire_rounds
                if old or len(other.backers) < self.quorum:
                    continue
            counted.append(other)
        return sorted(counted, key=lambda other: not other.grounded)

    async def _verify(self, node: Node, entry: dict[str, Any]) -> tuple[str, str]:
        assert self.verifier is not None
        now = self._clock.now()
        while self._lookups and now - self._lookups[0] >= 60:
            self._lookups.popleft()
        if len(self._lookups) >= self.verify_per_minute:
            return "yellow", ""
        self._lookups.append(now)
        self.counts.verified += 1
        try:
            answer = self.verifier(node.claim)
            if inspect.isawaitable(answer):
                async with asyncio.timeout(self.verifier_timeout_s):
                    answer = await answer
        except Exception as error:
            entry["lookups"][node.claim.id] = "failed"
            return self._failed(node, "verifier", error)
        entry["lookups"][node.claim.id] = answer
        node = self.lineage.add(node.claim, round=self.round)  # it may have been forgotten meanwhile
        if not node.live:
            return "red", node.evidence[-1] if node.evidence else "taken back"
        if answer is True:
            self._confirm(node.claim, "verified")
            return "green", ""
        if answer is False:
            why = "the verifier says that it is false"
            self._reject(node.claim.id, why)
            return "red", why
        return "yellow", ""

    def _failed(self, node: Node, part: str, error: Exception) -> tuple[str, str]:
        """A judge or verifier broke down; which way the claim goes is a matter of policy."""
        self.counts.failures += 1
        reason = f"the {part} failed ({type(error).__name__})"
        if self._audit is not None:
            self._audit.append({"event": "governor", "did": "failed", "part": part, "claim": node.claim.id,
                                "error": type(error).__name__, "fails": self.on_failure})  # fmt: skip
        if self.on_failure == "closed":
            return "red", f"{reason}, and the policy is to refuse what cannot be checked"
        node.tags.add(f"{part}-failed")
        return "yellow", ""

    # Trust, and its end

    def _confirm(self, claim: Claim, evidence: str) -> tuple[Rollback, ...]:
        node = self.lineage.add(claim, round=self.round)
        self.lineage.confirm(claim.id, evidence, round=self.round)
        if self._near is not None and claim.predicate == "states":
            self._near.add(claim)
        done = []
        keyed = [other for other in self.lineage.about(claim) if other is not node]
        for other in keyed:
            if other.status == "rejected" or other.grounded:
                continue
            if self.judge(claim, other.claim) == "contradicts":
                self.lineage.link(claim.id, other.claim.id, "contradicts")
                done.append(self._reject(other.claim.id, f"contradicts what is confirmed: {claim.said()}"))
        return tuple(done)

    def _reject(self, id_: str, evidence: str) -> Rollback:
        carried = bool(self.lineage._node(id_).carriers)
        judge = self.judge if self.rollback else None
        if self.rollback:
            done = self.lineage.reject(id_, evidence, judge=judge, round=self.round)
        else:
            node = self.lineage._node(id_)
            node.status, node.grounded = "rejected", False
            node.evidence.append(evidence)
            done = Rollback(id_, (id_,), (), {}, (), 0)
        if carried or done.suspects or len(done.rejected) > 1:
            self.counts.rollbacks += 1
        self.counts.polluted_rounds += done.polluted_rounds
        if done.messages or done.carriers:
            self._unsent.append(done)
        return done

    async def _spread(self) -> None:
        """Recalls what still waits and sends corrections; the lineage has changed already."""
        while self._unsent:
            done = self._unsent.pop(0)
            for message in done.messages:
                self.tainted[message] = None
                if len(self.tainted) > 100_000:
                    self.tainted.popitem(last=False)
                if self._bus is not None:
                    self.counts.recalled += (await self._bus.recall(message)).removed
            if done.messages:
                gone = [
                    self.lineage.nodes[i].claim for i in (*done.rejected, *done.suspects) if i in self.lineage.nodes
                ]
                why = self.lineage.nodes[done.cause].evidence[-1] if done.cause in self.lineage.nodes else ""
                await self._correct(Correction("", tuple(gone), why, messages=done.messages))
            for agent, ids in done.carriers.items():
                if not agent:
                    continue
                known = [self.lineage.nodes[i] for i in ids if i in self.lineage.nodes]
                evidence = self.lineage.nodes[done.cause].evidence[-1] if done.cause in self.lineage.nodes else ""
                since = next((node.carriers[agent].message for node in known if agent in node.carriers), "")
                await self._correct(Correction(agent, tuple(node.claim for node in known), evidence, since))

    async def _correct(self, correction: Correction) -> None:
        self.corrections.append(correction)
        if self._bus is None:
            return
        token = "".join(c if c.isalnum() or c in "-_" else "_" for c in correction.agent)
        env = Envelope(
            topic=f"{CORRECTIONS}.{token}" if correction.agent else WITHDRAWN,
            kind="control",
            sender=self.name,
            payload=correction.to_payload(),
        )
        self._own.add(env.id)
        try:
            await self._bus.publish(env)
        finally:
            self._own.discard(env.id)

    # The lineage

    def _keep_edges(self, env: Envelope, found: _Screened) -> None:
        """How this message's new claims came about: what each names, else the live claims of the message's parents."""
        heard = [i for parent in env.parents[:64] for i in self.lineage.claims_of(parent)]
        for atom in (*found.green, *found.yellow, *found.red):
            id_ = atom.claim.id
            if id_ not in self.lineage.nodes:
                continue
            told = [source for source in atom.claim.sources if source in self.lineage.nodes]
            if told:
                for source in told:
                    self.lineage.link(source, id_, "derived-from", env.id)
            elif id_ not in heard and not self.lineage.nodes[id_].carriers:
                for source in heard:
                    if source in self.lineage.nodes and self.lineage.nodes[source].live:
                        self.lineage.link(source, id_, "derived-from", env.id)

    def _carry(self, env: Envelope, atoms: Iterable[Atom], marks: Mapping[Atom, str]) -> None:
        for atom in atoms:
            node = self.lineage.add(atom.claim, message=env.id, agent=env.sender, round=self.round)
            if atom in marks:
                node.tags.add(marks[atom])

    def _serialised(self, atoms: tuple[Atom, ...]) -> AsyncExitStack:
        """One message at a time for each thing that is claimed about; keys in order, so that none waits in a ring."""
        return KeyLocks(self._locks, sorted({atom.claim.key for atom in atoms}))

    def _log(self, did: str, env: Envelope, **more: Any) -> None:
        if self._audit is not None:
            self._audit.append({"event": "governor", "did": did, "id": env.id, "sender": env.sender, **more})


def _scope(env: Envelope) -> str:
    """Claims hold within one conversation of one tenant."""
    return json.dumps([env.tenant, env.conv]) if env.tenant else env.conv


def _label(env: Envelope, name: str, value: str) -> Envelope:
    import msgspec

    meta = msgspec.structs.replace(env.meta, labels={**env.meta.labels, f"governor-{name}": value})
    return env.replace(meta=meta)


def _plain(claim: Claim) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(claim).items() if name != "id"}
