"""Sizes, the time of an optimiser step on one mesh, and one step on a very large mesh."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.spatial import Delaunay

from heliograph.checks.graphs.mesh_transformer_parts.learning import build_simulator
from heliograph.data.flow_solver import channel_mesh
from heliograph.data.mesh import CHANNEL_TYPES, MeshSchema, MeshTrajectory, edges_of_cells, mesh_trajectory
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer import MeshTransformer
from heliograph.graphs.mesh_transformer.supports import adjacency, khop
from heliograph.trials.check import Context

__all__ = ["measure_large_mesh", "measure_size", "measure_steps"]

GIB = 2**30
SCHEMA = MeshSchema(("velocity_x", "velocity_y"), 2)


def measure_size(context: Context) -> Mapping[str, Any]:
    """Trainable numbers of an arm."""
    name = context.contender.removesuffix(", again")
    return {"parameters": count_parameters(build_simulator(name, SCHEMA, context.workload, context.seed).model)}


def measure_steps(context: Context) -> Mapping[str, Callable[[], None]]:
    """Training steps on the same mesh, forward, backward and update, for each arm."""
    load = context.workload
    flow, small = (_random_flow(vertices, context.seed) for vertices in (load["vertices"], 100))
    context.say(f"{flow.num_vertices:,} vertices, {flow.edge_index.shape[1]:,} directed edges")

    def stepper(name: str) -> Callable[[], None]:
        simulator = build_simulator(name.removesuffix(", again"), flow.schema, load, context.seed).to(context.device)
        optimiser = torch.optim.AdamW(simulator.parameters(), lr=1e-5, fused=True)

        def steps_on(one: MeshTrajectory) -> Callable[[], None]:
            frame = simulator.mesh_of(one)
            now, ahead = torch.from_numpy(one.fields).to(context.device)

            def run() -> None:
                for _ in range(load["steps"]):
                    optimiser.zero_grad(set_to_none=True)
                    wanted = simulator.change_normaliser(ahead - now)
                    (simulator(frame, now) - wanted)[frame.free].square().mean().backward()
                    torch.nn.utils.clip_grad_norm_(simulator.parameters(), 1.0)
                    optimiser.step()

            return run

        steps_on(small)()  # what a first step costs once (lazy imports, compiled kernels) is not measured
        return steps_on(flow)

    return {name: stepper(name) for name in load["arms"]}


def measure_large_mesh(context: Context) -> Mapping[str, Any]:
    """One forward and backward pass of the transformer on a random triangulation with two hops."""
    load = context.workload
    random = np.random.default_rng(context.seed)
    begin = time.perf_counter()
    points = random.random((load["vertices"], 2))
    edges = torch.from_numpy(edges_of_cells(Delaunay(points).simplices.astype(np.int64), len(points)))
    support = khop(load["hops"]).build(edges, len(points)).to(context.device)
    mesh = adjacency().build(edges[:, :0], len(points)).to(context.device)
    prepared = time.perf_counter() - begin
    torch.manual_seed(context.seed)
    model = MeshTransformer(12, 3, hidden=64, layers=10).to(context.device)
    x = torch.randn(len(points), 12, device=context.device)
    _pass(model, x, support)  # kernels are compiled
    context.reset_memory()
    _wait(context.device)
    begin = time.perf_counter()
    finite = _pass(model, x, support)
    _wait(context.device)
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / GIB if context.device == "cuda" else 0.0
    context.say(
        f"{len(points):,} vertices, {support.num_edges:,} directed edges: support in {prepared:.1f} s, forward and "
        f"backward in {seconds:.3f} s, peak {peak:.1f} GiB"
    )
    return {
        "pass_seconds": seconds,
        "peak_gib": peak,
        "edges": support.num_edges,
        "finite": [finite],
        "hears": [_spread(model, x, support) > 1, _spread(model, x, mesh) == 1],
    }


def _random_flow(vertices: int, seed: int) -> MeshTrajectory:
    """Two frames of random numbers on a channel's mesh: a step costs the same whatever the fields are."""
    random = np.random.default_rng(seed)
    mesh = channel_mesh(vertices, random)
    fields = random.normal(size=(2, len(mesh.points), 2))
    return mesh_trajectory(mesh.points, mesh.triangles, fields, CHANNEL_TYPES[mesh.part], names=SCHEMA.names)


def _pass(model: MeshTransformer, x: torch.Tensor, support: Support) -> bool:
    model.zero_grad(set_to_none=True)
    out = model(x, support=support)
    out.square().mean().backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(values.isfinite().all()) for values in (out, *slopes))


def _spread(model: MeshTransformer, x: torch.Tensor, support: Support) -> int:
    """On how many vertices' inputs the answer of the first vertex depends."""
    inputs = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs, support=support)[0].sum(), inputs)
    return int((slope != 0).any(1).sum())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
