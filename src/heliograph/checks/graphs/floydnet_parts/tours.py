"""Part D: tours by diffusion on sizes never trained on, against local search given the same seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from heliograph.checks.graphs.contenders import thin
from heliograph.errors import BadInput
from heliograph.graphs.floydnet.network import FloydNet
from heliograph.graphs.floydnet.tour_solvers import best_known_tour, lkh_tour, local_search
from heliograph.graphs.floydnet.tours import DiffusionTour, tour_matrix
from heliograph.trials.check import Context

__all__ = ["draw_distances", "measure"]

LARGEST_DISTANCE = 200
POOL = 4000


def draw_distances(cities: int, random: np.random.Generator) -> np.ndarray:
    """A random symmetric integer matrix with distances from 1 to 200: not metric."""
    upper = np.triu(random.integers(1, LARGEST_DISTANCE + 1, (cities, cities)), 1)
    return np.asarray(upper + upper.T, dtype=np.int64)


def measure(context: Context) -> Mapping[str, Any]:
    """One boolean an instance: was a tour of optimal length found?

    The search arms get the same wall seconds an instance that the network's sampling took, measured by a first sampling
    with the untrained network of the same shape, so that no arm waits for another's record.
    """
    load = context.workload
    random = np.random.default_rng(context.seed + 1)
    least, most = load["test"]
    instances = [draw_distances(least + i % (most - least + 1), random) for i in range(load["instances"])]
    optima = [best_known_tour(dist).length for dist in instances]
    if context.contender != "floydnet":
        seconds = _sampling_seconds(context, instances)
        other = int(context.contender.endswith("again"))
        lengths = [local_search(d, seconds=seconds, seed=2 * i + other).length for i, d in enumerate(instances)]
        return {"optimal": [bool(a <= b) for a, b in zip(lengths, optima, strict=True)], "seconds_each": seconds}
    tour = _train(context)
    answers = [tour.solve(torch.as_tensor(d), samples=load["samples"], seed=context.seed) for d in instances]
    first = [a.lengths[0] <= o for a, o in zip(answers, optima, strict=True)]
    valid = sum(a.valid_samples for a in answers) / (len(answers) * load["samples"])
    context.say(f"{np.mean(first):.0%} optimal with 1 sample; {valid:.0%} of samples are tours")
    return {
        "optimal": [bool(a.length <= o) for a, o in zip(answers, optima, strict=True)],
        "optimal_with_1": [bool(f) for f in first],
        "valid_share": valid,
    }


def _build(context: Context) -> DiffusionTour:
    load = context.workload
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        model = FloydNet(
            edge_vocab=LARGEST_DISTANCE + 20,
            dim=load["width"],
            heads=4,
            depth=load["depth"],
            levels=("edge",),
            out_dim=1,
            diffusion=True,
        )
    return DiffusionTour(model).to(context.device)


def _sampling_seconds(context: Context, instances: list[np.ndarray]) -> float:
    tour = _build(context)
    tour.solve(torch.as_tensor(instances[0]), samples=context.workload["samples"])
    begin = time.perf_counter()
    for dist in instances[:4]:
        tour.solve(torch.as_tensor(dist), samples=context.workload["samples"])
    return (time.perf_counter() - begin) / len(instances[:4])


def _train(context: Context) -> DiffusionTour:
    """Trains for the workload's seconds on instances of the small sizes."""
    load, device = context.workload, context.device
    tour = _build(context)
    pools = _pools(context)
    optimiser = torch.optim.AdamW(tour.parameters(), lr=load["rate"], betas=(0.9, 0.9), weight_decay=0.0)
    random = torch.Generator(device=device).manual_seed(context.seed)
    pick = np.random.default_rng(context.seed)
    begin, losses = time.monotonic(), []
    tour.train()
    while (spent := time.monotonic() - begin) < load["train_s"]:
        dist, matrix = pools[int(pick.integers(len(pools)))]
        rows = torch.as_tensor(pick.integers(0, len(dist), load["batch"]), device=device)
        order = torch.as_tensor(pick.permutation(dist.shape[1]), device=device)
        for group in optimiser.param_groups:  # linear decay to a tenth: the time is short
            group["lr"] = load["rate"] * (1 - 0.9 * spent / load["train_s"])
        optimiser.zero_grad(set_to_none=True)
        loss = tour.loss(dist[rows][:, order][:, :, order], matrix[rows][:, order][:, :, order], generator=random)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(tour.parameters(), 100.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise BadInput(f"the loss became {losses[-1]} at step {len(losses)}")
        context.progress(spent / load["train_s"], f"step {len(losses)}, loss {losses[-1]:.3g}")
    context.say(f"trained {len(losses)} steps in {load['train_s']:.0f} s")
    context.keep("curves", {"training loss": thin(losses)})
    return tour.eval()


def _pools(context: Context) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training instances with the best tours known (LKH), one pool a size; other seeds than the test's."""
    least, most = context.workload["train"]
    random = np.random.default_rng(10_000 + context.seed)
    pools = []
    sizes = range(least, most + 1)
    for cities in sizes:
        dists = [draw_distances(cities, random) for _ in range(POOL // len(sizes))]
        tours = [tour_matrix(lkh_tour(d, runs=2).tour) for d in dists]
        pools.append(
            (torch.as_tensor(np.stack(dists)).to(context.device), torch.as_tensor(np.stack(tours)).to(context.device))
        )
        context.progress(0.0, f"solved training instances of {cities} cities")
    return pools
