"""The pre-decoder: detectors exchange features with their neighbours in space and time through 3-D convolutions.

Every site reads its two detector bits and whether those detectors exist, and says four things: data error of either
channel, wrong measurement of either kind. Fully convolutional: one network serves every distance and number of rounds.
Source: arXiv:2604.12841 and its code (shapes of the published models, order of the channels).

Shapes: B shots, N detectors, S = T + 1 slices, D rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.lattice import (
    DetectorLayout,
    as_bits,
    detectors_to_grid,
    like,
    presence,
)
from heliograph.graphs.surface_predecoder.proposal import GlobalDecoder, Pipeline, Proposal

if TYPE_CHECKING:
    from heliograph.graphs.surface_predecoder.memory import SurfaceMemory
    from heliograph.graphs.surface_predecoder.training import FitReport, LabelSource, Progress

__all__ = ["PUBLISHED", "PreDecoder", "Variant"]

Variant = Literal["plain", "residual", "bottleneck"]
PUBLISHED: dict[int, tuple[tuple[int, ...], int]] = {
    1: ((128, 128, 128), 3),
    2: ((256, 256, 256), 3),
    3: ((128, 128, 128), 5),
    4: ((128,) * 5, 3),
    5: ((256,) * 5, 3),
}
RARE = -4.0  # logit of a 2 % error: where training starts
_CHUNK_NUMBERS = {"cpu": 2**23, "cuda": 2**28}


class PreDecoder(nn.Module):
    """A stack of 3-D convolutions over the syndrome of a rotated surface code.

    Args:
        filters: channels of the hidden layers; a last layer of 4 follows.
        kernel: odd width of each convolution.
        variant: ``plain`` as published; ``residual`` adds each layer to its input, with batch norm; ``bottleneck``
            squeezes each hidden layer to a quarter and back.
        dropout: of whole channels, in training.
        seed: of the initial weights.

    Attributes:
        receptive_field: R, how many sites across one answer sees.
        experiment: the one it was last fitted to; the default of :meth:`pipeline`.

    Raises:
        BadInput: no filters, an even kernel, a dropout outside [0, 1), or residual layers of unequal width.
    """

    def __init__(
        self,
        filters: Sequence[int] = (64, 64, 64),
        kernel: int = 3,
        *,
        variant: Variant = "plain",
        dropout: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not filters or min(filters) < 1:
            raise BadInput(f"filters are one or more positive widths; got {tuple(filters)}")
        if kernel < 1 or kernel % 2 == 0:
            raise BadInput(f"the kernel's width must be odd, to reach equally far on both sides; got {kernel}")
        if not 0 <= dropout < 1:
            raise BadInput(f"dropout is a probability below 1; got {dropout}")
        if variant not in ("plain", "residual", "bottleneck"):
            raise BadInput(f"variant is 'plain', 'residual' or 'bottleneck'; got {variant!r}")
        if variant != "plain" and len(set(filters)) > 1:
            raise BadInput(f"a {variant} network has layers of one width; got {tuple(filters)}")
        self.filters, self.kernel, self.variant, self.dropout = tuple(filters), kernel, variant, dropout
        self.experiment: SurfaceMemory | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            before = 4
            for width in self.filters:
                layers.append(_layer(before, width, kernel, variant, dropout))
                before = width
            last = nn.Conv3d(before, 4, kernel, padding="same")
            nn.init.constant_(last.bias, RARE)  # type: ignore[arg-type]
            self.layers = nn.Sequential(*layers, last)

    @classmethod
    def published(cls, model: int, **options: Any) -> PreDecoder:
        """The shape of published model 1 to 5, untrained."""
        if model not in PUBLISHED:
            raise BadInput(f"published models are {sorted(PUBLISHED)}; got {model}")
        filters, kernel = PUBLISHED[model]
        return cls(filters, kernel, **options)

    @property
    def receptive_field(self) -> int:
        """R = 1 + the sum of (kernel - 1) over the layers."""
        return 1 + (len(self.filters) + 1) * (self.kernel - 1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, grid_B4SDD: Tensor) -> Tensor:
        """Logits [B, 4, S, D, D] from bits and presence [B, 4, S, D, D]; 0 or more is an error believed in."""
        if grid_B4SDD.ndim != 5 or grid_B4SDD.shape[1] != 4:
            raise BadInput(f"the network reads [B, 4, S, D, D]; got {list(grid_B4SDD.shape)}")
        out: Tensor = self.layers(grid_B4SDD)
        return out

    def inputs(self, detectors: Any, layout: DetectorLayout) -> Tensor:
        """What the network reads, [B, 4, S, D, D] float: bits of both kinds, then presence of both kinds."""
        bits = as_bits(detectors, layout.num_detectors, "detectors").to(self.device)
        there = presence(layout, self.device).expand(len(bits), *layout.shape)
        grid = torch.cat([detectors_to_grid(bits, layout).to(there.dtype), there], 1)
        return grid.contiguous(memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def logits(
        self,
        detectors: Any,
        layout: DetectorLayout,
        *,
        block: tuple[int, int, int] | None = None,
        devices: Sequence[str] = (),
        bfloat16: bool = False,
    ) -> Tensor:
        """Logits [B, 4, S, D, D] float32 of [B, N] detectors, in eval mode, whole or block by block.

        Args:
            detectors: of 0 and 1.
            layout: of the experiment.
            block: slices, rows and columns of a block; each is computed from itself and R // 2 sites around it, which
                is all that its answer depends on, so the result is that of the whole.
            devices: blocks go to these in turn; the network's own device if empty.
            bfloat16: compute in 16 bits.
        """
        was_training = self.training
        self.eval()
        try:
            parts = [
                self._blocks(self.inputs(bits, layout), block, devices, bfloat16)
                for bits in self._portions(detectors, layout)
            ]
            return torch.cat(parts) if parts else torch.zeros(0, 4, *layout.shape[1:], device=self.device)
        finally:
            self.train(was_training)

    def propose(
        self,
        detectors: Any,
        layout: DetectorLayout,
        *,
        block: tuple[int, int, int] | None = None,
        devices: Sequence[str] = (),
        bfloat16: bool = False,
    ) -> Proposal:
        """Corrections of [B, N] detectors with the residual and frame that they leave; options as in :meth:`logits`."""
        allowed = torch.as_tensor(layout.allowed, device=self.device)
        chosen = torch.zeros(len(detectors), 4, *layout.shape[1:], dtype=torch.uint8, device=self.device)
        done = 0
        for bits in self._portions(detectors, layout):
            logits = self.logits(bits, layout, block=block, devices=devices, bfloat16=bfloat16)
            chosen[done : done + len(bits)] = (logits >= 0) & allowed
            done += len(bits)
        return Proposal.of(detectors, chosen[:, :2], chosen[:, 2:], layout)

    def reduce(self, detectors: Any, experiment: SurfaceMemory) -> tuple[Any, Any]:
        """Residual [B, N] and frame [B, O]: the prediction is the frame xor your decoder's answer to the residual."""
        proposal = self.propose(detectors, experiment.layout)
        return like(proposal.residual, detectors), like(proposal.frame, detectors)

    def pipeline(
        self,
        experiment: SurfaceMemory | None = None,
        *,
        global_decoder: str | GlobalDecoder = "pymatching",
        correlated: bool = False,
    ) -> Pipeline:
        """This network before a global decoder; the experiment it was fitted to unless another is given."""
        return Pipeline(self, self.experiment if experiment is None else experiment, global_decoder, correlated)

    def fit(
        self,
        experiments: SurfaceMemory | Sequence[SurfaceMemory],
        *,
        shots: int | None = None,
        seconds: float | None = None,
        batch: int = 512,
        learning_rate: float = 3e-4,
        seed: int = 0,
        scale_noise: bool = True,
        labels: LabelSource | None = None,
        callback: Progress | None = None,
    ) -> PreDecoder:
        """Trains on simulated shots and returns the network itself; see :func:`training.fit_predecoder`."""
        from heliograph.graphs.surface_predecoder.training import fit_predecoder

        self.fit_report: FitReport = fit_predecoder(
            self,
            experiments,
            shots=shots,
            seconds=seconds,
            batch=batch,
            learning_rate=learning_rate,
            seed=seed,
            scale_noise=scale_noise,
            labels=labels,
            callback=callback,
        )
        return self

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint folder (``config.json``, ``weights.safetensors``), whole or not at all."""
        from heliograph.graphs.surface_predecoder.checkpoint import save_checkpoint

        save_checkpoint(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> PreDecoder:
        """Reads a checkpoint folder; nothing in it is executed.

        Raises:
            BadInput: no checkpoint, a truncated or altered one, or one of another version.
        """
        from heliograph.graphs.surface_predecoder.checkpoint import load_checkpoint

        return load_checkpoint(Path(folder))

    def __getstate__(self) -> dict[str, Any]:
        # Circuits stay behind when a network travels to a worker.
        return {**self.__dict__, "experiment": None}

    def _portions(self, detectors: Any, layout: DetectorLayout) -> Iterator[Tensor]:
        """Shots in portions whose features fit a bounded memory."""
        bits = as_bits(detectors, layout.num_detectors, "detectors")
        numbers = _CHUNK_NUMBERS["cuda" if self.device.type == "cuda" else "cpu"]
        shots = max(1, numbers // (layout.shape[1] * layout.shape[2] ** 2 * max(*self.filters, 4)))
        for start in range(0, len(bits), shots):
            yield bits[start : start + shots]

    def _blocks(
        self, grid: Tensor, block: tuple[int, int, int] | None, devices: Sequence[str], bfloat16: bool
    ) -> Tensor:
        if block is None and not devices:
            return self._run(self, grid, bfloat16)
        extent = tuple(grid.shape[2:])
        size = extent if block is None else block
        if len(size) != 3 or min(size) < 1:
            raise BadInput(f"a block is positive numbers of slices, rows and columns; got {size}")
        homes = [torch.device(d) for d in devices] or [grid.device]
        networks = {home: self if home == grid.device else _copy_to(self, home) for home in homes}
        out = torch.empty(len(grid), 4, *extent, device=grid.device)
        answers = []
        for number, (core, window) in enumerate(_windows(extent, size, self.receptive_field // 2)):
            home = homes[number % len(homes)]
            part = grid[(slice(None), slice(None), *window)].to(home, non_blocking=True)
            part = part.contiguous(memory_format=torch.channels_last_3d)
            answers.append((core, window, self._run(networks[home], part, bfloat16)))
        for core, window, answer in answers:
            inside = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(core, window, strict=True))
            out[(slice(None), slice(None), *core)] = answer[(slice(None), slice(None), *inside)].to(grid.device)
        return out

    @staticmethod
    def _run(network: PreDecoder, grid: Tensor, bfloat16: bool) -> Tensor:
        with torch.autocast(grid.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits: Tensor = network(grid)
        return logits.float()


class _Residual(nn.Module):
    """Adds a layer's output to its input, where both have one width."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """x + inner(x)."""
        out: Tensor = x + self.inner(x)
        return out


