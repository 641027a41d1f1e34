"""Whole networks on the same batch: a training step of each, against GPS built of PyTorch Geometric's ``GPSConv``.

Interleaved in one process; memory in fresh processes on Linux, or from the allocator on a GPU. Widths are chosen so
that all have GPS's number of parameters within 5 %; walk encodings are computed beforehand. Graphs are rings with
chords, of the size of molecules (23 vertices) and of peptides (200). ``graphs_attention.py`` has mesh attention beside
PyG's ``TransformerConv``, ``graphs_layers.py`` single layers beside their nearest of PyG.

Run it with ``OMP_NUM_THREADS=1 python benchmarks/graphs_models.py``; ``--output FILE`` writes the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.core.train import encoded
from heliograph.graphs.models import MODELS, Shape, build_model

NAMES = ("gps", "gnn_plus", "grit", "graph_mamba", "floydnet", "gcn")
SIZES = {23: 64, 200: 8}  # vertices a graph: graphs a batch
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


def make_step(name: str, vertices: int, device: str) -> tuple[Callable[[], None], int]:
    model = make_matched(name).to(device)
    graphs = encoded(model, make_graphs(vertices, SIZES[vertices]), use_cache=False)
    batch = Batch.from_data_list(graphs).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (model(batch) - batch.y).abs().mean().backward()
        optimiser.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step, count_parameters(model)


def peak_bytes(name: str, vertices: int, device: str) -> int:
    """The peak of three steps above what model, inputs and libraries hold."""
    if device != "cpu":
        step, _ = make_step(name, vertices, device)
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, __file__, "--measure-memory", name, str(vertices)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, vertices: int) -> int:
    small = next(iter(SIZES))
    if vertices != small:
        make_step(name, small, "cpu")[0]()  # libraries load what they need before the measurement
    step, _ = make_step(name, vertices, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = high_water_bytes()
    for _ in range(3):
        step()
    return high_water_bytes() - before


def high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure(vertices: int, device: str, repeats: int) -> list[dict[str, Any]]:
    names = [name for name in NAMES if (name, vertices) not in TOO_LARGE or device != "cpu"]
    made = {name: make_step(name, vertices, device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 2):
        for name, (step, _) in made.items():
            start = time.perf_counter()
            step()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    peaks = {name: peak_bytes(name, vertices, device) for name in names}
    return [
        {
            "model": name,
            "vertices": vertices,
            "graphs": SIZES[vertices],
            "parameters": made[name][1],
            "seconds": statistics.median(times[name]),
            "peak_bytes": peaks[name],
            "time_over_gps": statistics.median(b / a for a, b in zip(times["gps"], times[name], strict=True)),
            "memory_over_gps": peaks[name] / max(1, peaks["gps"]),
        }
        for name in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure-memory", nargs=2, metavar=("NAME", "VERTICES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print(measure_memory(options.measure_memory[0], int(options.measure_memory[1])))
        return
    rows = []
    print(f"{options.device}: forward, backward and update, {SHAPE.layers} layers, float32")
    for vertices in SIZES:
        print(f"{SIZES[vertices]} graphs of {vertices} vertices")
        for row in measure(vertices, options.device, options.repeats):
            rows.append(row)
            print(
                f"  {row['model']:>12} {row['parameters']:>9,} parameters {row['seconds'] * 1e3:>9.1f} ms "
                f"{row['peak_bytes'] / 2**20:>8.1f} MiB | {row['time_over_gps']:.2f}x the time, "
                f"{row['memory_over_gps']:.2f}x the memory of GPS"
            )
    if options.output is not None:
        name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
        options.output.write_text(
            json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
