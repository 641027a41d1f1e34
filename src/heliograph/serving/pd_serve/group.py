"""A group: the prefill and decode instances of one scenario, their links, and how the group comes into service.

Links exist inside a group only; a gateway uses a group only once every step of its set-up has been taken
(arXiv:2408.08147, group set-up and recovery).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.pd_serve.transfer import ContiguousKV, KVShape, check_link

__all__ = ["GroupMembers", "GroupState", "PDGroup", "WrongState"]

PDRole = Literal["prefill", "decode"]


class WrongState(HeliographError):
    """A step of the set-up was taken out of order."""


class GroupState(Enum):
    """Steps of the set-up, in order."""

    REQUESTED = "requested"
    CONTAINERS_UP = "containers up"
    MODEL_LOADED = "model loaded"
    ADDRESSES_COLLECTED = "addresses collected"
    LINKED = "linked"
    HEALTHY = "healthy"
    SERVING = "serving"


ORDER = tuple(GroupState)


@dataclass(frozen=True)
class PDGroup:
    """What a scenario is served by.

    Attributes:
        scenario: its label.
        prefill, decode: instances of each role.
        transfer: how caches travel.
    """

    scenario: str
    prefill: int = 1
    decode: int = 1
    transfer: ContiguousKV = ContiguousKV()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        """Refuses a group that could not serve."""
        if not self.scenario or min(self.prefill, self.decode) < 1:
            raise BadInput(f"a group has a name and at least one instance of each role; got {self}")

    def instance_names(self, role: PDRole) -> tuple[str, ...]:
        """Of the instances that it starts with."""
        return tuple(f"{self.scenario}-{role}-{n}" for n in range(self.prefill if role == "prefill" else self.decode))


@dataclass
class GroupMembers:
    """A group in service: who is in it now.

    Attributes:
        group: as it was asked for.
        state: of the set-up.
        shapes: of each member's cache.
        roles: of each member.
        links: pairs (prefill, decode) that may exchange caches.
        history: states and changes, for operators.
    """

    group: PDGroup
    state: GroupState = GroupState.REQUESTED
    shapes: dict[str, KVShape] = field(default_factory=dict)
    roles: dict[str, PDRole] = field(default_factory=dict)
    links: set[tuple[str, str]] = field(default_factory=set)
    history: list[str] = field(default_factory=list)

    def advance(self, state: GroupState) -> None:
        """Takes the next step of the set-up.

        Raises:
            WrongState: it is not the next one.
        """
        if ORDER.index(state) != ORDER.index(self.state) + 1:
            raise WrongState(f"group {self.group.scenario} is {self.state.value}; it cannot become {state.value} now")
        self.state = state
        self.history.append(state.value)

    def link(self, roles: Mapping[str, PDRole], shapes: Mapping[str, KVShape]) -> None:
        """Connects members with all their peers of the other role; before they are announced, nobody uses them.

        Raises:
            LinkRefused: caches of two members do not fit; nobody has been added then.
        """
        all_roles, all_shapes = {**self.roles, **roles}, {**self.shapes, **shapes}
        links = set()
        for sender in (name for name, role in all_roles.items() if role == "prefill"):
            for receiver in (name for name, role in all_roles.items() if role == "decode"):
                check_link(all_shapes[sender], all_shapes[receiver])
                links.add((sender, receiver))
        self.roles, self.shapes, self.links = all_roles, all_shapes, links
        self.history.append(f"linked {', '.join(sorted(roles))}")

    def remove(self, name: str) -> None:
        """Takes a faulty member out at once; the rest keeps serving."""
        if self.roles.pop(name, None) is not None:
            self.shapes.pop(name)
            self.links = {pair for pair in self.links if name not in pair}
            self.history.append(f"removed {name}")

    def change_role(self, name: str, role: PDRole) -> bool:
        """Gives a member the other role; False, and nothing done, where it is the last of its own."""
        own = self.roles.get(name)
        if own is None or own == role:
            return own == role
        if sum(r == own for r in self.roles.values()) <= 1:
            return False
        roles = {**self.roles, name: role}
        self.roles, self.links = {}, set()
        self.link(roles, self.shapes)
        return True

    def members(self, role: PDRole, ready: Iterable[str]) -> list[str]:
        """Names of a role among those that are ready."""
        alive = set(ready)
        return [name for name, own in self.roles.items() if own == role and name in alive]
