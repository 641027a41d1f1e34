"""At which concurrency does a server saturate? A roofline of one decoding step, with the prompt's work beside it.

A step of c sequences reads the weights that it touches and every sequence's cache, and multiplies::

    step(c) = max((W(c) + c x KV(context)) / B, c x flops / F) + t0
    rate(c) = c / (step(c) + c / output x prefill(prompt))

W(c) counts the experts that c tokens are expected to touch. Saturation is the first c at which twice as many sequences
give less than 5 % more (arXiv:2603.10031 names memory bandwidth as the cause; this form of it is ours). The naive
predictor that it warns of, active parameters alone, is :meth:`CapacityModel.by_active_parameters`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from heliograph.errors import BadInput
from heliograph.workload.device_spec import DeviceSpec
from heliograph.workload.shape import LlmShape

__all__ = ["GAIN", "CapacityModel", "EffectiveRates", "fitted_saturation", "measure_rates", "saturation_point"]

GAIN = 1.05
MOST = 2**16
SHEET_SHARE_BANDWIDTH, SHEET_SHARE_FLOPS = 0.6, 0.5


@dataclass(frozen=True)
class EffectiveRates:
    """What a device reaches, not what its data sheet promises.

    Attributes:
        bytes_per_s, flops_per_s: of one device.
        step_s: of a step that computes nothing.
        measured: whether they were; else shares of a data sheet.
    """

    bytes_per_s: float
    flops_per_s: float
    step_s: float = 0.0
    measured: bool = True

    def __post_init__(self) -> None:
        """Refuses rates that are not positive."""
        if not (self.bytes_per_s > 0 and self.flops_per_s > 0 and self.step_s >= 0):
            raise BadInput(f"rates must be positive; got {self}")

    @classmethod
    def from_sheet(cls, device: DeviceSpec, weight_bits: float = 16.0) -> EffectiveRates:
        """Usual shares of a data sheet's peaks: 0.6 of the bandwidth, 0.5 of the operations; a guess, and marked so."""
        return cls(
            SHEET_SHARE_BANDWIDTH * device.bandwidth_bytes_per_s,
            SHEET_SHARE_FLOPS * device.peak_flops_per_s(weight_bits),
            measured=device.vendor == "cpu",
        )


@dataclass(frozen=True)
class CapacityModel:
    """Predicts steps and rates of one server.

    Attributes:
        shape: the model. rates: of one device.
        tensor_parallel: devices of the server.
        kv_number_bytes: of a cached number.
    """

    shape: LlmShape
    rates: EffectiveRates
    tensor_parallel: int = 1
    kv_number_bytes: float = 2.0

    def step_s(self, concurrency: float, context: int) -> float:
        """Seconds of a decoding step of ``concurrency`` sequences with ``context`` cached tokens each."""
        cache = self.shape.kv_bytes(context, self.kv_number_bytes, self.tensor_parallel)
        weights = self.shape.step_weight_bytes(concurrency) / self.tensor_parallel
        flops = concurrency * self.shape.decode_flops(context) / self.tensor_parallel
        moved = (weights + concurrency * cache) / self.rates.bytes_per_s
        return max(moved, flops / self.rates.flops_per_s) + self.rates.step_s

    def prefill_s(self, tokens: int) -> float:
        """Seconds of computing a prompt: the longer of its operations and one pass over the weights, without ``t0``."""
        flops = self.shape.prefill_flops(tokens) / self.tensor_parallel / self.rates.flops_per_s
        return max(flops, 0.0)

    def rate(self, concurrency: float, context: int, prompt: int = 0, output: int = 1) -> float:
        """Output tokens a second in a closed loop of ``concurrency`` requests.

        Args:
            concurrency: requests at once.
            context: cached tokens of each, on average.
            prompt: tokens that are computed before each answer; 0 for decoding alone.
            output: tokens of an answer.
        """
        if concurrency <= 0 or context < 0 or prompt < 0 or output < 1:
            raise BadInput(f"need positive sizes; got {concurrency}, {context}, {prompt}, {output}")
        extra = concurrency / output * self.prefill_s(prompt) if prompt else 0.0
        return concurrency / (self.step_s(concurrency, context) + extra)

    def saturation(self, context: int, prompt: int = 0, output: int = 1) -> float:
        """The first concurrency at which doubling gives less than 5 % more; infinite if none below 65,536 does."""
        concurrency = 1.0
        while concurrency <= MOST:
            if self.rate(2 * concurrency, context, prompt, output) < GAIN * self.rate(
                concurrency, context, prompt, output
            ):
                return concurrency
            concurrency *= 2 ** (1 / 16)
        return math.inf

    def balance(self, context: int) -> float:
        """The concurrency at which caches move as many bytes as the weights do."""
        cache = self.shape.kv_bytes(context, self.kv_number_bytes, self.tensor_parallel)
        if cache == 0:
            return math.inf
        low, high = 1.0, float(MOST)
        for _ in range(60):
            middle = math.sqrt(low * high)
            if middle * cache < self.shape.step_weight_bytes(middle) / self.tensor_parallel:
                low = middle
            else:
                high = middle
        return low

    def by_active_parameters(self) -> float:
        """The naive prediction: where operations on the active parameters take as long as reading them once."""
        bytes_each = self.shape.weights.bits / 8
        return max(1.0, bytes_each * self.rates.flops_per_s / (2 * self.rates.bytes_per_s))

    def calibrated(self, token_s: float, context: int) -> CapacityModel:
        """The same with ``t0`` so that one sequence's step lasts ``token_s``, as measured at concurrency 1."""
        if not token_s > 0:
            raise BadInput(f"a step lasts more than 0 s; got {token_s}")
        bare = replace(self, rates=replace(self.rates, step_s=0.0))
        return replace(self, rates=replace(self.rates, step_s=max(0.0, token_s - bare.step_s(1, context))))