def _layer(before: int, width: int, kernel: int, variant: Variant, dropout: float) -> nn.Module:
    gelu = nn.GELU(approximate="tanh")
    if variant == "plain" or before != width:
        return nn.Sequential(nn.Conv3d(before, width, kernel, padding="same"), nn.Dropout3d(dropout), gelu)
    if variant == "residual":
        convolution = nn.Conv3d(width, width, kernel, padding="same")
        return _Residual(nn.Sequential(convolution, nn.BatchNorm3d(width), nn.Dropout3d(dropout), gelu))
    narrow = max(1, width // 4)
    squeeze, spread = nn.Conv3d(width, narrow, 1), nn.Conv3d(narrow, width, 1)
    middle = nn.Conv3d(narrow, narrow, kernel, padding="same")
    return _Residual(nn.Sequential(squeeze, nn.SiLU(), middle, nn.SiLU(), spread, nn.Dropout3d(dropout)))


def _windows(
    extent: tuple[int, ...], size: tuple[int, ...], halo: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Blocks that tile ``extent``, each with itself widened by ``halo`` where there is something."""
    starts = [range(0, whole, step) for whole, step in zip(extent, size, strict=True)]
    for corner in product(*starts):
        core = tuple(slice(a, min(a + s, e)) for a, s, e in zip(corner, size, extent, strict=True))
        window = tuple(slice(max(0, c.start - halo), min(e, c.stop + halo)) for c, e in zip(core, extent, strict=True))
        yield core, window


def _copy_to(network: PreDecoder, home: torch.device) -> PreDecoder:
    twin = PreDecoder(network.filters, network.kernel, variant=network.variant, dropout=network.dropout)
    twin.load_state_dict(network.state_dict())
    return twin.to(home).eval()
