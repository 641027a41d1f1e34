"""What a point costs and keeps, and which of several points is fastest at each bandwidth.

With B bytes a second of the link, V bytes of keys and values, s_p bytes a second of compressing and decompressing
together, and ratio cr_p:

    T_0 = T_model + V / B        T_p = T_model + V / s_p + V / (B cr_p)

so p helps where B < (1 - 1 / cr_p) s_p, whatever V is; and over x = 1 / B the fastest point follows the lower envelope
of the lines 1 / s_p + x / cr_p (arXiv:2605.13734, theorems 1 and 2). One unit throughout: bytes and seconds.
"""

from __future__ import annotations

import bisect
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint

__all__ = ["NO_COMPRESSION", "UNIFIED", "CompressionProfile", "Envelope", "ProfileSet", "lower_envelope"]

UNIFIED = "unified"
FORMAT = "heliograph kv profiles 1"


@dataclass(frozen=True)
class CompressionProfile:
    """A point with what was measured of it.

    Attributes:
        id: unique within a set.
        point: settings.
        lengths: tokens at which it was measured, rising.
        ratios: uncompressed bytes over bytes of whole frames, at each length.
        compress_rates, restore_rates: uncompressed bytes a second, at each length; infinite for no compression.
        quality: score relative to the uncompressed cache.
        quality_low, quality_high: its 95 % interval.
        samples: behind the quality.
    """

    id: str
    point: CompressionPoint
    lengths: tuple[int, ...] = (1,)
    ratios: tuple[float, ...] = (1.0,)
    compress_rates: tuple[float, ...] = (math.inf,)
    restore_rates: tuple[float, ...] = (math.inf,)
    quality: float = 1.0
    quality_low: float = 1.0
    quality_high: float = 1.0
    samples: int = 0

    def __post_init__(self) -> None:
        """Refuses tables that do not fit together."""
        rows = (self.ratios, self.compress_rates, self.restore_rates)
        if not self.lengths or any(len(row) != len(self.lengths) for row in rows):
            raise BadInput(f"profile {self.id}: one ratio and two rates for each of {len(self.lengths)} lengths")
        if list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise BadInput(f"profile {self.id}: lengths rise from 1 token on; got {list(self.lengths)}")
        if any(not value > 0 for row in rows for value in row) or not math.isfinite(self.quality):
            raise BadInput(f"profile {self.id}: ratios and rates are above 0 and the quality is a number")

    def ratio(self, tokens: int) -> float:
        """Compression ratio at a length."""
        return self._at(self.ratios, tokens)

    def compress_seconds(self, nbytes: float, tokens: int) -> float:
        """Of so many uncompressed bytes."""
        return nbytes / self._at(self.compress_rates, tokens)

    def restore_seconds(self, nbytes: float, tokens: int) -> float:
        """Of so many uncompressed bytes."""
        return nbytes / self._at(self.restore_rates, tokens)

    def rate(self, tokens: int) -> float:
        """s_p: 1 / s = 1 / s_enc + 1 / s_dec."""
        return 1 / self.line(tokens)[0] if self.line(tokens)[0] else math.inf

    def line(self, tokens: int, slowdown: float = 1.0) -> tuple[float, float]:
        """Intercept and slope over 1 / B, in seconds a byte of uncompressed keys and values."""
        intercept = 1 / self._at(self.compress_rates, tokens) + 1 / self._at(self.restore_rates, tokens)
        return intercept * slowdown, 1 / self.ratio(tokens)

    def seconds(self, nbytes: float, tokens: int, bytes_per_s: float, slowdown: float = 1.0) -> float:
        """Compressing, sending and restoring, one after the other."""
        intercept, slope = self.line(tokens, slowdown)
        return nbytes * (intercept + slope / bytes_per_s)

    def break_even(self, tokens: int) -> float:
        """Bytes a second of a link below which this profile helps; 0 where it never does."""
        return max(0.0, 1 - 1 / self.ratio(tokens)) * self.rate(tokens)

    def _at(self, values: tuple[float, ...], tokens: int) -> float:
        if len(values) == 1 or math.isinf(values[0]):
            return values[0]
        return float(np.exp(np.interp(math.log(max(1, tokens)), np.log(self.lengths), np.log(values))))

    def to_json(self) -> dict[str, Any]:
        """A plain object that :meth:`from_json` reads; an infinite rate is null."""
        plain = {**vars(self), "point": self.point.to_json()}
        for name in ("compress_rates", "restore_rates"):
            plain[name] = [None if math.isinf(rate) else rate for rate in plain[name]]
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CompressionProfile:
        """From :meth:`to_json`.

        Raises:
            BadInput: fields that are missing, unknown or of another kind.
        """
        try:
            plain = dict(value)
            plain["point"] = CompressionPoint.from_json(plain["point"])
            plain["lengths"] = tuple(int(n) for n in plain["lengths"])
            plain["ratios"] = tuple(float(r) for r in plain["ratios"])
            for name in ("compress_rates", "restore_rates"):
                plain[name] = tuple(math.inf if rate is None else float(rate) for rate in plain[name])
            return cls(**plain)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"this is no compression profile: {error}") from None


