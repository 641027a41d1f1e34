"""What must be exact: labels as an oracle, equivalences, the pipeline's book-keeping, blocks against the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from heliograph.graphs.surface_predecoder import (
    CircuitNoise,
    Completer,
    DetectorLayout,
    LabelledShots,
    NoProposal,
    Pipeline,
    PreDecoder,
    Proposal,
    StimNoise,
    SurfaceMemory,
    random_equivalent,
    verify,
)
from heliograph.trials.check import Context

__all__ = ["OracleProposer", "measure"]

NEAR_ZERO = 1e-4


class OracleProposer:
    """Proposes the errors that were simulated."""

    def __init__(self, shots: LabelledShots) -> None:
        self.shots = shots

    def propose(self, detectors: Any, layout: DetectorLayout) -> Proposal:
        """The labels of the same shots."""
        return Proposal.of(detectors, self.shots.data, self.shots.measured, layout)


def measure(context: Context) -> Mapping[str, Any]:
    """Rows of booleans, one a case.

    ``oracle``: labels leave no detector and no logical error, raw, canonical and after random equivalences.
    ``pipeline``: without proposals the pipeline is PyMatching bit for bit; with a network's, every proposal verifies.
    ``blocks``: a network's logits block by block are those of the whole.
    ``notices``: a spoiled proposal is not verified.
    """
    load = context.workload
    oracle, pipeline, blocks, notices = [], [], [], []
    bases: tuple[Literal["x", "z"], ...] = ("x", "z")
    cases = [(d, t, b, n) for d, t in load["codes"] for b in bases for n in ("stim", "circuit")]
    for number, (distance, rounds, basis, kind) in enumerate(cases):
        experiment = make_experiment(distance, rounds, basis, kind, load["noise"])
        raw = experiment.sample_labels(load["shots"], context.seed + number, canonical=False)
        oracle += [_explains(s, experiment) for s in _equivalents(raw, experiment, context.seed)]
        matched = Completer(experiment.dem).solve(raw.detectors.numpy())[0]
        alone = Pipeline(NoProposal(), experiment).decode(raw.detectors)
        pipeline.append(bool((alone.observables == matched).all()) and not alone.fell_back.any())
        network = spread_network(context.seed + number)
        proposal = network.propose(raw.detectors, experiment.layout)
        pipeline.append(bool(verify(raw.detectors, proposal).all()))
        pipeline.append(not network.pipeline(experiment).decode(raw.detectors).fell_back.any())
        blocks.append(_blocks_agree(network, raw.detectors, experiment.layout))
        notices.append(_notices(raw, experiment))
        context.progress((number + 1) / len(cases), f"d = {distance}, T = {rounds}, basis {basis}, {kind} noise")
    context.say(f"labels explain their shots in {sum(oracle)} of {len(oracle)} cases")
    context.say(f"pipelines are exact in {sum(pipeline)} of {len(pipeline)} cases")
    return {"oracle": oracle, "pipeline": pipeline, "blocks": blocks, "notices": notices}


def make_experiment(distance: int, rounds: int, basis: Literal["x", "z"], kind: str, p: float) -> SurfaceMemory:
    """A memory experiment at rate ``p`` of Stim's generated noise, or of the 25-rate circuit noise."""
    return SurfaceMemory(distance, rounds, basis, StimNoise.uniform(p) if kind == "stim" else CircuitNoise.uniform(p))


def spread_network(seed: int) -> PreDecoder:
    """An untrained network whose answers are neither all yes nor all no."""
    network = PreDecoder((8, 8), seed=seed).eval()
    with torch.no_grad():
        list(network.parameters())[-1].zero_()  # the last layer's bias, which says "no" at first
    return network


def _equivalents(raw: LabelledShots, experiment: SurfaceMemory, seed: int) -> list[LabelledShots]:
    layout = experiment.layout
    other = random_equivalent(raw.data, raw.measured, layout, torch.Generator().manual_seed(seed))
    moved = LabelledShots(raw.detectors, raw.observables, *other)
    return [raw, raw.canonical(layout), moved, moved.canonical(layout)]


def _explains(shots: LabelledShots, experiment: SurfaceMemory) -> bool:
    decoded = Pipeline(OracleProposer(shots), experiment).decode(shots.detectors)
    return (
        not decoded.residual.any()
        and bool((decoded.observables == shots.observables.numpy()).all())
        and not decoded.fell_back.any()
    )


def _blocks_agree(network: PreDecoder, detectors: Tensor, layout: DetectorLayout) -> bool:
    whole = network.logits(detectors, layout)
    parts = network.logits(detectors, layout, block=(2, 3, 2))
    return bool(torch.allclose(whole, parts, atol=NEAR_ZERO))


def _notices(raw: LabelledShots, experiment: SurfaceMemory) -> bool:
    """One flipped bit of the residual, and one of the frame, must fail to verify."""
    proposal = Proposal.of(raw.detectors, raw.data, raw.measured, experiment.layout)
    residual, frame = proposal.residual.clone(), proposal.frame.clone()
    residual[0, 0] ^= 1
    frame[1, 0] ^= 1
    spoiled = Proposal(proposal.data, proposal.measured, residual, frame, proposal.layout)
    return bool(verify(raw.detectors, spoiled).tolist() == [False, False] + [True] * (len(residual) - 2))
