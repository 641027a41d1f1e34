"""Learned proposal, exact completion: a local correction, what it leaves over, and a global decoder for the rest.

``Proposal`` holds corrections with the residual syndrome and the observables that they account for; ``verify``
recomputes both from the corrections; ``Completer`` solves the residual; ``Pipeline`` joins them and falls back to plain
matching of the original syndrome, shot by shot, where a proposal does not verify or its residual has no solution.

Shapes: B shots, N detectors, O observables, S slices, D rows and columns.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pymatching
import stim
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.lattice import (
    DetectorLayout,
    as_bits,
    grid_to_detectors,
    logical_frame,
    syndrome_of,
)
from heliograph.graphs.surface_predecoder.memory import SurfaceMemory, read_layout

__all__ = [
    "CompiledPipeline",
    "Completer",
    "Decoded",
    "GlobalDecoder",
    "NoProposal",
    "Pipeline",
    "Proposal",
    "Proposer",
    "verify",
]


@dataclass(frozen=True)
class Proposal:
    """A local correction of each shot and what it leaves.

    Attributes:
        data: [B, 2, S, D, D] uint8, data errors believed new in each slice.
        measured: [B, 2, S, D, D] uint8, measurements believed wrong.
        residual: [B, N] uint8, detectors that the correction does not explain.
        frame: [B, O] uint8, observables that the correction flips.
        layout: of the experiment.
    """

    data: Tensor
    measured: Tensor
    residual: Tensor
    frame: Tensor
    layout: DetectorLayout

    @classmethod
    def of(cls, detectors: Any, data: Tensor, measured: Tensor, layout: DetectorLayout) -> Proposal:
        r"""Applies a correction.

        .. math:: R = \mathrm{det} \oplus H\,\hat c \oplus \hat s_t \oplus \hat s_{t-1}, \qquad
                  L_\mathrm{pre} = L^\top \textstyle\sum_t \hat c_t

        Args:
            detectors: [B, N] of 0 and 1.
            data: [B, 2, S, D, D] of 0 and 1.
            measured: likewise.
            layout: of the experiment.
        """
        bits = as_bits(detectors, layout.num_detectors, "detectors").to(data.device)
        explained = grid_to_detectors(syndrome_of(data, measured, layout), layout)
        return cls(data, measured, bits ^ explained, logical_frame(data, layout), layout)


def verify(detectors: Any, proposal: Proposal) -> Tensor:
    """[B] booleans: does this shot's proposal account for its syndrome and observables, and only touch what exists?

    The corrections' own detectors xor the residual must equal the original, and the frame must be the parity of the
    corrections on each observable.
    """
    layout = proposal.layout
    bits = as_bits(detectors, layout.num_detectors, "detectors").to(proposal.residual.device)
    explained = grid_to_detectors(syndrome_of(proposal.data, proposal.measured, layout), layout)
    consistent = ((explained ^ proposal.residual) == bits).all(1)
    frame = (logical_frame(proposal.data, layout) == proposal.frame).all(1)
    allowed = torch.as_tensor(layout.allowed, device=bits.device)
    both = torch.cat([proposal.data, proposal.measured], 1).bool()
    return consistent & frame & ~(both & ~allowed).flatten(1).any(1)


class Proposer(Protocol):
    """Whatever turns syndromes into proposals: a trained network, an oracle, nothing at all."""

    def propose(self, detectors: Any, layout: DetectorLayout) -> Proposal:
        """A proposal for [B, N] detectors."""
        ...


class NoProposal:
    """Corrects nothing: behind it the pipeline is the global decoder alone, bit for bit."""

    def propose(self, detectors: Any, layout: DetectorLayout) -> Proposal:
        """The empty correction."""
        bits = as_bits(detectors, layout.num_detectors, "detectors")
        nothing = bits.new_zeros(len(bits), *layout.shape)
        return Proposal(nothing, nothing, bits, bits.new_zeros(len(bits), layout.num_observables), layout)


class GlobalDecoder(Protocol):
    """Any decoder of whole syndromes, for example ``pymatching.Matching``."""

    def decode_batch(self, shots: np.ndarray) -> np.ndarray:
        """Observables [B, O] for detectors [B, N]."""
        ...


class Completer:
    """Solves residual syndromes exactly: minimum-weight perfect matching, or a decoder that you bring.

    Args:
        dem: Stim's error model, decomposed.
        global_decoder: ``"pymatching"``, or an object with ``decode_batch`` such as learned weights.
        correlated: PyMatching's two-pass correlated matching.

    Raises:
        BadInput: an unknown decoder, or ``correlated`` with a decoder of your own.
    """

    def __init__(
        self, dem: stim.DetectorErrorModel, global_decoder: str | GlobalDecoder = "pymatching", correlated: bool = False
    ) -> None:
        self.num_observables = dem.num_observables
        self.correlated = correlated
        self.decoder: Any
        if global_decoder == "pymatching":
            self.decoder = pymatching.Matching.from_detector_error_model(dem, enable_correlations=correlated)
        elif isinstance(global_decoder, str) or not hasattr(global_decoder, "decode_batch"):
            raise BadInput(f"global_decoder is 'pymatching' or has decode_batch; got {global_decoder!r}")
        elif correlated:
            raise BadInput("correlated=True needs global_decoder='pymatching': it is built from the error model")
        else:
            self.decoder = global_decoder

    def solve(self, detectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Observables [B, O] (uint8), and [B] booleans: was there a solution?"""
        shots = np.ascontiguousarray(detectors, dtype=np.uint8)
        try:
            return self._decode(shots), np.ones(len(shots), dtype=bool)
        except ValueError:  # PyMatching's word for a syndrome that no set of errors makes
            found = np.zeros((len(shots), self.num_observables), dtype=np.uint8)
            solved = np.zeros(len(shots), dtype=bool)
            for i in range(len(shots)):
                try:
                    found[i], solved[i] = self._decode(shots[i : i + 1])[0], True
                except ValueError:
                    continue
            return found, solved

    def _decode(self, shots: np.ndarray) -> np.ndarray:
        if self.correlated:
            answer = self.decoder.decode_batch(shots, enable_correlations=True)
        else:
            answer = self.decoder.decode_batch(shots)
        answer = np.asarray(answer, dtype=np.uint8)
        if answer.shape != (len(shots), self.num_observables):
            raise BadInput(
                f"the global decoder answered {answer.shape} for {len(shots)} shots and "
                f"{self.num_observables} observables"
            )
        return answer


