"""What a prefill instance needs and emits by prompt length: seconds, KV bytes, and bytes a second (arXiv:2604.15039).

.. math:: \\Phi_{kv}(l) = S_{kv}(l) / T_{prefill}(l)

Between measured lengths both are interpolated linearly. Beyond them seconds go on as the parabola through the last
three points and bytes as the line through the last two, with a warning: nobody has measured that.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heliograph.errors import BadInput
from heliograph.workload.shape import LlmShape

__all__ = ["OutsideProfile", "PrefillProfile", "kv_bytes", "kv_throughput"]

MIB = 2**20


class OutsideProfile(UserWarning):
    """A length was asked for that the profile does not cover; the answer is extrapolated."""


@dataclass(frozen=True)
class PrefillProfile:
    """Seconds and KV bytes of one prefill instance by prompt length.

    >>> profile = PrefillProfile.from_points({1024: (100.0, 0.5), 3072: (200.0, 1.5)})
    >>> float(profile.seconds(2048)), float(profile.kv_bytes(2048)) / 2**20
    (1.0, 150.0)

    Attributes:
        tokens: measured lengths, growing.
        prefill_s: seconds at each.
        kv: bytes at each; all 0 where nothing leaves the instance's own cluster.
        open_ended: whether lengths outside are part of the profile, as for a formula; then nobody is warned.
    """

    tokens: tuple[int, ...]
    prefill_s: tuple[float, ...]
    kv: tuple[float, ...] = ()
    open_ended: bool = False
    _warned: list[bool] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses points that cannot be: out of order, falling, not finite."""
        if not self.kv:
            object.__setattr__(self, "kv", (0.0,) * len(self.tokens))
        if len(self.tokens) < 2 or not len(self.tokens) == len(self.prefill_s) == len(self.kv):
            raise BadInput(f"a profile needs two lengths or more with seconds and bytes each; got {len(self.tokens)}")
        if self.tokens[0] < 0 or any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise BadInput(f"lengths of a profile grow from 0 or more; got {list(self.tokens)}")
        for name, values, least in (("seconds", self.prefill_s, 1e-12), ("KV bytes", self.kv, 0.0)):
            if not all(np.isfinite(values)) or min(values) < least:
                raise BadInput(
                    f"{name} of a profile are finite and {'above' if least else 'not below'} 0; got {values}"
                )
            for length, before, after in zip(self.tokens[1:], values, values[1:], strict=False):
                if after < before:
                    raise BadInput(
                        f"{name} fall from {before:g} to {after:g} at {length} tokens; a longer prompt cannot cost "
                        "less: measure again, or pass repair=True to raise such points to the one before"
                    )

    @classmethod
    def from_points(
        cls, points: Mapping[int, tuple[float, float]] | Sequence[tuple[int, float, float]], *, repair: bool = False
    ) -> PrefillProfile:
        """From measurements: length to (KV in MiB, seconds), or rows of (length, MiB, seconds).

        Args:
            points: two or more.
            repair: raises points that fall to the one before, which is the cautious reading of noise.

        Raises:
            BadInput: points that cannot be, or fall.
        """
        rows = [(n, *pair) for n, pair in points.items()] if isinstance(points, Mapping) else list(points)
        try:
            ordered = sorted((int(n), float(mib), float(s)) for n, mib, s in rows)
        except (TypeError, ValueError):
            raise BadInput(f"a point is a length, MiB of KV and seconds; got {rows!r}") from None
        tokens, kv, seconds = [n for n, _, _ in ordered], [m * MIB for _, m, _ in ordered], [s for _, _, s in ordered]
        if repair:
            kv, seconds = np.maximum.accumulate(kv).tolist(), np.maximum.accumulate(seconds).tolist()
        return cls(tuple(tokens), tuple(seconds), tuple(kv))

    @classmethod
    def linear(
        cls, base_s: float, s_per_token: float, kv_base: float = 0.0, kv_per_token: float = 0.0
    ) -> PrefillProfile:
        """A straight line through all lengths: ``base_s + s_per_token * l`` seconds, likewise bytes."""
        far = 2**20
        return cls(
            (0, far), (base_s, base_s + far * s_per_token), (kv_base, kv_base + far * kv_per_token), open_ended=True
        )

    @overload
    def seconds(self, length: float) -> float: ...
    @overload
    def seconds(self, length: NDArray[Any]) -> NDArray[np.float64]: ...
    def seconds(self, length: ArrayLike) -> Any:
        """T_prefill of a prompt, or of each of an array."""
        if isinstance(length, int | float) and self.tokens[0] <= length <= self.tokens[-1]:
            return self._between(length, self.prefill_s)
        return self._at(length, self.prefill_s, quadratic=True)

    @overload
    def kv_bytes(self, length: float) -> float: ...
    @overload
    def kv_bytes(self, length: NDArray[Any]) -> NDArray[np.float64]: ...
    def kv_bytes(self, length: ArrayLike) -> Any:
        """S_kv of a prompt, or of each of an array."""
        if isinstance(length, int | float) and self.tokens[0] <= length <= self.tokens[-1]:
            return self._between(length, self.kv)
        return self._at(length, self.kv, quadratic=False)

    def kv_rate(self, length: float) -> float:
        """Phi_kv: bytes a second that one instance emits on prompts of this length."""
        return self.kv_bytes(length) / self.seconds(length)

    def _between(self, length: float, values: tuple[float, ...]) -> float:
        right = min(max(1, bisect.bisect_left(self.tokens, length)), len(self.tokens) - 1)
        a, b = self.tokens[right - 1], self.tokens[right]
        return values[right - 1] + (values[right] - values[right - 1]) * (length - a) / (b - a)

    def _at(self, length: ArrayLike, values: tuple[float, ...], *, quadratic: bool) -> Any:
        wanted = np.asarray(length, dtype=np.float64)
        if wanted.size and not (np.isfinite(wanted).all() and wanted.min() >= 0):
            raise BadInput(f"a prompt length is a finite number of tokens, 0 or more; got {length!r}")
        known = np.asarray(self.tokens, dtype=np.float64)
        heights = np.asarray(values, dtype=np.float64)
        found = np.interp(wanted, known, heights)
        below, above = wanted < known[0], wanted > known[-1]
        if (below.any() or above.any()) and not self.open_ended and not self._warned:
            self._warned.append(True)
            warnings.warn(
                f"the profile covers {self.tokens[0]} to {self.tokens[-1]} tokens and was asked for "
                f"{float(wanted.min()):.0f} to {float(wanted.max()):.0f}; what lies outside is extrapolated",
                OutsideProfile,
                stacklevel=3,
            )
        if above.any():
            found = np.where(above, _beyond(wanted, known, heights, quadratic=quadratic), found)
        if below.any():
            slope = (heights[1] - heights[0]) / (known[1] - known[0])
            # a line to the left may cross 0; a tenth of the first point is the least that is believed
            found = np.where(below, np.maximum(heights[0] - slope * (known[0] - wanted), heights[0] / 10), found)
        return found if found.ndim else float(found)


