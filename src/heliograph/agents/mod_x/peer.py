"""A peer: its agents' capabilities, an index of everybody's, who is alive, and signed calls from peer to peer.

Every message between peers is signed and counts once. Who may take part is a list of names and keys that each peer is
given (invitation); a name without a key is nobody. Nothing here needs a hub: discovery is answered from the peer's own
index, membership is SWIM, indexes meet by anti-entropy.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from heliograph.agents.core.bus import Bus, BusClosed, NoResponders, RequestTimeout
from heliograph.agents.core.canonical import canonical_bytes, canonical_hash
from heliograph.agents.core.envelope import Envelope, Kind
from heliograph.agents.core.identity import Identity, IdentityError, KeyRing, NonceStore, verify_envelope
from heliograph.agents.mod_x.discovery import Capability, CapabilityIndex, Embedder, Hit
from heliograph.agents.mod_x.ledger import NotaryLedger
from heliograph.agents.mod_x.membership import Swim, SwimConfig
from heliograph.agents.mod_x.mesh import Mesh
from heliograph.agents.mod_x.workflow import OnceStore, Outcome, WorkflowEngine
from heliograph.errors import BadInput, HeliographError

__all__ = ["Agent", "CallFailed", "CentralHub", "ModXPeer", "call_key"]

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
MAX_AT_WORK = 256

call_key: ContextVar[str] = ContextVar("call_key", default="")
"""The key of the call that is being done; an ``undo`` names the call that it takes back by the same key."""


class CallFailed(HeliographError):
    """A call to a capability had no good end.

    Attributes:
        kind: "unreachable", "unknown", "refused" or "failed".
    """

    exit_code = 1

    def __init__(self, reason: str, kind: str = "failed") -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.kind)


class Agent(Protocol):
    """What a peer can attach."""

    async def offers(self) -> Sequence[Capability]:
        """Its capabilities; their ``agent`` is filled in by the peer."""
        ...

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Does one."""
        ...


