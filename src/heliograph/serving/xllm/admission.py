"""Admission that never has to evict (xllm's zero-evict scheduling).

A waiting request starts only if a simulation of the running ones shows free blocks at every step to come, each of them
drawing the most tokens that are expected of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import KVManager
from heliograph.serving.core.request import Request

__all__ = ["ZeroEvictAdmission"]


class ZeroEvictAdmission:
    """Lets a request start only if nobody can run out of blocks because of it.

    Nothing is evicted as long as answers have at most ``max_decode_tokens``, requests are served in order of arrival,
    prompts are not cut below what a step takes, and a step has room for all who decode. A longer answer, or a request
    that overtakes by priority, can still cause an eviction; the engine then handles it as usual.

    The published simulation goes block by block; this one goes token by token, which admits no less and is exact where
    requests stand at different places of their blocks.

    Args:
        max_decode_tokens: expected of an answer at most; a request's own smaller limit counts instead.
        scheduler_ahead: tokens that a request may be given beyond its last (1 where steps overlap).

    Attributes:
        refused: how often the head of the queue had to wait.
    """

    def __init__(self, max_decode_tokens: int = 256, scheduler_ahead: int = 1) -> None:
        if max_decode_tokens < 1 or scheduler_ahead < 0:
            raise BadInput(
                f"max_decode_tokens is at least 1 and scheduler_ahead at least 0; got {max_decode_tokens}, "
                f"{scheduler_ahead}"
            )
        self.max_decode_tokens, self.scheduler_ahead = max_decode_tokens, scheduler_ahead
        self.refused = 0

    def allow(self, request: Request, running: Sequence[Request], kv: KVManager) -> bool:
        """Whether the candidate can start without an eviction later."""
        if not running:
            return True  # alone it gets all there is; an answer that is too long for the cache ends where that ends
        fits = self.lowest(request, running, kv) >= 0
        self.refused += not fits
        return fits

    def lowest(self, request: Request, running: Sequence[Request], kv: KVManager) -> int:
        """Fewest free blocks at any step to come, if the candidate starts now; below 0 somebody would be evicted."""
        everybody = [*running, request]
        shared = kv.match(request)
        held = np.array([*(len(r.blocks) for r in running), len(shared)])
        tokens = np.array([len(r.tokens) + r.num_pending for r in everybody])
        left = np.array([self._left(r) for r in everybody]) + self.scheduler_ahead
        free = kv.pool.num_free - self._revived(shared, running)
        steps = np.arange(1, int(left.max()) + 2)
        alive = steps[None, :] <= left[:, None]
        need = -(-(tokens[:, None] + np.minimum(steps[None, :], left[:, None])) // kv.pool.block_size)
        growth = np.maximum(need - held[:, None], 0)
        taken = (growth * alive).sum(0)
        return int((free - taken + self._released(everybody, shared, left, len(steps))).min())

    def _left(self, request: Request) -> int:
        limit = min(self.max_decode_tokens, request.params.max_tokens)
        return max(1, limit - request.num_output - request.num_pending)

    @staticmethod
    def _revived(shared: Sequence[int], running: Sequence[Request]) -> int:
        """Blocks of the candidate's prefix that count as free now, but would be held."""
        return len(set(shared).difference(*(r.blocks for r in running)))

    @staticmethod
    def _released(everybody: Sequence[Request], shared: Sequence[int], left: np.ndarray, steps: int) -> np.ndarray:
        """Blocks held today that are free by each step: a shared one once its last holder has ended."""
        ends: dict[int, int] = {}
        for request, end in sorted(zip(everybody, left.tolist(), strict=True), key=lambda pair: pair[1]):
            for block in request.blocks or shared:
                ends[block] = end
        freed = np.zeros(steps + 1, dtype=int)
        for end in ends.values():
            freed[min(end, steps)] += 1
        return np.cumsum(freed)[:steps]
