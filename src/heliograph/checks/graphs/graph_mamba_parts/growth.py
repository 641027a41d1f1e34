"""How the cost of a training step grows with the number of vertices: bytes that autograd keeps, and seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heliograph.checks.graphs.graph_mamba_parts.arms import GPS
from heliograph.graphs.graph_mamba import GraphMamba, WalkTokens
from heliograph.trials.check import Context

__all__ = ["measure_growth", "measure_large", "regular_graph", "saved_bytes"]

IN_DIM = 8


def measure_growth(context: Context) -> Mapping[str, Any]:
    """``exponent``: the slope of log bytes over log vertices; ``seconds_exponent``: the same for time."""
    load = context.workload
    model = _model(context.contender, load, context.seed).to(context.device).train()
    vertices, kept, seconds = [], [], []
    for vertices_each, graphs in zip(load["vertices"], load["graphs"], strict=True):
        batch = _batch(vertices_each, graphs, load, context.seed).to(context.device)
        kept.append(saved_bytes(model, batch))
        vertices.append(vertices_each * graphs)
        seconds.append(min(_step_seconds(model, batch) for _ in range(3)))
        context.progress(len(kept) / len(load["vertices"]), f"{vertices[-1]} vertices: {kept[-1] / 2**20:.1f} MiB")
    context.keep("growth", {"vertices": vertices, "bytes": kept, "seconds": seconds})
    return {
        "exponent": _slope(vertices, kept),
        "seconds_exponent": _slope(vertices, seconds),
        "bytes": float(kept[-1]),
        "step_seconds": seconds[-1],
    }


def measure_large(context: Context) -> Mapping[str, Any]:
    """Whether one training step on a large graph fits the device, and its seconds."""
    load = context.workload
    model = _model(context.contender, load, context.seed).to(context.device).train()
    batch = _batch(load["vertices"][0], 1, load, context.seed).to(context.device)
    try:
        _step_seconds(model, batch)
        seconds = _step_seconds(model, batch)
    except torch.OutOfMemoryError:
        return {"fits": False}
    return {"fits": True, "step_seconds": seconds}


def saved_bytes(model: nn.Module, data: Any) -> int:
    """Bytes of all storages that autograd keeps between the passes, without the parameters', each counted once."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        answer = model(data)
    total = sum(kept.values())
    del answer
    return total


def regular_graph(vertices: int, seed: int) -> Tensor:
    """Three random perfect matchings, both directions, [2, 3 n]; n even."""
    random = torch.Generator().manual_seed(seed)
    halves = [torch.randperm(vertices, generator=random).view(2, -1) for _ in range(3)]
    return torch.cat([torch.cat([pair, pair.flip(0)], dim=1) for pair in halves], dim=1)


def _batch(vertices: int, graphs: int, load: Any, seed: int) -> Any:
    from torch_geometric.data import Batch, Data

    tokens = WalkTokens(load["m"], load["walks"], load["samples"], seed)
    made = []
    for number in range(graphs):
        random = torch.Generator().manual_seed(seed + number)
        x = torch.randn(vertices, IN_DIM, generator=random)
        made.append(tokens(Data(x=x, edge_index=regular_graph(vertices, seed + number))))
    return Batch.from_data_list(made)


def _model(name: str, load: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "graph_mamba":
        options = {key: load[key] for key in ("hidden", "m", "walks", "samples", "state", "global_layers")}
        return GraphMamba(2, in_dim=IN_DIM, mpnn_layers=load["layers"], **options)
    stored = name == "gps, stored scores"
    return GPS(2, in_dim=IN_DIM, layers=load["layers"], hidden=load["hidden"], store_scores=stored)


def _step_seconds(model: nn.Module, data: Any) -> float:
    """Forward and backward once."""
    model.zero_grad(set_to_none=True)
    if data.x.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    model(data).square().mean().backward()
    if data.x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _slope(vertices: list[int], cost: list[float] | list[int]) -> float:
    return float(np.polyfit(np.log(vertices), np.log(cost), 1)[0])
