"""Pre-decoders for surface codes: detectors exchange features with their neighbours, a global decoder takes the rest.

A small 3-D convolutional network reads a rotated code's syndrome over space and time and proposes local corrections;
the sparse residual goes to minimum-weight matching. Source: arXiv:2604.12841.

``lattice`` holds the geometry and the grid, ``circuits`` and ``memory`` the experiments and their labels, ``labels``
the canonical forms, ``network`` and ``training`` the pre-decoder, ``proposal`` the pipeline with its exact completion,
``weights`` matching weights learned from syndromes, ``checkpoint`` and ``sinter_decoders`` the way to files and sinter.
"""

from __future__ import annotations

from heliograph.errors import MissingExtra

try:
    from heliograph.graphs.surface_predecoder.circuits import CircuitNoise, StimNoise
    from heliograph.graphs.surface_predecoder.labels import (
        canonicalize_spacelike,
        canonicalize_timelike,
        random_equivalent,
    )
    from heliograph.graphs.surface_predecoder.lattice import (
        DetectorLayout,
        RotatedLattice,
        detectors_to_grid,
        grid_to_detectors,
        logical_frame,
        presence,
        syndrome_of,
    )
    from heliograph.graphs.surface_predecoder.memory import LabelledShots, SurfaceMemory, read_layout
    from heliograph.graphs.surface_predecoder.network import PreDecoder
    from heliograph.graphs.surface_predecoder.proposal import Completer, NoProposal, Pipeline, Proposal, verify
    from heliograph.graphs.surface_predecoder.sinter_decoders import sinter_decoders
    from heliograph.graphs.surface_predecoder.weights import (
        EdgeEstimate,
        MatchingGraph,
        estimate_edges,
        learn_edge_weights,
    )
except ModuleNotFoundError as error:
    if error.name in ("stim", "pymatching", "safetensors"):
        raise MissingExtra(error.name, "graphs") from error
    raise

__all__ = [
    "CircuitNoise",
    "Completer",
    "DetectorLayout",
    "EdgeEstimate",
    "LabelledShots",
    "MatchingGraph",
    "NoProposal",
    "Pipeline",
    "PreDecoder",
    "Proposal",
    "RotatedLattice",
    "StimNoise",
    "SurfaceMemory",
    "canonicalize_spacelike",
    "canonicalize_timelike",
    "detectors_to_grid",
    "estimate_edges",
    "grid_to_detectors",
    "learn_edge_weights",
    "logical_frame",
    "presence",
    "random_equivalent",
    "read_layout",
    "sinter_decoders",
    "syndrome_of",
    "verify",
]
