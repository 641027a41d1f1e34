"""Travelling-salesman tours by diffusion over the tour's 0/1 matrix, FloydNet as the denoiser (arXiv:2601.19094).

Shapes: B instances, N cities (padded), K samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.floydnet.network import FloydNet, tuple_mask_of

__all__ = [
    "BestOf",
    "DiffusionTour",
    "TourAnswer",
    "TourSchedule",
    "best_of",
    "read_tour",
    "tour_length",
    "tour_matrix",
]


@dataclass(frozen=True)
class TourSchedule:
    """The share of signal left at step t of T, and how steps are drawn for training and visited for sampling.

    .. math:: \\bar\\alpha_t = \\frac{\\sigma(b) - \\sigma(a + (b - a) t / T)}{\\sigma(b) - \\sigma(a)}

    Attributes:
        steps: T; start, end: a and b; sampling_steps: visited when sampling, evenly spaced.
    """

    steps: int = 10_000
    start: float = -4.0
    end: float = 4.0
    sampling_steps: int = 50

    def __post_init__(self) -> None:
        if self.sampling_steps < 1 or self.steps % self.sampling_steps:
            raise BadInput(f"sampling_steps must divide steps; got {self.sampling_steps} and {self.steps}")

    def signal(self, step: Tensor) -> Tensor:
        """alpha-bar at each step: 1 at step 0, 0 at step T."""
        low, high = (1 / (1 + math.exp(-x)) for x in (self.start, self.end))
        here = torch.sigmoid(self.start + (self.end - self.start) * step.double() / self.steps)
        return ((high - here) / (high - low)).clamp(0, 1)

    def draw(self, count: int, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
        """Steps 1..T with density proportional to 1 + 8 (t / T)^8: mostly even, the noisiest more often."""
        steps = torch.arange(1, self.steps + 1, dtype=torch.double, device=device)
        density = 1 + 8 * (steps / self.steps) ** 8
        return torch.multinomial(density, count, replacement=True, generator=generator) + 1


@dataclass(frozen=True)
class TourAnswer:
    """What ``solve`` found. ``tour`` is None when no sample was a tour: nothing is repaired.

    Attributes:
        tour: order of the cities, or None; length: its length, or infinity.
        samples, valid_samples: how many were drawn, and how many of them were tours.
        lengths: of every sample in the order drawn, infinity where it was no tour.
    """

    tour: tuple[int, ...] | None
    length: float
    samples: int
    valid_samples: int
    lengths: tuple[float, ...]


@dataclass(frozen=True)
class BestOf:
    """Share of instances solved to optimality by the best of the first k samples, and the share with any valid tour."""

    k: int
    optimal: float
    valid: float


class DiffusionTour(nn.Module):
    """Trains and samples a FloydNet that predicts a tour's matrix from a noisy one.

    Args:
        model: a ``FloydNet(edge_vocab=..., levels=("edge",), out_dim=1, diffusion=True)``; distances are looked up in
            its edge table, so they are integers below ``edge_vocab`` (the paper: 220 rows for distances up to 200).
        schedule: noise schedule.

    Raises:
        BadInput: a model without a diffusion input or with another read-out.
    """

    def __init__(self, model: FloydNet, schedule: TourSchedule | None = None) -> None:
        super().__init__()
        if model.embedding.noise is None or "edge" not in model.levels or len(model.embedding.edge_tables) != 1:
            raise BadInput("DiffusionTour needs FloydNet(edge_vocab=220, levels=('edge',), out_dim=1, diffusion=True)")
        if model.heads["edge"][-1].out_features != 1:  # type: ignore[index]
            raise BadInput("DiffusionTour needs a FloydNet with out_dim=1: one number a pair")
        self.model, self.schedule = model, schedule or TourSchedule()

    def loss(
        self,
        dist_BNN: Tensor,
        tour_BNN: Tensor,
        mask_BN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """N x the mean squared error of the predicted matrix at drawn noise levels, averaged over instances.

        Args:
            dist_BNN: integer distances; tour_BNN: 0/1 symmetric tour matrices; mask_BN: real cities.
            generator: draws steps and noise; must live on the tensors' device.
        """
        if dist_BNN.shape != tour_BNN.shape:
            raise BadInput(f"distances {tuple(dist_BNN.shape)} and tours {tuple(tour_BNN.shape)} must agree")
        if mask_BN is None:
            mask_BN = torch.ones(dist_BNN.shape[:2], dtype=torch.bool, device=dist_BNN.device)
        steps_B = self.schedule.draw(len(dist_BNN), generator, dist_BNN.device)
        clean_BNN = tour_BNN.to(_dtype(self.model))
        noise_BNN = torch.randn(clean_BNN.shape, generator=generator, device=clean_BNN.device, dtype=clean_BNN.dtype)
        signal_B11 = self.schedule.signal(steps_B).to(clean_BNN.dtype)[:, None, None]
        noisy_BNN = signal_B11.sqrt() * clean_BNN + (1 - signal_B11).sqrt() * noise_BNN
        predicted_BNN = self._predict(dist_BNN, noisy_BNN, steps_B, mask_BN)
        pair_mask = tuple_mask_of(mask_BN, 2)
        cities_B = mask_BN.sum(dim=1)
        squared_B = ((predicted_BNN - clean_BNN).square() * pair_mask).sum(dim=(1, 2))
        return (squared_B / cities_B.clamp(min=1)).mean()  # N x mean over N^2 pairs

    @torch.no_grad()
    def sample(
        self, dist_NN: Tensor | NDArray[np.generic], samples: int = 10, seed: int = 0, batch: int = 16
    ) -> Tensor:
        """Draws symmetric 0/1 matrices [K, N, N] for one instance; whether each is a tour is for ``read_tour`` to say.

        From pure noise through ``sampling_steps`` steps of the stochastic DDIM update (eta = 1), thresholded at 0.5,
        then made symmetric by OR. Sample number s depends on the seed and s only, not on ``samples`` or ``batch``.
        """
        if samples < 1:
            raise BadInput(f"samples must be at least 1; got {samples}")
        device, dtype = next(self.model.parameters()).device, _dtype(self.model)
        dist_1NN = _check_distances(dist_NN)[None].to(device)
        was_training = self.model.training
        self.model.eval()
        try:
            drawn = []
            for start in range(0, samples, batch):
                numbers = range(start, min(start + batch, samples))
                generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
                drawn.append(self._denoise(dist_1NN.expand(len(numbers), -1, -1), generators, dtype))
        finally:
            self.model.train(was_training)
        return torch.cat(drawn)

    def solve(
        self, dist_NN: Tensor | NDArray[np.generic], samples: int = 10, seed: int = 0, batch: int = 16
    ) -> TourAnswer:
        """The shortest valid tour among independent samples; none is repaired, so there may be none."""
        dist = _check_distances(dist_NN).cpu().numpy()
        matrices = self.sample(dist_NN, samples, seed, batch).cpu().numpy()
        tours = [read_tour(matrix) for matrix in matrices]
        lengths = tuple(math.inf if tour is None else tour_length(dist, tour) for tour in tours)
        best = int(np.argmin(lengths))
        valid = sum(tour is not None for tour in tours)
        return TourAnswer(tours[best], lengths[best], samples, valid, lengths)

    def _predict(self, dist_BNN: Tensor, noisy_BNN: Tensor, steps_B: Tensor, mask_BN: Tensor | None) -> Tensor:
        signal_B = self.schedule.signal(steps_B).clamp(1e-12, 1 - 1e-12)
        log_snr_B = torch.log10(signal_B / (1 - signal_B)).to(noisy_BNN.dtype)
        size = dist_BNN.shape[1]
        adj = torch.ones(size, size, dtype=torch.long, device=dist_BNN.device).fill_diagonal_(0).expand_as(dist_BNN)
        out = self.model(adj, edge_attr=dist_BNN, mask=mask_BN, noisy=noisy_BNN, log_snr=log_snr_B)
        predicted_BNN: Tensor = out.edge.squeeze(-1)
        return predicted_BNN

    def _denoise(self, dist_BNN: Tensor, generators: Sequence[torch.Generator], dtype: torch.dtype) -> Tensor:
        device, shape = dist_BNN.device, dist_BNN.shape[1:]

        def noise() -> Tensor:
            return torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in generators]).to(device)

        state = noise()
        stride = self.schedule.steps // self.schedule.sampling_steps
        for step in range(self.schedule.steps, 0, -stride):
            steps_B = torch.full((len(state),), step, device=device)
            now, then = (float(self.schedule.signal(torch.tensor(s))) for s in (step, step - stride))
            clean = self._predict(dist_BNN, state, steps_B, None)
            residual = (state - math.sqrt(now) * clean) / math.sqrt(max(1 - now, 1e-12))
            fresh = math.sqrt(max((1 - then) / max(1 - now, 1e-12) * (1 - now / max(then, 1e-12)), 0.0))
            kept = math.sqrt(max(1 - then - fresh**2, 0.0))
            state = math.sqrt(then) * clean + kept * residual + fresh * noise()
        chosen = state > 0.5
        return (chosen | chosen.mT).long()


def read_tour(matrix: NDArray[np.generic]) -> tuple[int, ...] | None:
    """The tour that a symmetric 0/1 matrix describes, from city 0; None unless it is one cycle through every city."""
    matrix = np.asarray(matrix)
    size = len(matrix)
    if size < 3 or matrix.diagonal().any() or (matrix != matrix.T).any() or (matrix.sum(axis=1) != 2).any():
        return None
    tour, previous, here = [0], -1, 0
    while True:
        following = [int(city) for city in np.flatnonzero(matrix[here]) if city != previous]
        previous, here = here, following[0]
        if here == 0:
            return tuple(tour) if len(tour) == size else None
        tour.append(here)


def tour_matrix(tour: Sequence[int]) -> NDArray[np.int64]:
    """The symmetric 0/1 matrix of a tour."""
    matrix = np.zeros((len(tour), len(tour)), dtype=np.int64)
    cities, following = np.asarray(tour), np.roll(np.asarray(tour), -1)
    matrix[cities, following] = matrix[following, cities] = 1
    return matrix


def tour_length(dist: NDArray[np.generic], tour: Sequence[int]) -> float:
    """The length of a closed tour under a (possibly asymmetric) distance matrix."""
    cities = np.asarray(tour)
    return float(np.asarray(dist)[cities, np.roll(cities, -1)].sum())


def best_of(
    lengths: Sequence[Sequence[float]], optima: Sequence[float], ks: Sequence[int] = (1, 5, 10)
) -> tuple[BestOf, ...]:
    """Scores samples honestly: for each k the first k samples of an instance count, in the order drawn.

    An instance is solved when some valid sample is no longer than the optimum (ties in length count, whatever the
    edges); an invalid sample is a failure, given as an infinite length.

    Raises:
        BadInput: an instance with fewer samples than the largest k, or lengths and optima of different number.
    """
    if len(lengths) != len(optima) or not lengths:
        raise BadInput(f"one optimum an instance is needed; got {len(lengths)} instances and {len(optima)} optima")
    fewest = min(len(row) for row in lengths)
    if max(ks) > fewest or min(ks) < 1:
        raise BadInput(f"best-of-k needs k from 1 to the number of samples; got k={tuple(ks)} with {fewest} samples")
    scores = []
    for k in ks:
        best = np.array([min(row[:k]) for row in lengths])
        optimal = best <= np.asarray(optima, dtype=float) * (1 + 1e-12) + 1e-12
        scores.append(BestOf(k, float(optimal.mean()), float(np.isfinite(best).mean())))
    return tuple(scores)


def _check_distances(dist: Tensor | NDArray[np.generic]) -> Tensor:
    dist = torch.as_tensor(dist)
    if dist.dim() != 2 or dist.shape[0] != dist.shape[1]:
        raise BadInput(f"distances must be a square matrix; got shape {tuple(dist.shape)}")
    if len(dist) < 3:
        raise BadInput(f"a tour needs at least 3 cities; got {len(dist)}")
    if not bool((dist == dist.T).all()):
        raise BadInput("distances must be symmetric: a tour is read from a symmetric matrix")
    return dist


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
