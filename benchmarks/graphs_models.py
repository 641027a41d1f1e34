"""Whole networks on the same batch: a training step of each, against GPS built of PyTorch Geometric's ``GPSConv``.

Interleaved in one process; memory in processes of their own on Linux, or from the allocator on a GPU. On a CPU freed
memory is kept for all alike while times are taken, as ``heliograph graphs fit`` does. Widths are chosen so
that all have GPS's number of parameters within 5 %; walk encodings are computed beforehand. Graphs are rings with
chords, of the size of molecules (23 vertices) and of peptides (200). ``graphs_attention.py`` has mesh attention beside
PyG's ``TransformerConv``, ``graphs_layers.py`` single layers beside their nearest of PyG.

Run it with ``OMP_NUM_THREADS=1 python benchmarks/graphs_models.py``; ``--output FILE`` writes the same as JSON.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from graphs_measure import interleaved_seconds, peak_bytes, ratio_to, write_record
from torch import nn
from torch_geometric.data import Batch, Data

from heliograph.graphs.core.heap import keep_freed_memory
from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.core.train import encoded
from heliograph.graphs.models import MODELS, Shape, build_model

NAMES = ("gps", "gnn_plus", "grit", "graph_mamba", "floydnet", "gcn")
SIZES = {23: 64, 200: 4}  # vertices a graph: graphs a batch
TOO_LARGE = {("floydnet", 200)}  # 200^3 pivots a graph: minutes a step
INPUTS = {"out_dim": 1, "node_types": 20, "in_dim": 0, "edge_types": 4, "edge_dim": 0}
SHAPE = Shape(layers=4, hidden=64, walk_steps=16)


def make_graphs(vertices: int, count: int) -> list[Data]:
    random = torch.Generator().manual_seed(0)
    here = torch.arange(vertices)
    graphs = []
    for _ in range(count):
        chords = torch.randint(vertices, (2, max(2, vertices // 10)), generator=random)
        one = torch.cat([torch.stack([here, (here + 1) % vertices]), chords], dim=1)
        edges = torch.cat([one, one.flip(0)], dim=1)
        graphs.append(
            Data(
                x=torch.randint(20, (vertices,), generator=random),
                edge_index=edges,
                edge_attr=torch.randint(4, (edges.shape[1],), generator=random),
                y=torch.randn(1, 1, generator=random),
            )
        )
    return graphs


def make_matched(name: str) -> nn.Module:
    torch.manual_seed(0)
    wanted = count_parameters(build_model("gps", INPUTS, "graph", SHAPE))

    def build(width: int) -> nn.Module:
        return build_model(name, INPUTS, "graph", replace(SHAPE, hidden=width))

    multiple = max(2, MODELS[name].multiple)
    return build(SHAPE.hidden if name == "gps" else match_width(build, wanted, 0.05, multiple=multiple, largest=1024))


def make_step(name: str, vertices: int, device: str, count: int = 0) -> tuple[Callable[[], None], int]:
    model = make_matched(name).to(device)
    graphs = encoded(model, make_graphs(vertices, count or SIZES[vertices]), use_cache=False)
    batch = Batch.from_data_list(graphs).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (model(batch) - batch.y).abs().mean().backward()
        optimiser.step()

    return step, count_parameters(model)


def step_of(name: str, vertices: int, device: str, count: int = 0) -> Callable[[], None]:
    return make_step(name, vertices, device, count)[0]


def names_at(vertices: int, device: str) -> list[str]:
    return [name for name in NAMES if (name, vertices) not in TOO_LARGE or device != "cpu"]


def measure_memory(vertices: int, device: str) -> dict[str, int]:
    small = next(iter(SIZES))
    return {
        name: peak_bytes(partial(step_of, name, vertices, device), partial(step_of, name, small, device, 1), device)
        for name in names_at(vertices, device)
    }


def measure_time(vertices: int, device: str, repeats: int, peaks: dict[str, int]) -> list[dict[str, Any]]:
    made = {name: make_step(name, vertices, device) for name in names_at(vertices, device)}
    times = interleaved_seconds({name: step for name, (step, _) in made.items()}, repeats, 1, device)
    return [
        {
            "model": name,
            "vertices": vertices,
            "graphs": SIZES[vertices],
            "parameters": parameters,
            "seconds": statistics.median(times[name]),
            "peak_bytes": peaks[name],
            "time_over_gps": ratio_to(times, "gps", name),
            "memory_over_gps": peaks[name] / max(1, peaks["gps"]),
        }
        for name, (_, parameters) in made.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    # memory first: a forked process must not take over what earlier steps have freed
    peaks = {vertices: measure_memory(vertices, options.device) for vertices in SIZES}
    kept = options.device == "cpu" and keep_freed_memory()
    rows = []
    print(f"{options.device}: forward, backward and update, {SHAPE.layers} layers, float32")
    for vertices in SIZES:
        print(f"{SIZES[vertices]} graphs of {vertices} vertices")
        for row in measure_time(vertices, options.device, options.repeats, peaks[vertices]):
            rows.append(row)
            print(
                f"  {row['model']:>12} {row['parameters']:>9,} parameters {row['seconds'] * 1e3:>9.1f} ms "
                f"{row['peak_bytes'] / 2**20:>8.1f} MiB | {row['time_over_gps']:.2f}x the time, "
                f"{row['memory_over_gps']:.2f}x the memory of GPS",
                flush=True,
            )
    if options.output is not None:
        settings = {"layers": SHAPE.layers, "repeats": options.repeats, "freed_memory_kept": kept}
        write_record(options.output, options.device, rows, **settings)


if __name__ == "__main__":
    main()