@dataclass(frozen=True)
class Decoded:
    """What a pipeline found.

    Attributes:
        observables: [B, O] uint8, predicted flips.
        residual: [B, N] uint8, what the global decoder was given (the original where it fell back).
        frame: [B, O] uint8, what the local corrections account for (0 where it fell back).
        fell_back: [B] booleans, shots decoded by plain matching.
    """

    observables: np.ndarray
    residual: np.ndarray
    frame: np.ndarray
    fell_back: np.ndarray


class Pipeline:
    """A proposer before a global decoder; a drop-in for PyMatching and for sinter.

    Args:
        proposer: where corrections come from.
        experiment: whose shots are decoded; ``None`` if only :meth:`compile_decoder_for_dem` will be used.
        global_decoder: as in :class:`Completer`.
        correlated: as in :class:`Completer`.

    Raises:
        BadInput: as :class:`Completer`.
    """

    def __init__(
        self,
        proposer: Proposer,
        experiment: SurfaceMemory | None = None,
        global_decoder: str | GlobalDecoder = "pymatching",
        correlated: bool = False,
    ) -> None:
        self.proposer, self.global_decoder, self.correlated = proposer, global_decoder, correlated
        self._compiled: CompiledPipeline | None = None
        if experiment is not None:
            completer = Completer(experiment.dem, global_decoder, correlated)
            self._compiled = CompiledPipeline(proposer, experiment.layout, completer)

    def decode(self, detectors: Any) -> Decoded:
        """Decodes [B, N] detectors of the experiment and says how.

        Raises:
            BadInput: another shape, or a pipeline without experiment.
        """
        return self._ready().decode(detectors)

    def decode_batch(self, detectors: Any, *, bit_packed_shots: bool = False) -> np.ndarray:
        """Predicted observables [B, O] (uint8).

        Args:
            detectors: [B, N] of 0 and 1, or with ``bit_packed_shots`` [B, ceil(N / 8)] uint8, little-endian bits.
            bit_packed_shots: as in PyMatching.
        """
        ready = self._ready()
        if bit_packed_shots:
            detectors = unpack_bits(detectors, ready.layout.num_detectors)
        return ready.decode(detectors).observables

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledPipeline:
        """sinter's entry point: layout, observables and weights are read from the error model alone."""
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # sinter runs one worker a core
        return CompiledPipeline(self.proposer, read_layout(dem), Completer(dem, self.global_decoder, self.correlated))

    def _ready(self) -> CompiledPipeline:
        if self._compiled is None:
            raise BadInput("this pipeline has no experiment; give one: net.pipeline(experiment)")
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        # A worker compiles for its own error model; a compiled matching does not travel.
        return {**self.__dict__, "_compiled": None}


