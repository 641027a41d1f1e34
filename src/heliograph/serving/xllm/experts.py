"""Copies of hot experts and where they go, from measured loads (xllm's dynamic expert load balancing).

Plain functions over loads: moving weights between devices is the engine's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from heliograph.errors import BadInput

__all__ = ["ExpertPlacement", "ReplanRule", "place_replicas", "replicate"]


@dataclass(frozen=True)
class ExpertPlacement:
    """Experts of each device.

    Attributes:
        devices: numbers of the experts on each.
        copies: of each expert.
    """

    devices: tuple[tuple[int, ...], ...]
    copies: tuple[int, ...]

    def imbalance(self, loads: Sequence[float]) -> float:
        """Largest over mean load of a device; copies of an expert share its load evenly. 1 is even."""
        on = [sum(loads[e] / self.copies[e] for e in held) for held in self.devices]
        mean = sum(on) / len(on)
        return max(on) / mean if mean > 0 else 1.0


def replicate(loads: Sequence[float], extra: int, most_copies: int) -> tuple[int, ...]:
    """Copies of each expert: ``extra`` times, the one whose copies have most load each gets one more.

    An expert's weight w after r copies becomes w r / (r + 1), starting with r = 1.

    Args:
        loads: of the experts.
        extra: copies beyond one each.
        most_copies: of one expert: there are no more devices.

    Raises:
        BadInput: negative loads, or more copies than fit.
    """
    if not loads or any(not (load >= 0 and math.isfinite(load)) for load in loads):
        raise BadInput("loads of experts are numbers of 0 or more")
    if extra < 0 or extra > len(loads) * (most_copies - 1):
        raise BadInput(f"{extra} extra copies of {len(loads)} experts do not fit on {most_copies} devices")
    weight, copies = list(map(float, loads)), [1] * len(loads)
    for _ in range(extra):
        hottest = max((e for e in range(len(loads)) if copies[e] < most_copies), key=lambda e: (weight[e], -e))
        weight[hottest] *= copies[hottest] / (copies[hottest] + 1)
        copies[hottest] += 1
    return tuple(copies)


def place_replicas(loads: Sequence[float], devices: int, slots: int) -> ExpertPlacement:
    """Every expert on at least one device, no two copies on the same one, devices as even as this rule makes them.

    Copies of replicated experts first, then the others, each in descending weight to the least loaded device that has a
    free slot and no copy yet. Where a copy finds no such device, it changes places with an expert of a device
    that has one to give; the published code does not look for two copies on one device at all.

    Args:
        loads: of the experts.
        devices: number of them.
        slots: experts a device holds.

    Raises:
        BadInput: fewer slots than experts, or more slots a device than experts.
    """
    extra = devices * slots - len(loads)
    if devices < 1 or extra < 0 or slots > len(loads):
        raise BadInput(
            f"{devices} devices of {slots} slots cannot hold {len(loads)} experts, each at most once a device"
        )
    copies = replicate(loads, extra, devices)
    share = [load / count for load, count in zip(loads, copies, strict=True)]
    held: list[list[int]] = [[] for _ in range(devices)]
    on = [0.0] * devices
    order = sorted(range(len(loads)), key=lambda e: (copies[e] == 1, -share[e], e))
    for expert in order:
        for _ in range(copies[expert]):
            free = [d for d in range(devices) if len(held[d]) < slots and expert not in held[d]]
            if free:
                device = min(free, key=lambda d: (on[d], d))
            else:
                device = _make_room(expert, held, on, share, slots)
            held[device].append(expert)
            on[device] += share[expert]
    return ExpertPlacement(tuple(tuple(sorted(h)) for h in held), copies)


def _make_room(expert: int, held: list[list[int]], on: list[float], share: Sequence[float], slots: int) -> int:
    """A device without this expert, of which one has been moved to a device with a free slot."""
    for full in sorted(range(len(held)), key=lambda d: on[d]):
        if expert in held[full]:
            continue
        for other in range(len(held)):
            if len(held[other]) >= slots:
                continue
            moved = next((e for e in sorted(held[full], key=lambda e: share[e]) if e not in held[other]), None)
            if moved is not None:
                held[full].remove(moved)
                on[full] -= share[moved]
                held[other].append(moved)
                on[other] += share[moved]
                return full
    raise AssertionError("a free slot always has an expert to take")  # slots are as many as copies


@dataclass
class ReplanRule:
    """Whether a layer's placement is made anew: only when its loads have turned since the last time.

    Attributes:
        threshold: of the cosine between the loads now and then, each divided by its maximum; 1 replans always.
    """

    threshold: float = 0.9
    _last: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def due(self, layer: int, loads: Sequence[float]) -> bool:
        """Whether to replan; if so, these loads are the ones to compare with from now on."""
        top = max(loads, default=0.0)
        now = tuple(load / top for load in loads) if top > 0 else tuple(loads)
        last = self._last.get(layer)
        if last is not None and self.threshold < 1 and _cosine(last, now) >= self.threshold:
            return False
        self._last[layer] = now
        return True


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    norm = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 1.0
