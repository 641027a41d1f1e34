"""Who is alive? SWIM: each member probes one other at a time, asks k to try too, then suspects, then declares dead.

:class:`Swim` is a state machine without time or sockets of its own: ``tick`` and ``receive`` take the time and return
messages to send. The same object runs on a real bus and, in :class:`SimulatedSwarm`, on virtual time with seeded loss,
kills and partitions. Suspicion is refuted by raising one's incarnation. Constants: probe each 1 s, answer within
0.4 s, indirect through 3, suspect for 3 s.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.sim import Sim

__all__ = ["SimulatedSwarm", "Swim", "SwimConfig"]

Status = Literal["alive", "suspect", "dead"]
_ORDER = {"alive": 0, "suspect": 1, "dead": 2}


@dataclass(frozen=True)
class SwimConfig:
    """Constants, in seconds.

    Attributes:
        probe_s: between two probes.
        answer_s: for a direct answer; the rest of ``probe_s`` is for indirect ones.
        suspect_s: from suspicion to death.
        indirect: members asked to probe too.
        rumours: changes that ride on one message.
        retell: times that each change is told, times log2 of the members.
    """

    probe_s: float = 1.0
    answer_s: float = 0.4
    suspect_s: float = 3.0
    indirect: int = 3
    rumours: int = 8
    retell: int = 3

    def __post_init__(self) -> None:
        """Refuses times that make no sense."""
        if not 0 < self.answer_s < self.probe_s or not self.suspect_s > 0 or min(self.indirect, self.retell) < 0:
            raise BadInput("SWIM needs 0 < answer_s < probe_s and suspect_s > 0")


@dataclass
class _Known:
    status: Status
    incarnation: int
    since: float


Message = dict[str, Any]


class Swim:
    """One member.

    Args:
        name: its own.
        seeds: others that it knows from the start.
        seed: of its random choices.
        config: constants.
    """

    def __init__(
        self, name: str, seeds: Sequence[str] = (), *, seed: int = 0, config: SwimConfig | None = None
    ) -> None:
        self.name, self.config = name, config or SwimConfig()
        self.incarnation = 0
        self._random = random.Random(f"{seed}/{name}")
        self._known: dict[str, _Known] = {other: _Known("alive", 0, 0.0) for other in seeds if other != name}
        self._round: list[str] = []
        self._probe: tuple[str, int, float, bool] | None = None
        self._next_probe = 0.0
        self._number = 0
        self._relayed: dict[tuple[str, int], tuple[str, int]] = {}
        self._rumours: dict[str, int] = {}
        self._tell(name)

    def members(self, *statuses: Status) -> list[str]:
        """Others of the given status, "alive" if none is given, by name."""
        wanted = statuses or ("alive",)
        return sorted(name for name, known in self._known.items() if known.status in wanted)

    def status(self, name: str) -> Status | None:
        """What is thought of another; None if it was never heard of."""
        known = self._known.get(name)
        return known.status if known else None

    def _tell(self, name: str) -> None:
        self._rumours[name] = self.config.retell * max(1, (len(self._known) + 1).bit_length())

    def _gossip(self) -> list[list[Any]]:
        chosen = sorted(self._rumours, key=lambda name: (-self._rumours[name], name))[: self.config.rumours]
        told = []
        for name in chosen:
            self._rumours[name] -= 1
            if self._rumours[name] <= 0:
                del self._rumours[name]
            if name == self.name:
                told.append([name, "alive", self.incarnation])
            else:
                known = self._known[name]
                told.append([name, known.status, known.incarnation])
        return told

    def _message(self, to: str, kind: str, number: int, **more: Any) -> tuple[str, Message]:
        mine = [self.name, "alive", self.incarnation]
        return to, {"kind": kind, "from": self.name, "number": number, "gossip": [mine, *self._gossip()], **more}

    def tick(self, now: float) -> list[tuple[str, Message]]:
        """What is due: (receiver, message) pairs. Call it several times a second."""
        out: list[tuple[str, Message]] = []
        for name, known in list(self._known.items()):
            if known.status == "suspect" and now - known.since >= self.config.suspect_s:
                self._learn(name, "dead", known.incarnation, now)
        if self._probe is not None:
            target, number, started, asked = self._probe
            if not asked and now - started >= self.config.answer_s:
                others = [name for name in self.members() if name != target]
                for helper in self._random.sample(others, min(self.config.indirect, len(others))):
                    out.append(self._message(helper, "ping_req", number, target=target))
                self._probe = (target, number, started, True)
            if now - started >= self.config.probe_s:
                self._probe = None
                known_target = self._known.get(target)
                if known_target is not None and known_target.status == "alive":
                    self._learn(target, "suspect", known_target.incarnation, now)
        if self._probe is None and now >= self._next_probe:
            out += self._start_probe(now)
        return out

    def _start_probe(self, now: float) -> list[tuple[str, Message]]:
        self._next_probe = now + self.config.probe_s
        out: list[tuple[str, Message]] = []
        # A dead member is tried now and then, or the two sides of a healed partition would never meet again.
        dead = self.members("dead")
        if dead and self._random.random() < 0.3:
            out.append(self._message(self._random.choice(dead), "ping", 0))
        live = set(self.members("alive", "suspect"))
        self._round = [name for name in self._round if name in live]
        if not self._round:
            self._round = sorted(live)
            self._random.shuffle(self._round)
        if self._round:
            self._number += 1
            target = self._round.pop()
            self._probe = (target, self._number, now, False)
            out.append(self._message(target, "ping", self._number))
        return out

    def receive(self, message: Message, now: float) -> list[tuple[str, Message]]:
        """Takes a message; returns what is to be sent.

        Raises:
            BadInput: not a message of SWIM.
        """
        try:
            kind, sender, number = message["kind"], message["from"], int(message["number"])
            gossip = [(str(name), status, int(incarnation)) for name, status, incarnation in message["gossip"]]
            good = kind in ("ping", "ack", "ping_req", "bye") and isinstance(sender, str)
            if not good or any(status not in _ORDER for _, status, _ in gossip):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise BadInput("not a membership message: it needs kind, from, number and gossip") from None
        for name, status, incarnation in gossip:
            self._learn(name, status, incarnation, now)
        if kind == "ping":
            return [self._message(sender, "ack", number, subject=self.name, about=self._about(sender))]
        if kind == "ping_req":
            self._number += 1
            target = str(message.get("target", ""))
            if len(self._relayed) > 1000:
                self._relayed.clear()
            self._relayed[(target, self._number)] = (sender, number)
            return [self._message(target, "ping", self._number)] if target in self._known else []
        if kind == "ack":
            return self._acknowledged(message, sender, number, now)
        return []

    def _about(self, name: str) -> list[Any] | None:
        known = self._known.get(name)
        return [known.status, known.incarnation] if known and known.status != "alive" else None

    def _acknowledged(self, message: Message, sender: str, number: int, now: float) -> list[tuple[str, Message]]:
        about = message.get("about")
        if isinstance(about, list) and len(about) == 2 and about[0] in _ORDER and isinstance(about[1], int):
            self._learn(self.name, about[0], about[1], now)
        subject = str(message.get("subject", sender))
        if self._probe is not None and self._probe[0] == subject and self._probe[1] == number:
            self._probe = None
        asker = self._relayed.pop((sender, number), None)
        if asker is not None:
            return [self._message(asker[0], "ack", asker[1], subject=sender)]
        return []

    def _learn(self, name: str, status: Status, incarnation: int, now: float) -> None:
        if name == self.name:
            if status != "alive" and incarnation >= self.incarnation:
                self.incarnation = incarnation + 1
                self._tell(self.name)
            return
        known = self._known.get(name)
        newer = known is None or (incarnation, _ORDER[status]) > (known.incarnation, _ORDER[known.status])
        if newer:
            self._known[name] = _Known(status, incarnation, now)
            self._tell(name)

    def leave(self) -> list[tuple[str, Message]]:
        """Farewell to all: they need not wait for a suspicion."""
        out = []
        for other in self.members():
            gossip = [[self.name, "dead", self.incarnation]]
            out.append((other, {"kind": "bye", "from": self.name, "number": 0, "gossip": gossip}))
        return out


class SimulatedSwarm:
    """Members on virtual time over links that lose and delay; the same for the same seed.

    Args:
        count: members, named p00, p01, ...; each knows the first one, and the first one all that greet it.
        seed: of everything.
        loss: share of messages lost.
        delay_s: longest delay of a message.
        config: of the members.
    """

    def __init__(
        self, count: int, *, seed: int = 0, loss: float = 0.0, delay_s: float = 0.02, config: SwimConfig | None = None
    ) -> None:
        if count < 1 or not 0 <= loss < 1 or not delay_s >= 0:
            raise BadInput(
                f"a swarm has members, a loss in 0..1 and a delay of 0 or more; got {count}, {loss}, {delay_s}"
            )
        self.sim = Sim()
        self.loss, self.delay_s = loss, delay_s
        self._random = random.Random(seed)
        self.names = [f"p{number:02d}" for number in range(count)]
        self.members = {name: Swim(name, self.names[:1], seed=seed, config=config) for name in self.names}
        self.down: set[str] = set()
        self._side: dict[str, int] = {}
        self.log: list[tuple[float, str, str, str]] = []
        self.sent = 0
        for place, name in enumerate(self.names):
            self.sim.at(0.1 * place / count, partial(self._beat, name))

    def _beat(self, name: str) -> None:
        if name not in self.down:
            self._send(name, self.members[name].tick(self.sim.now))
        self.sim.at(self.sim.now + 0.1, lambda: self._beat(name))

    def _send(self, sender: str, messages: list[tuple[str, Message]]) -> None:
        for to, message in messages:
            self.sent += 1
            lost = self._random.random() < self.loss
            delay = self._random.random() * self.delay_s
            if not lost and self._side.get(sender, 0) == self._side.get(to, 0) and to in self.members:
                self.sim.at(self.sim.now + delay, partial(self._arrive, to, message))

    def _arrive(self, to: str, message: Message) -> None:
        self.log.append((self.sim.now, str(message["from"]), to, str(message["kind"])))
        if to not in self.down:
            self._send(to, self.members[to].receive(message, self.sim.now))

    def run(self, seconds: float) -> None:
        """Lets virtual seconds pass."""
        self.sim.run(until=self.sim.now + seconds)

    def kill(self, name: str) -> None:
        """From now on it neither hears nor speaks."""
        self.down.add(name)

    def revive(self, name: str) -> None:
        """It goes on with what it knew."""
        self.down.discard(name)

    def split(self, side: Sequence[str]) -> None:
        """Cuts these off from the others."""
        self._side = dict.fromkeys(side, 1)

    def heal(self) -> None:
        """All links work again."""
        self._side = {}

    def agree_on(self) -> set[str] | None:
        """The members that all who are up think alive, themselves included; None if they differ."""
        views = [{name, *self.members[name].members()} for name in self.names if name not in self.down]
        return views[0] if views and all(view == views[0] for view in views) else None