NO_COMPRESSION = CompressionProfile("none", METHODS["none"])


@dataclass(frozen=True)
class Envelope:
    """Which profile is fastest, by 1 / B.

    Attributes:
        breaks: seconds a byte of the link at which the fastest profile changes, rising.
        ids: of the profiles, one more than breaks; the first is that of an unlimited link.
    """

    breaks: tuple[float, ...]
    ids: tuple[str, ...]

    def interval(self, bytes_per_s: float) -> int:
        """Number of the interval of a bandwidth."""
        return bisect.bisect_right(self.breaks, 1 / bytes_per_s)

    def best(self, bytes_per_s: float) -> str:
        """The fastest profile."""
        return self.ids[self.interval(bytes_per_s)]


def lower_envelope(
    profiles: Sequence[CompressionProfile], tokens: int = 512, slowdown: float = 1.0
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Break points over 1 / B and the profile of each interval, no compression included, in O(n log n).

    >>> fast = CompressionProfile("fast", METHODS["kivi"], (1,), (4.0,), (2e9,), (2e9,))
    >>> small = CompressionProfile("small", METHODS["quarot"], (1,), (8.0,), (2e8,), (2e8,))
    >>> breaks, ids = lower_envelope([small, fast])
    >>> ids, [round(1e-6 / x) for x in breaks]
    (('none', 'fast', 'small'), [750, 14])

    Args:
        profiles: those to choose from.
        tokens: length at which they are compared.
        slowdown: factor on all times of compressing and restoring.
    """
    lines = [(0.0, 1.0, NO_COMPRESSION.id)]
    lines += [(*each.line(tokens, slowdown), each.id) for each in profiles if each.id != NO_COMPRESSION.id]
    lines.sort(key=lambda line: (-line[1], line[0], line[2]))  # steep first; of two as steep, the lower
    hull: list[tuple[float, float, str]] = []
    starts: list[float] = []
    for line in lines:
        if hull and hull[-1][1] == line[1]:
            continue
        start = 0.0
        while hull:
            start = (line[0] - hull[-1][0]) / (hull[-1][1] - line[1])
            if start > starts[-1]:
                break
            hull.pop()
            starts.pop()
        hull.append(line)
        starts.append(max(0.0, start) if len(hull) > 1 else 0.0)
    return tuple(starts[1:]), tuple(line[2] for line in hull)


@dataclass(frozen=True)
class ProfileSet:
    """Profiles by workload, for one model and machine.

    Attributes:
        model, fingerprint: of the model that they were measured with.
        workloads: profiles by label; ``unified`` holds for every label that is not there.
        scores: [L, G] of the heads, a row a layer, where a point tells them apart; empty otherwise.
        notes: how they were found.
    """

    model: str
    fingerprint: str
    workloads: Mapping[str, tuple[CompressionProfile, ...]]
    scores: tuple[tuple[float, ...], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a set without profiles for unknown labels, and ids that stand for two points."""
        if UNIFIED not in self.workloads:
            raise BadInput(f"a set of profiles needs the workload {UNIFIED!r}, for labels that it does not know")
        for label, profiles in self.workloads.items():
            ids = [each.id for each in profiles]
            if len(set(ids)) != len(ids):
                raise BadInput(f"workload {label!r} has two profiles of one id: {ids}")

    def profiles(self, label: str = UNIFIED) -> tuple[CompressionProfile, ...]:
        """Of a label; those for every workload where it is unknown."""
        return self.workloads.get(label, self.workloads[UNIFIED])

    def save(self, path: Path | str) -> None:
        """Writes JSON, whole or not at all.

        Raises:
            BadInput: it cannot be written.
        """
        path = Path(path)
        plain = {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "workloads": {label: [each.to_json() for each in found] for label, found in self.workloads.items()},
            "scores": [list(row) for row in self.scores],
            "notes": dict(self.notes),
        }
        text, part = json.dumps(plain, indent=1), None
        try:
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".part-", delete=False) as file:
                part = Path(file.name)
                file.write(text)
            part.replace(path)
        except OSError as error:
            if part is not None:
                part.unlink(missing_ok=True)
            raise BadInput(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path | str) -> ProfileSet:
        """From a file of :meth:`save`.

        Raises:
            BadInput: no such file, or another kind of file.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise BadInput(f"{path} is no JSON: {error}") from None
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise BadInput(f"{path} holds no profiles; `heliograph serving kv_serve profile` writes such files")
        try:
            workloads = {
                str(label): tuple(CompressionProfile.from_json(each) for each in found)
                for label, found in plain["workloads"].items()
            }
            scores = tuple(tuple(float(value) for value in row) for row in plain["scores"])
            return cls(str(plain["model"]), str(plain["fingerprint"]), workloads, scores, plain.get("notes", {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadInput(f"{path}: {error}") from None
