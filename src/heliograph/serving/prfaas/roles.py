"""The slow loop: local instances turn from decoding to prompts or back when one of the two could do far more."""

from __future__ import annotations

import math
from dataclasses import replace

from heliograph.errors import BadInput
from heliograph.serving.prfaas.service_model import EmpiricalLengths, PrefillServiceModel

__all__ = ["RoleController"]


class RoleController:
    """Compares what all prefill can serve with what decode can, window by window (arXiv:2604.15039, long-term loop).

    Args:
        model: of the clusters.
        window_s: of a comparison.
        gap: share by which one side must be the faster one.
        windows: in a row, before one instance changes; as many rest afterwards.
        least: requests in a window that are worth a judgement.

    Attributes:
        judged: (prefill rate, decode rate) of each window.
    """

    def __init__(
        self, model: PrefillServiceModel, *, window_s: float = 60.0, gap: float = 0.2, windows: int = 2, least: int = 20
    ) -> None:
        if not window_s > 0 or not gap > 0 or windows < 1 or least < 1:
            raise BadInput(
                "need window_s and gap above 0, windows and least of 1 or more; got "
                f"{window_s}, {gap}, {windows}, {least}"
            )
        self.model, self.window_s, self.gap, self.windows, self.least = model, window_s, gap, windows, least
        self.judged: list[tuple[float, float]] = []
        self._lengths: list[float] = []
        self._outputs: list[int] = []
        self._leaning = self._row = self._rest = 0

    def saw(self, uncached_tokens: float, output_tokens: int) -> None:
        """A request came."""
        self._lengths.append(uncached_tokens)
        self._outputs.append(output_tokens)

    def judge(self, n_p: int, n_d: int, t: float) -> int:
        """Ends a window: 1 to turn a decode instance to prompts, -1 for the reverse, 0 for neither.

        The rates are those of the model at the window's own lengths: the sum of both prefill sides, each at its share,
        against decode. The last decode instance never changes; the last prefill instance only while ``t`` sends all
        prompts away.
        """
        lengths, outputs = self._lengths, self._outputs
        self._lengths, self._outputs = [], []
        if len(lengths) < self.least:
            return 0
        model = replace(self.model, n_local=n_p + n_d, out_len=max(1.0, sum(outputs) / len(outputs)))
        threshold = math.inf if math.isnan(t) else t
        plan = model.at(EmpiricalLengths(lengths), threshold, n_p)
        sides = (plan.remote_rate if plan.p else 0.0) + (plan.local_rate if plan.p < 1 else 0.0)
        self.judged.append((sides, plan.decode_rate))
        if self._rest:
            self._rest -= 1
            return 0
        leaning = (
            1 if sides * (1 + self.gap) < plan.decode_rate else -1 if plan.decode_rate * (1 + self.gap) < sides else 0
        )
        self._row = self._row + 1 if leaning and leaning == self._leaning else abs(leaning)
        self._leaning = leaning
        if not leaning or self._row < self.windows:
            return 0
        if (leaning > 0 and n_d <= 1) or (leaning < 0 and n_p <= (0 if t == 0 else 1)):
            return 0
        self._leaning, self._row, self._rest = 0, 0, self.windows
        return leaning
