"""Which instance has which part of which text: an index fed by heartbeats, and placement by it (xllm-service).

A block's name is chained with the block before it (:func:`heliograph.serving.core.blocks.chain_hashes`), so a name
stands for the whole text up to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import chain_hashes
from heliograph.serving.core.cluster import InstanceView, Placement, RoutingRequest, candidates

__all__ = ["CacheAwareRouter", "GlobalKVIndex", "Heartbeat", "Tier", "cache_aware_score"]


class Tier(IntEnum):
    """Where an instance has a block: a smaller number is faster."""

    DEVICE = 0
    HOST = 1
    DISK = 2


@dataclass(frozen=True)
class Heartbeat:
    """What changed on an instance since its last one.

    Attributes:
        instance: its name.
        incarnation: of the process; a message of an older one is ignored.
        stored: names that are on the device now.
        offloaded: names that moved one tier down.
        removed: names that are gone from everywhere.
    """

    instance: str
    incarnation: int = 0
    stored: tuple[bytes, ...] = ()
    offloaded: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


class GlobalKVIndex:
    """Holders of every named block, by tier."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[str, Tier]] = {}
        self._by_instance: dict[str, set[bytes]] = {}
        self._incarnation: dict[str, int] = {}

    def __len__(self) -> int:
        """Names with at least one holder."""
        return len(self._holders)

    def apply(self, beat: Heartbeat) -> bool:
        """Books a heartbeat; False, and nothing booked, where it is of an incarnation that has been replaced."""
        known = self._incarnation.get(beat.instance)
        if known is not None and beat.incarnation < known:
            return False
        if known is not None and beat.incarnation > known:
            self.forget(beat.instance)
        self._incarnation[beat.instance] = beat.incarnation
        names = self._by_instance.setdefault(beat.instance, set())
        for name in beat.removed:
            self._drop(beat.instance, name)
        for name in beat.offloaded:
            tier = self._holders.get(name, {}).get(beat.instance)
            if tier is Tier.DISK:
                self._drop(beat.instance, name)
            elif tier is not None:
                self._holders[name][beat.instance] = Tier(tier + 1)
        for name in beat.stored:
            self._holders.setdefault(name, {})[beat.instance] = Tier.DEVICE
            names.add(name)
        return True

    def forget(self, instance: str) -> None:
        """Takes an instance out, as when it is lost."""
        for name in list(self._by_instance.get(instance, ())):
            self._drop(instance, name)
        self._by_instance.pop(instance, None)

    def holders(self, name: bytes) -> dict[str, Tier]:
        """Of a block."""
        return dict(self._holders.get(name, {}))

    def match(self, names: Sequence[bytes], slowest: Tier = Tier.DISK) -> dict[str, int]:
        """Blocks of a text's beginning that each instance has without a gap, in tiers up to ``slowest``."""
        found: dict[str, int] = {}
        alive: set[str] | None = None
        for number, name in enumerate(names, 1):
            here = {instance for instance, tier in self._holders.get(name, {}).items() if tier <= slowest}
            alive = here if alive is None else alive & here
            if not alive:
                break
            for instance in alive:
                found[instance] = number
        return found

    def check(self) -> None:
        """Compares both directions of the index.

        Raises:
            BadInput: they differ, which is a fault of ours.
        """
        forward = {(name, instance) for name, held in self._holders.items() for instance in held}
        backward = {(name, instance) for instance, names in self._by_instance.items() for name in names}
        if forward != backward or not all(self._holders.values()):
            raise BadInput(f"the index's two directions differ in {len(forward ^ backward)} entries")

    def _drop(self, instance: str, name: bytes) -> None:
        held = self._holders.get(name)
        if held is not None and held.pop(instance, None) is not None and not held:
            del self._holders[name]
        self._by_instance.get(instance, set()).discard(name)


def cache_aware_score(
    matched_blocks: int, max_blocks: int, kv_usage: float, waiting: int, max_waiting: int, *, weight: float = 1.0
) -> float:
    """What is found of the text, less memory in use and requests waiting; each a share of 1.

    The published code divides whole numbers here, so that the first and last term are 0 or 1; these are real shares.

    Args:
        matched_blocks, max_blocks: of the prompt, at this instance and at the instance with most.
        kv_usage: share of the cache's blocks that are held.
        waiting, max_waiting: requests, here and at the instance with most.
        weight: of what is found.
    """
    matched = matched_blocks / max_blocks if max_blocks else 0.0
    return weight * matched - kv_usage - (waiting / max_waiting if max_waiting else 0.0)


class CacheAwareRouter:
    """Places a prompt where :func:`cache_aware_score` is highest; the answer stays there if that instance decodes.

    Args:
        index: of blocks.
        block_size: tokens of a block in the index.
        salt: of the names; see :func:`chain_hashes`.
        names_of: names of a prompt's blocks, where they are known already; None computes them.
    """

    def __init__(
        self,
        index: GlobalKVIndex,
        block_size: int = 128,
        salt: str = "",
        names_of: Callable[[RoutingRequest], Sequence[bytes]] | None = None,
    ) -> None:
        if block_size < 1:
            raise BadInput(f"a block holds at least one token; got block_size={block_size}")
        self.index, self.block_size, self.salt = index, block_size, salt
        self._names_of = names_of or (lambda r: chain_hashes(r.prompt, self.block_size, self.salt))

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """The best place.

        Raises:
            Overloaded: no instance is ready.
        """
        prefill, decode = candidates(views)
        matched = self.index.match(self._names_of(request))
        most = max((matched.get(v.name, 0) for v in prefill), default=0)
        waiting = max(v.prefill_requests for v in prefill)

        def score(view: InstanceView) -> float:
            return cache_aware_score(matched.get(view.name, 0), most, view.kv_usage, view.prefill_requests, waiting)

        first = max(prefill, key=score)
        second = first if first in decode else min(decode, key=lambda v: v.outstanding)
        return Placement(first.name, second.name)