def saturation_point(rates: Mapping[int, float] | Sequence[tuple[int, float]]) -> float:
    """The measured saturation: the first concurrency at which doubling gives less than 5 % more.

    Rates between levels are interpolated over the logarithm of the concurrency, those beyond the last level are not
    known: infinite where the curve does not bend within the levels.

    Raises:
        BadInput: fewer than three levels, or a rate that is not positive.
    """
    points = sorted(dict(rates).items())
    if len(points) < 3 or any(rate <= 0 or level < 1 for level, rate in points):
        raise BadInput(f"a point of saturation needs three levels or more with positive rates; got {points}")
    places = np.log2([level for level, _ in points])
    values = np.asarray([rate for _, rate in points])
    for place in np.arange(places[0], places[-1] - 1 + 1e-9, 1 / 64):
        here, doubled = np.interp([place, place + 1], places, values)
        if doubled < GAIN * here:
            return float(2**place)
    return math.inf


def fitted_saturation(rates: Mapping[int, float]) -> float:
    """The same point from all levels together, for noise that drowns a gain of 5 % between two of them.

    A server whose step grows by the same amount with each sequence has ``c / rate(c) = a + b x c``, a line; weighted by
    relative errors it is fitted to all levels, and its doubling gains 5 % at ``c = 9.5 a / b`` (1 where a is not
    positive: there is nothing to share; infinite where b is not: more sequences cost nothing).

    Raises:
        BadInput: fewer than three levels, or a rate that is not positive.
    """
    points = sorted(rates.items())
    if len(points) < 3 or any(rate <= 0 or level < 1 for level, rate in points):
        raise BadInput(f"a point of saturation needs three levels or more with positive rates; got {points}")
    levels = np.asarray([level for level, _ in points], dtype=float)
    seconds = levels / np.asarray([rate for _, rate in points])
    weighted = np.stack([1 / seconds, levels / seconds], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(weighted, np.ones(len(points)), rcond=None)
    if each <= 0:
        return math.inf
    return max(1.0, float((2 - GAIN) / (2 * GAIN - 2) * fixed / each))


def measure_rates(repeats: int = 5, *, device: str = "cpu") -> EffectiveRates:
    """What one thread of this processor reaches in float32, in a few seconds: matrix-vector and matrix products.

    The bandwidth is that of reading a matrix too large for caches once, as decoding does; operations are the median
    over three sizes. On ``device="cuda"`` the same of the GPU, in bfloat16.
    """
    if device != "cpu":
        return _gpu_rates(repeats, device)
    matrix = np.ones((4096, 8192), np.float32)
    vector = np.ones(8192, np.float32)
    read = _best(lambda: matrix @ vector, repeats)
    flops = []
    for size in (256, 512, 1024):
        a = np.ones((size, size), np.float32)
        flops.append(2 * size**3 / _best(lambda a=a: a @ a, repeats))
    return EffectiveRates(matrix.nbytes / read, float(np.median(flops)))


def _gpu_rates(repeats: int, device: str) -> EffectiveRates:
    import torch

    def ended(a: torch.Tensor, b: torch.Tensor) -> None:
        a @ b
        torch.cuda.synchronize(device)

    ones = torch.ones(2**15, 2**14, dtype=torch.bfloat16, device=device)
    read = _best(lambda: ended(ones, ones[0]), repeats)
    flops = []
    for size in (2048, 4096, 8192):
        square = ones[:size, :size].contiguous()
        flops.append(2 * size**3 / _best(lambda square=square: ended(square, square), repeats))
    return EffectiveRates(ones.nbytes / read, float(np.median(flops)))


def _best(run: object, repeats: int) -> float:
    assert callable(run)
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