class _Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a peer listens, in its own signature, so that nobody else can lead its messages astray."""

    name: str
    address: str
    version: int
    kid: str = ""
    sig: str = ""

    def body(self) -> bytes:
        return canonical_bytes([self.name, self.address, self.version])


class ModXPeer:
    """One organisation's node.

    Args:
        name: unique.
        identity: its key.
        mesh: how it reaches others.
        keys: public keys of all who may take part, by name; its own is added.
        seeds: addresses of some others, by name.
        embedder: for discovery.
        ledger: that calls are written to; None for none.
        once: results of calls with a key; give one with a file to survive a restart.
        allow: policy: whether a peer may call a capability.
        now: seconds since 1970, or virtual ones.
        tick_s, gossip_s: between two looks at membership, between two exchanges of indexes.
        config: of membership.
        seed: of random choices.
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        mesh: Mesh,
        *,
        keys: Mapping[str, bytes] | None = None,
        seeds: Mapping[str, str] | None = None,
        embedder: Embedder | None = None,
        ledger: NotaryLedger | None = None,
        once: OnceStore | None = None,
        allow: Callable[[str, Capability], bool] | None = None,
        now: Callable[[], float] = time.time,
        tick_s: float = 0.1,
        gossip_s: float = 1.0,
        config: SwimConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not name or "/" in name or not tick_s > 0 or not gossip_s > 0:
            raise BadInput(f"a peer has a name without a slash, and times above 0; got {name!r}, {tick_s}, {gossip_s}")
        self.name, self.identity, self.mesh, self.ledger = name, identity, mesh, ledger
        self.keys = KeyRing({**(keys or {}), name: identity.public})
        self.index = CapabilityIndex(embedder, keys=self.keys)
        self.swim = Swim(name, list(seeds or {}), seed=seed, config=config)
        self.once = once or OnceStore()
        self._allow, self._now, self._tick_s, self._gossip_s = allow, now, tick_s, gossip_s
        self._seeds = dict(seeds or {})
        self._addresses: dict[str, _Address] = {}
        self._handlers: dict[str, tuple[Capability, Handler]] = {}
        self._random = random.Random(f"{seed}/{name}/peer")
        self._nonces = NonceStore(capacity=100_000)
        self._bus: Bus | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._versions = 0
        self.refused = 0

    # What it offers

    def offer(self, capability: Capability, handler: Handler) -> Capability:
        """Offers a capability.

        Raises:
            BadInput: its name is offered already.
        """
        if capability.name in self._handlers:
            raise BadInput(f"{self.name} offers {capability.name} already")
        own = msgspec.structs.replace(capability, agent=self.name).signed(self.identity)
        self._handlers[own.name] = (own, handler)
        self.index.add(own)
        return own

    def capability(self, *, name: str = "", **fields: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Offers a function: a decorator. ``inputs`` and ``outputs`` are types by name, as in :class:`Capability`."""

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            async def handle(arguments: dict[str, Any]) -> Any:
                result = function(**arguments)
                return await result if isinstance(result, Awaitable) else result

            described = {"description": (function.__doc__ or "").strip(), **fields}
            self.offer(Capability(name=name or function.__name__, agent=self.name, **described), handle)
            return function

        return wrap

    async def attach(self, agent: Agent) -> list[Capability]:
        """Offers all of an agent's capabilities."""
        offered = []
        for one in await agent.offers():

            async def handle(arguments: dict[str, Any], name: str = one.name) -> Any:
                return await agent.call(name, arguments)

            offered.append(self.offer(one, handle))
        return offered

    def withdraw(self, name: str) -> None:
        """Offers a capability no longer."""
        own = self._handlers.pop(name, None)
        if own is not None:
            self.index.remove(own[0].id, self.identity)

    # Its life

    async def start(self) -> ModXPeer:
        """Listens, and tells the seeds."""
        self._bus = await self.mesh.listen()
        bare = _Address(self.name, self.mesh.address, int(self._now() * 1000))
        value = base64.b64encode(self.identity.sign(bare.body())).decode()
        self._addresses[self.name] = msgspec.structs.replace(bare, kid=self.identity.kid, sig=value)
        subscription = await self._bus.subscribe("modx.*", max_pending=4096)
        self._spawn(self._serve(subscription))
        self._spawn(self._beat())
        self._spawn(self._meet())
        return self

    async def stop(self, *, farewell: bool = True) -> None:
        """Says goodbye, and ends."""
        if farewell and self._bus is not None:
            with contextlib.suppress(HeliographError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._send_all(self.swim.leave())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.mesh.close()
        self._bus = None

    async def __aenter__(self) -> ModXPeer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def address_of(self, name: str) -> str:
        """Where another listens; "" if unknown."""
        known = self._addresses.get(name)
        return known.address if known else self._seeds.get(name, "")

    def _learn_addresses(self, items: Any) -> None:
        for item in items if isinstance(items, list) else ():
            try:
                one = msgspec.convert(item, _Address)
                known = self._addresses.get(one.name)
                if known is not None and known.version >= one.version:
                    continue
                if self.keys.verify(one.kid, one.body(), base64.b64decode(one.sig, validate=True)) == one.name:
                    self._addresses[one.name] = one
            except (msgspec.ValidationError, IdentityError, BadInput, ValueError):
                self.refused += 1

    async def _beat(self) -> None:
        while True:
            messages = self.swim.tick(self._now())
            self.index.set_away(self.swim.members("dead"))
            self._spawn(self._send_all(messages))
            await asyncio.sleep(self._tick_s)

    async def _send_all(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for to, message in messages:
            address = self.address_of(to)
            if address:
                with contextlib.suppress(HeliographError, OSError):
                    body = {"swim": message, "addresses": [self._addresses[self.name]]}
                    await self.mesh.send(address, self._signed("modx.swim", "control", body))

    async def _meet(self) -> None:
        while True:
            await self.meet()
            await asyncio.sleep(self._gossip_s)

    async def meet(self) -> bool:
        """Exchanges indexes with one other that is alive; False if none answers."""
        others = [name for name in self.swim.members("alive", "suspect") if self.address_of(name)]
        if not others:
            return False
        to = self._random.choice(others)
        try:
            answer = await self._ask(to, "modx.sync", self._digest_body(), timeout_s=self._gossip_s)
            self._learn_sync(answer)
            if isinstance(answer, Mapping) and answer.get("digest") != self.index.digest():
                body = {**self._digest_body(), "index": self.index.snapshot()}
                await self._ask(to, "modx.sync", body, timeout_s=self._gossip_s)
        except (HeliographError, OSError):
            return False
        return True

    def _digest_body(self) -> dict[str, Any]:
        addresses = [msgspec.to_builtins(one) for one in self._addresses.values()]
        return {"digest": self.index.digest(), "addresses": addresses}

    def _learn_sync(self, body: Any) -> None:
        if isinstance(body, Mapping):
            self._learn_addresses(body.get("addresses"))
            index = body.get("index")
            self.index.merge(index if isinstance(index, list) else ())

    # Messages

    def _signed(self, topic: str, kind: Kind, body: Any, parents: tuple[str, ...] = ()) -> Envelope:
        env = Envelope(topic=topic, kind=kind, sender=self.name, payload=msgspec.to_builtins(body), parents=parents)
        return self.identity.sign_envelope(env, now=self._now)

    def _verified(self, env: Envelope) -> Envelope:
        # The way back is chosen by the transport after signing.
        bare = env.replace(reply_to="")
        owner = verify_envelope(bare, self.keys, self._nonces, now=self._now)
        if owner != env.sender:
            raise IdentityError(f"{owner} signed a message of {env.sender}", "signature")
        return env

    async def _ask(self, to: str, topic: str, body: Any, *, timeout_s: float) -> Any:
        """Another's answer.

        Raises:
            CallFailed: none, or one that it did not sign.
        """
        address = self.address_of(to)
        if not address:
            raise CallFailed(f"no address of {to} is known", "unreachable")
        env = self._signed(topic, "request", {"to": to, "body": body})
        try:
            answer = await self.mesh.request(address, env, timeout_s=timeout_s)
        except (BusClosed, NoResponders, RequestTimeout, OSError) as error:
            raise CallFailed(f"{to} does not answer: {error}", "unreachable") from None
        try:
            good = self._verified(answer.replace(topic="modx.answer"))
        except IdentityError as error:
            raise CallFailed(f"the answer of {to} is refused: {error}", "refused") from None
        if good.sender != to or env.id not in good.parents:
            raise CallFailed(f"the answer is not {to}'s answer to this question", "refused")
        if good.kind == "error":
            said = good.payload if isinstance(good.payload, Mapping) else {}
            raise CallFailed(str(said.get("message", "failed")), str(said.get("kind", "failed")))
        return good.payload

    async def _serve(self, subscription: Any) -> None:
        room = asyncio.Semaphore(MAX_AT_WORK)
        async for env in subscription:
            await room.acquire()

            async def work(env: Envelope = env) -> None:
                try:
                    await self._take(env)
                finally:
                    room.release()

            self._spawn(work())

    async def _take(self, env: Envelope) -> None:
        try:
            self._verified(env)
        except (IdentityError, BadInput):
            self.refused += 1
            return
        if env.topic == "modx.swim":
            body = env.payload
            if isinstance(body, Mapping) and isinstance(body.get("swim"), Mapping):
                self._learn_addresses(body.get("addresses"))
                with contextlib.suppress(BadInput):
                    await self._send_all(self.swim.receive(dict(body["swim"]), self._now()))
            return
        kind: Kind = "reply"
        try:
            payload = env.payload
            if not isinstance(payload, Mapping) or payload.get("to") != self.name:
                raise CallFailed("a question names who is asked", "refused")
            answer = await self._answer(env, payload.get("body"))
            canonical_bytes(answer)
        except HeliographError as error:
            kind, answer = "error", {"message": str(error), "kind": getattr(error, "kind", "failed")}
        except Exception as error:  # an agent's own mistake must not end the peer
            kind, answer = "error", {"message": f"{type(error).__name__}: {error}", "kind": "failed"}
        if env.reply_to and self._bus is not None:
            reply = self._signed("modx.answer", kind, answer, parents=(env.id,))
            with contextlib.suppress(BusClosed):
                await self._bus.publish(reply.replace(topic=env.reply_to))

    async def _answer(self, env: Envelope, body: Any) -> Any:
        if env.topic == "modx.sync":
            self._learn_sync(body)
            mine = self._digest_body()
            same = isinstance(body, Mapping) and body.get("digest") == mine["digest"]
            return mine if same else {**mine, "index": self.index.snapshot()}
        if env.topic == "modx.call" and isinstance(body, Mapping):
            arguments = body.get("arguments")
            if not isinstance(body.get("name"), str) or not isinstance(arguments, Mapping):
                raise CallFailed("a call has a name, and arguments as an object", "refused")
            return await self.perform(env.sender, body["name"], dict(arguments), str(body.get("key", "")))
        raise CallFailed(f"{env.topic} is no question", "unknown")

    async def perform(self, caller: str, name: str, arguments: dict[str, Any], key: str = "") -> Any:
        """Does a call for another: policy, once for each of the caller's keys, ledger.

        Raises:
            CallFailed: not offered, not allowed, or it failed.
        """
        own = self._handlers.get(name)
        if own is None:
            raise CallFailed(f"{self.name} does not offer {name}", "unknown")
        capability, handler = own
        if self._allow is not None and not self._allow(caller, capability):
            raise CallFailed(f"{caller} may not call {capability.id}", "refused")
        unknown = sorted(set(arguments) - set(capability.inputs)) if capability.inputs and not capability.schema else []
        missing = sorted(set(capability.inputs) - set(arguments)) if not capability.schema else []
        if (unknown or missing) and not name.startswith("undo."):
            raise CallFailed(
                f"{capability.id} takes {', '.join(capability.inputs) or 'nothing'}; "
                f"missing: {missing}, unknown: {unknown}",
                "refused",
            )

        async def work() -> Any:
            result = await handler(arguments)
            if self.ledger is not None:
                self.ledger.append(
                    {
                        "caller": caller,
                        "capability": capability.id,
                        "arguments": canonical_hash(arguments),
                        "result": canonical_hash(result),
                    },
                    high_value=capability.effects != "read",
                )
            return result

        token = call_key.set(key)
        try:
            return await self.once.run(f"{caller}|{name}|{key}" if key else "", work)
        finally:
            call_key.reset(token)

    # What its users ask

    def discover(self, query: str, **options: Any) -> list[Hit]:
        """Searches this peer's own index; as :meth:`CapabilityIndex.search`."""
        return self.index.search(query, now=self._now(), **options)

    async def call(
        self, capability: Capability | str, arguments: Mapping[str, Any], *, key: str = "", timeout_s: float = 10.0
    ) -> Any:
        """Calls a capability, wherever it is.

        Args:
            capability: or its id, "agent/name".
            arguments: by name.
            key: the same for repetitions of one call, which is then done once.
            timeout_s: for the answer.

        Raises:
            CallFailed: with the reason.
        """
        agent, _, name = (capability if isinstance(capability, str) else capability.id).partition("/")
        if agent == self.name:
            return await self.perform(self.name, name, dict(arguments), key)
        body = {"name": name, "arguments": dict(arguments), "key": key}
        try:
            result = await self._ask(agent, "modx.call", body, timeout_s=timeout_s)
        except CallFailed:
            self.index.trust.observe(agent, False, self._now())
            raise
        self.index.trust.observe(agent, True, self._now())
        return result

    def engine(self, **options: Any) -> WorkflowEngine:
        """A workflow engine over all that this peer knows; options as :class:`WorkflowEngine`."""
        timeout_s = float(options.get("step_timeout_s", 10.0))

        async def call(capability: Capability, arguments: dict[str, Any], key: str) -> Any:
            return await self.call(capability, arguments, key=key, timeout_s=timeout_s)

        return WorkflowEngine(self.index.all, call, **{"step_timeout_s": timeout_s, **options})

    async def achieve(self, goal: str, values: Mapping[str, Any], *, run: str, **options: Any) -> Outcome:
        """Plans and does; as :meth:`WorkflowEngine.achieve`."""
        return await self.engine().achieve(goal, values, run=run, **options)


class CentralHub:
    """The baseline: one peer that knows all capabilities and passes every call on.

    Args:
        peer: that becomes the hub; it offers ``hub.search`` and ``hub.relay``.
        tries: providers asked for one call.
        timeout_s: for each.
    """

    def __init__(self, peer: ModXPeer, *, tries: int = 3, timeout_s: float = 0.5) -> None:
        if tries < 1 or not timeout_s > 0:
            raise BadInput(f"a hub tries once or more, for more than 0 s; got {tries}, {timeout_s}")
        self.peer, self.tries, self.timeout_s = peer, tries, timeout_s
        schema = {"type": "object"}
        peer.offer(Capability(name="hub.search", agent=peer.name, schema=schema), self._search)
        peer.offer(Capability(name="hub.relay", agent=peer.name, schema=schema), self._relay)

    async def _search(self, arguments: dict[str, Any]) -> Any:
        hits = self.peer.discover(str(arguments.get("query", "")), top=int(arguments.get("top", 5)))
        return [hit.capability.id for hit in hits]

    async def _relay(self, arguments: dict[str, Any]) -> Any:
        given = arguments.get("arguments", {})
        if not isinstance(given, Mapping):
            raise CallFailed("hub.relay takes name and arguments", "refused")
        return await call_any(self.peer, str(arguments.get("name", "")), given, self.tries, self.timeout_s)


async def call_any(peer: ModXPeer, name: str, arguments: Mapping[str, Any], tries: int, timeout_s: float) -> Any:
    """Calls the first provider of a name that answers, those of best trust first.

    Raises:
        CallFailed: none does.
    """
    offers = [one for one in peer.index.all() if one.name == name]
    offers.sort(key=lambda one: (-peer.index.trust.mean(one.agent, peer._now()), one.id))
    last = CallFailed(f"nobody offers {name}", "unknown")
    for one in offers[:tries]:
        try:
            return await peer.call(one, arguments, timeout_s=timeout_s)
        except CallFailed as error:
            last = error
            if error.kind != "unreachable":
                break
    raise last