def _beyond(wanted: Any, known: Any, heights: Any, *, quadratic: bool) -> Any:
    slope = (heights[-1] - heights[-2]) / (known[-1] - known[-2])
    bend = 0.0
    if quadratic and len(known) > 2:
        before = (heights[-2] - heights[-3]) / (known[-2] - known[-3])
        bend = max(0.0, (slope - before) / (known[-1] - known[-3]))  # Newton's second divided difference
    return heights[-1] + (wanted - known[-1]) * slope + bend * (wanted - known[-1]) * (wanted - known[-2])


def kv_bytes(model: LlmShape | Mapping[str, Any] | str, length: int, *, number_bytes: float = 2.0) -> float:
    """S_kv from an architecture: bytes that a prompt of ``length`` tokens leaves behind.

    Args:
        model: a shape, or a Hugging Face ``config.json`` (its path, folder or fields).
        length: tokens.
        number_bytes: of one stored number.
    """
    shape = model if isinstance(model, LlmShape) else LlmShape.from_config(model)
    return shape.kv_bytes(length, number_bytes)


def kv_throughput(nbytes: float, seconds: float) -> float:
    """Phi_kv in bytes a second.

    Raises:
        BadInput: no time, or fewer than no bytes.
    """
    if not (seconds > 0 and nbytes >= 0):
        raise BadInput(f"need bytes of 0 or more and seconds above 0; got {nbytes} and {seconds}")
    return nbytes / seconds
