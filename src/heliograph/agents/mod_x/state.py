"""The state of a conversation among peers without a master, and exclusive keys under leases with fencing tokens.

A conversation is a set of events; its view is a function of the set. Peers that have the same events therefore see the
same, in whatever order and however often these came. Times are hybrid logical clocks, so that a wrong wall clock
cannot put an effect before its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.errors import BadInput, HeliographError

__all__ = ["ConversationState", "Event", "HybridClock", "Lease", "LeaseGroup", "LeaseLost"]

MAX_AHEAD_MS = 60_000
"""A peer's clock further ahead than this is not believed."""


class HybridClock:
    """Times that follow the wall clock and never contradict what was received.

    Args:
        wall_ms: milliseconds on the wall.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._last = (0, 0)

    def tick(self) -> tuple[int, int]:
        """A time after all before: milliseconds and a counter."""
        wall, (last, count) = self._wall_ms(), self._last
        self._last = (wall, 0) if wall > last else (last, count + 1)
        return self._last

    def receive(self, time: tuple[int, int]) -> None:
        """Learns of another's time.

        Raises:
            BadInput: it lies a minute or more ahead of our clock.
        """
        if time[0] > self._wall_ms() + MAX_AHEAD_MS:
            raise BadInput(f"an event is {time[0] - self._wall_ms()} ms ahead of our clock; check both clocks")
        self._last = max(self._last, (int(time[0]), int(time[1])))


class Event(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One change.

    Attributes:
        time: hybrid clock.
        node: that made it.
        kind: "set" a register, "add" to or "discard" from a set, "count" up or down.
        key: changed.
        value: new value, item, or difference.
        seen: of "discard": ids of the additions that it takes back.
    """

    time: tuple[int, int]
    node: str
    kind: Literal["set", "add", "discard", "count"]
    key: str
    value: Any
    seen: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique: a node never uses a time twice."""
        return f"{self.time[0]}.{self.time[1]}@{self.node}"


class ConversationState:
    """What one peer knows of a conversation.

    Args:
        conv: conversation.
        node: this peer.
        wall_ms: milliseconds on the wall.
    """

    def __init__(self, conv: str, node: str, wall_ms: Callable[[], int]) -> None:
        if not conv or not node or "@" in node:
            raise BadInput(f"a conversation and a node have names, the latter without @; got {conv!r} and {node!r}")
        self.conv, self.node = conv, node
        self._clock = HybridClock(wall_ms)
        self._events: dict[str, Event] = {}

    def _make(
        self, kind: Literal["set", "add", "discard", "count"], key: str, value: Any, seen: Iterable[str] = ()
    ) -> Event:
        canonical_bytes(value)
        event = Event(
            time=self._clock.tick(), node=self.node, kind=kind, key=key, value=value, seen=tuple(sorted(seen))
        )
        self._events[event.id] = event
        return event

    def set(self, key: str, value: Any) -> Event:
        """Writes a register; the last writer by time, then by name, wins."""
        return self._make("set", key, value)

    def add(self, key: str, item: Any) -> Event:
        """Adds an item to a set."""
        return self._make("add", key, item)

    def discard(self, key: str, item: Any) -> Event:
        """Takes an item out; additions that this peer has not seen stay."""
        wanted = canonical_bytes(item)
        seen = [
            one.id
            for one in self._events.values()
            if one.kind == "add" and one.key == key and canonical_bytes(one.value) == wanted
        ]
        return self._make("discard", key, item, seen)

    def count(self, key: str, by: int = 1) -> Event:
        """Counts up, or down."""
        if isinstance(by, bool) or not isinstance(by, int):
            raise BadInput(f"a counter moves by an integer; got {by!r}")
        return self._make("count", key, by)

    def events(self) -> list[Event]:
        """All that are known, by time and node."""
        return sorted(self._events.values(), key=lambda one: (one.time, one.node))

    def merge(self, events: Iterable[Event]) -> int:
        """Learns events in any order, any number of times; returns how many were new.

        Raises:
            BadInput: one is from the future, or contradicts another of the same id; nothing is learned then.
        """
        new: dict[str, Event] = {}
        for event in events:
            known = self._events.get(event.id) or new.get(event.id)
            if known is not None and canonical_bytes(msgspec.to_builtins(known)) != canonical_bytes(
                msgspec.to_builtins(event)
            ):
                raise BadInput(f"two different events are called {event.id}; its node is faulty")
            if event.id not in self._events:
                self._clock.receive(event.time)
                new[event.id] = event
        self._events.update(new)
        return len(new)

    def view(self, grants: Iterable[str] | None = None) -> dict[str, Any]:
        """Registers, sets (sorted lists) and counters by key.

        Args:
            grants: keys, or prefixes that end with ``.``, that the reader may see; None for all.
        """
        allowed = None if grants is None else tuple(grants)
        view: dict[str, Any] = {}
        gone = {one for event in self._events.values() if event.kind == "discard" for one in event.seen}
        members: dict[str, dict[bytes, Any]] = {}
        for event in self.events():
            if allowed is not None and not any(
                event.key == one or (one.endswith(".") and event.key.startswith(one)) for one in allowed
            ):
                continue
            if event.kind == "set":
                view[event.key] = event.value
            elif event.kind == "count":
                before = view.get(event.key, 0)
                view[event.key] = (before if isinstance(before, int) else 0) + event.value
            elif event.kind == "add" and event.id not in gone:
                members.setdefault(event.key, {})[canonical_bytes(event.value)] = event.value
        for key, items in members.items():
            view[key] = [items[spelled] for spelled in sorted(items)]
        return view


class LeaseLost(HeliographError):
    """No majority grants or accepts: another holds the lease, it has run out, or too few members answer."""

    exit_code = 1


class Lease(msgspec.Struct, frozen=True):
    """The right to write a key for a while.

    Attributes:
        key, holder: what, and who.
        token: higher than any before; the key's store refuses lower ones.
        until: seconds, on the members' clock.
    """

    key: str
    holder: str
    token: int
    until: float


class _Member:
    def __init__(self) -> None:
        self.up = True
        self.leases: dict[str, Lease] = {}
        self.written: dict[str, tuple[int, Any]] = {}


class LeaseGroup:
    """Members of whom a majority decides who holds a key. They live in one process; links between them are not lossy.

    Args:
        members: 3 or 5, in general an odd number.
        now: seconds.
    """

    def __init__(self, members: int, now: Callable[[], float]) -> None:
        if members < 1 or members % 2 == 0:
            raise BadInput(f"a lease group has an odd number of members; got {members}")
        self.members = [_Member() for _ in range(members)]
        self._now = now

    def _majority(self) -> list[_Member]:
        alive = [member for member in self.members if member.up]
        if len(alive) <= len(self.members) // 2:
            raise LeaseLost(f"{len(alive)} of {len(self.members)} members answer; more than half are needed")
        return alive

    def acquire(self, key: str, holder: str, seconds: float) -> Lease:
        """Takes a key that is free, ran out, or is held already by the same.

        Raises:
            LeaseLost: another holds it, or no majority answers.
        """
        if not seconds > 0:
            raise BadInput(f"a lease lasts more than 0 s; got {seconds}")
        alive, now = self._majority(), self._now()
        known = [member.leases[key] for member in alive if key in member.leases]
        latest = max(known, key=lambda lease: lease.token, default=None)
        if latest is not None and latest.holder != holder and latest.until > now:
            raise LeaseLost(f"{key} is held by {latest.holder} for another {latest.until - now:.1f} s")
        lease = Lease(key, holder, (latest.token if latest else 0) + 1, now + seconds)
        for member in alive:
            member.leases[key] = lease
        return lease

    def write(self, lease: Lease, value: Any) -> None:
        """Writes the key.

        Raises:
            LeaseLost: the lease ran out, or a later one was given.
        """
        alive = self._majority()
        newest = max((member.leases[lease.key].token for member in alive if lease.key in member.leases), default=0)
        if lease.token < newest:
            raise LeaseLost(f"the token {lease.token} for {lease.key} is old; {newest} was given since")
        if lease.until <= self._now() or newest == 0:
            raise LeaseLost(f"the lease of {lease.holder} on {lease.key} has run out")
        for member in alive:
            member.written[lease.key] = (lease.token, value)

    def read(self, key: str) -> Any:
        """The value of the highest token among a majority; None if never written."""
        found = [member.written[key] for member in self._majority() if key in member.written]
        return max(found, key=lambda pair: pair[0])[1] if found else None