class CompiledPipeline:
    """A pipeline ready for one layout; has the interface of ``sinter.CompiledDecoder``."""

    def __init__(self, proposer: Proposer, layout: DetectorLayout, completer: Completer) -> None:
        self.proposer, self.layout, self.completer = proposer, layout, completer

    def decode(self, detectors: Any) -> Decoded:
        """Decodes [B, N] detectors: propose, verify, complete, fall back."""
        bits = as_bits(detectors, self.layout.num_detectors, "detectors").cpu()
        proposal = self.proposer.propose(bits, self.layout)
        good = verify(bits, proposal).cpu().numpy()
        original, residual = bits.numpy(), proposal.residual.cpu().numpy()
        residual = residual if good.all() else np.where(good[:, None], residual, original)
        found, solved = self.completer.solve(residual)
        again = np.flatnonzero(good & ~solved)
        if len(again):
            residual = residual.copy()
            residual[again], good[again] = original[again], False
            found[again], solved[again] = self.completer.solve(original[again])
        if not solved.all():
            raise BadInput(
                f"{int((~solved).sum())} of {len(bits)} shots hold detectors that no set of errors of this model "
                f"lights (first: shot {int(np.flatnonzero(~solved)[0])}); shots and model do not belong together"
            )
        frame = proposal.frame.cpu().numpy() * good[:, None].astype(np.uint8)
        return Decoded(found ^ frame, residual, frame, ~good)

    def decode_shots_bit_packed(self, *, bit_packed_detection_event_data: np.ndarray) -> np.ndarray:
        """Bit-packed observables [B, ceil(O / 8)] for bit-packed detectors [B, ceil(N / 8)]."""
        shots = unpack_bits(bit_packed_detection_event_data, self.layout.num_detectors)
        return np.packbits(self.decode(shots).observables, axis=1, bitorder="little")


def unpack_bits(packed: Any, count: int) -> np.ndarray:
    """[B, count] uint8 from [B, ceil(count / 8)] little-endian bytes.

    Raises:
        BadInput: another width or type.
    """
    values = np.asarray(packed)
    if values.dtype != np.uint8 or values.ndim != 2 or values.shape[1] != -(-count // 8):
        raise BadInput(
            f"bit-packed detectors must be [shots, {-(-count // 8)}] uint8 for {count} detectors; "
            f"got {list(values.shape)} {values.dtype}"
        )
    return np.unpackbits(values, axis=1, count=count, bitorder="little")
