r"""The drive: how alike recent thoughts are decides how freely the next ones are drawn (arXiv:2604.08206, eqs. 1-3).

.. math::
    d_{t,k} = 1 - \cos(h_t, C_k), \quad p = \mathrm{softmax}(-d_t / \tau), \quad H = -\sum_k p_k \ln p_k, \quad
    T = T_{base} + \alpha e^{-\beta H}

Shapes: K centres, W thoughts of the window, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.gwa.config import Estimator, GWAConfig
from heliograph.errors import BadInput
from heliograph.random import CounterRng

__all__ = ["EntropyDrive", "Reach", "entropy_floor", "reachable"]

INERT_WIDTH = 0.2
"""A drive whose temperature moves by less than this is called inert."""


@dataclass(frozen=True)
class Reach:
    """Temperatures that a drive can reach once a thought was seen.

    Attributes:
        low, high: ends.
        inert: whether they lie so close that the drive hardly matters.
    """

    low: float
    high: float

    @property
    def inert(self) -> bool:
        """Whether the width is below :data:`INERT_WIDTH`."""
        return self.high - self.low < INERT_WIDTH


def entropy_floor(clusters: int, tau: float, far: float = 1.0) -> float:
    """H of a thought on its centre when all other centres are ``far`` away; 1 is where random centres lie."""
    others = math.exp(-far / tau)
    total = 1 + (clusters - 1) * others
    own, rest = 1 / total, others / total
    return -own * math.log(own) - ((clusters - 1) * rest * math.log(rest) if rest > 0 else 0.0)


def reachable(config: GWAConfig) -> Reach:
    """The interval of temperatures under these settings, by the closed form; random centres count as orthogonal."""
    floor = entropy_floor(config.clusters, config.tau) if config.entropy == "assignment" else 0.0

    def law(entropy: float) -> float:
        return min(config.base_temperature + config.alpha * math.exp(-config.beta * entropy), config.max_temperature)

    return Reach(law(math.log(config.clusters)), law(floor))


class EntropyDrive:
    """Turns thoughts into a sampling temperature.

    ``assignment`` is the published estimator: how evenly the last thought lies between K moving centres. ``window`` is
    the entropy of topics among the last thoughts, and ``novelty`` their mean pairwise distance; both are ours. A drive
    that has seen no thought has H = ln K and T = T_base.

    Args:
        clusters, tau, base_temperature, alpha, beta, max_temperature, ema, window, same_topic, seed: see
            :class:`GWAConfig`.
        estimator: of H.

    Attributes:
        updates: thoughts taken since the drive was made.
        skipped: vectors that were no direction (zero, NaN, infinite) and changed nothing.

    Raises:
        BadInput: a setting outside its range.
    """

    def __init__(
        self,
        clusters: int = 5,
        tau: float = 0.5,
        base_temperature: float = 0.7,
        alpha: float = 1.3,
        beta: float = 2.0,
        *,
        estimator: Estimator = "assignment",
        window: int = 10,
        ema: float = 0.5,
        same_topic: float = 0.3,
        max_temperature: float = 2.0,
        seed: int = 0,
    ) -> None:
        GWAConfig(
            clusters=clusters, tau=tau, base_temperature=base_temperature, alpha=alpha, beta=beta, entropy=estimator,
            entropy_window=window, ema=ema, same_topic=same_topic, max_temperature=max_temperature, seed=seed,
        )  # fmt: skip
        self.clusters, self.tau, self.estimator, self.window, self.ema = clusters, tau, estimator, window, ema
        self.base_temperature, self.alpha, self.beta = base_temperature, alpha, beta
        self.same_topic, self.max_temperature, self.seed = same_topic, max_temperature, seed
        self.updates = self.skipped = self._resets = 0
        self._centres_KD: NDArray[np.float64] | None = None
        self._recent: tuple[NDArray[np.float64], ...] = ()
        self._entropy: float | None = None

    @classmethod
    def from_config(cls, config: GWAConfig) -> EntropyDrive:
        """With an agent's settings."""
        return cls(
            config.clusters, config.tau, config.base_temperature, config.alpha, config.beta, estimator=config.entropy,
            window=config.entropy_window, ema=config.ema, same_topic=config.same_topic,
            max_temperature=config.max_temperature, seed=config.seed,
        )  # fmt: skip

    @property
    def dimensions(self) -> int:
        """Of the thoughts so far; 0 before the first."""
        return len(self._recent[-1]) if self._recent else 0

    def entropy(self) -> float:
        """H of the thoughts so far, in [0, ln K]."""
        return math.log(self.clusters) if self._entropy is None else self._entropy

    def temperature(self) -> float:
        """T for the next thought."""
        if self._entropy is None:
            return self.base_temperature
        return min(self.base_temperature + self.alpha * math.exp(-self.beta * self._entropy), self.max_temperature)

    def update(self, thought: Sequence[float] | NDArray[Any]) -> bool:
        """Takes the winning thought's embedding; False if it is no direction, and then nothing changes.

        Raises:
            BadInput: not one row, or another dimension than before.
        """
        h_D = np.asarray(thought, dtype=np.float64)
        if h_D.ndim != 1 or not len(h_D):
            raise BadInput(f"a thought is one row of numbers; got shape {h_D.shape}")
        known = self._recent[-1] if self._recent else None
        if known is not None and len(known) != len(h_D):
            raise BadInput(f"thoughts had {len(known)} dimensions, this one has {len(h_D)}; call reset_centers() first")
        with np.errstate(over="ignore", invalid="ignore"):
            length = float(np.linalg.norm(h_D))
        if not math.isfinite(length) or length < 1e-12:
            self.skipped += 1
            return False
        h_D = h_D / length
        self.updates += 1
        self._recent = (*self._recent, h_D)[-self.window :]
        if self.estimator == "assignment":
            self._move(h_D)
            self._entropy = self._assignment(h_D)
        elif self.estimator == "window":
            self._entropy = self._topics()
        else:
            self._entropy = self._novelty()
        return True

    def reset_centers(self) -> None:
        """Forgets all thoughts, as on every message from outside; the next random centres are others."""
        self._centres_KD, self._recent, self._entropy = None, (), None
        self._resets += 1

    def _move(self, h_D: NDArray[np.float64]) -> None:
        if self._centres_KD is None:
            rng = CounterRng(self.seed)
            rows = [h_D, *(rng.at(step=self._resets, item=k).normal(len(h_D)) for k in range(1, self.clusters))]
            self._centres_KD = np.stack([row / np.linalg.norm(row) for row in rows])
            return
        nearest = int(np.argmin(1 - self._centres_KD @ h_D))
        moved_D = self.ema * self._centres_KD[nearest] + (1 - self.ema) * h_D
        length = float(np.linalg.norm(moved_D))
        # Opposite to the centre at ema = 1/2 the mean vanishes; the thought itself is then the only direction left.
        self._centres_KD[nearest] = moved_D / length if length > 1e-9 else h_D

    def _assignment(self, h_D: NDArray[np.float64]) -> float:
        assert self._centres_KD is not None
        logits_K = -(1 - self._centres_KD @ h_D) / self.tau
        p_K = np.exp(logits_K - logits_K.max())
        p_K /= p_K.sum()
        return _shannon(p_K)

    def _topics(self) -> float:
        """Hard clusters whose centres start at the first K distinct thoughts of the window."""
        if len(self._recent) < self.clusters:
            return math.log(self.clusters)  # too few to say that they repeat
        rows_WD = np.stack(self._recent)
        seeds: list[NDArray[np.float64]] = []
        for row in rows_WD:
            if len(seeds) < self.clusters and all(1 - float(row @ seed) > self.same_topic for seed in seeds):
                seeds.append(row)
        centres = np.stack(seeds)
        for _ in range(8):
            nearest_W = np.argmax(rows_WD @ centres.T, axis=1)
            sums = np.stack([rows_WD[nearest_W == k].sum(0) for k in range(len(centres))])
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            fresh = np.where(length > 1e-9, sums / np.maximum(length, 1e-9), centres)
            if np.array_equal(fresh, centres):
                break
            centres = fresh
        nearest_W = np.argmax(rows_WD @ centres.T, axis=1)
        return _shannon(np.bincount(nearest_W, minlength=len(centres)) / len(rows_WD))

    def _novelty(self) -> float:
        """Mean pairwise cosine distance, scaled so that orthogonal thoughts have ln K."""
        count = len(self._recent)
        if count < 2:
            return math.log(self.clusters)
        rows_WD = np.stack(self._recent)
        similar = (float((rows_WD @ rows_WD.T).sum()) - count) / (count * (count - 1))
        return math.log(self.clusters) * min(max(1 - similar, 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as JSON values that read back exactly."""
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "resets": self._resets,
            "entropy": self._entropy,
            "centres": None if self._centres_KD is None else self._centres_KD.tolist(),
            "recent": [row.tolist() for row in self._recent],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`.

        Raises:
            BadInput: it is another shape; nothing was changed.
        """
        try:
            updates, skipped, resets = (int(state[name]) for name in ("updates", "skipped", "resets"))
            entropy = None if state["entropy"] is None else float(state["entropy"])
            centres = None if state["centres"] is None else np.asarray(state["centres"], dtype=np.float64)
            recent = tuple(np.asarray(row, dtype=np.float64) for row in state["recent"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"not the state of a drive: {error!r}") from None
        if centres is not None and (centres.ndim != 2 or len(centres) != self.clusters):
            raise BadInput(f"this drive has {self.clusters} centres; the state's have shape {centres.shape}")
        if any(row.ndim != 1 or len(row) != len(recent[0]) for row in recent):
            raise BadInput("the state's thoughts differ in dimension")
        self.updates, self.skipped, self._resets = updates, skipped, resets
        self._entropy, self._centres_KD, self._recent = entropy, centres, recent[-self.window :]


def _shannon(p: NDArray[np.float64]) -> float:
    some = p[p > 0]
    return max(float(-(some * np.log(some)).sum()), 0.0)
