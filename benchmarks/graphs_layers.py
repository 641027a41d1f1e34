"""Our graph layers against PyTorch Geometric's nearest: time and peak memory of a training step on the same batch.

Interleaved in one process (A B A B); memory in fresh processes (Linux). Run it with
``OMP_NUM_THREADS=1 python benchmarks/graphs_layers.py``; ``--help`` names the sizes.

What is compared: a stack of bare layers with ReLU between, forward and backward and an AdamW update, float32. Ours keep
the edge order and add rows by index; PyG's go through its message-passing base class. ``GatedGCN`` divides by the sum
of the gates and renews edge states, PyG's ``ResGatedGraphConv`` does neither; ``GPSConv`` attends over each whole graph
and is there for scale. Outputs of GCN and GINE are compared in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINEConv, GPSConv, ResGatedGraphConv

from heliograph.graphs.core.blocks import GatedGCNMixer, GCNMixer, GINMixer

PAIRS = {"gcn": ("ours", "GCNConv"), "gine": ("ours", "GINEConv"), "gatedgcn": ("ours", "ResGatedGraphConv", "GPSConv")}


def make_batch(graphs: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rings with chords, 23 vertices and 50 directed edges each: about the size of a molecule."""
    random = torch.Generator().manual_seed(0)
    size = 23
    here = torch.arange(size)
    chords = torch.tensor([[0, 5], [11, 16]])
    one = torch.cat([torch.stack([here, (here + 1) % size]), chords], dim=1)
    one = torch.cat([one, one.flip(0)], dim=1)
    edge_index = torch.cat([one + size * number for number in range(graphs)], dim=1)
    x = torch.randn(size * graphs, dim, generator=random)
    edge = torch.randn(edge_index.shape[1], dim, generator=random)
    return x, edge_index, edge, torch.arange(graphs).repeat_interleave(size)


def mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


def make_layers(kind: str, form: str, dim: int, depth: int) -> nn.ModuleList:
    makers: dict[tuple[str, str], Callable[[], nn.Module]] = {
        ("gcn", "ours"): lambda: GCNMixer(dim),
        ("gcn", "GCNConv"): lambda: GCNConv(dim, dim),
        ("gine", "ours"): lambda: GINMixer(dim, True),
        ("gine", "GINEConv"): lambda: GINEConv(mlp(dim)),
        ("gatedgcn", "ours"): lambda: GatedGCNMixer(dim, True),
        ("gatedgcn", "ResGatedGraphConv"): lambda: ResGatedGraphConv(dim, dim, edge_dim=dim),
        ("gatedgcn", "GPSConv"): lambda: GPSConv(dim, GINEConv(mlp(dim)), heads=4),
    }
    torch.manual_seed(0)
    return nn.ModuleList(makers[kind, form]() for _ in range(depth))


def make_step(kind: str, form: str, options: argparse.Namespace) -> Callable[[], Tensor]:
    x, edge_index, edge, batch = make_batch(options.graphs, options.dim)
    layers = make_layers(kind, form, options.dim, options.depth)
    optimiser = torch.optim.AdamW(layers.parameters(), lr=1e-4)

    def step() -> Tensor:
        hidden, links = x, edge
        for layer in layers:
            if form == "GPSConv":
                hidden = layer(hidden, edge_index, batch, edge_attr=edge)
            elif form == "ours":
                out = layer(hidden, edge_index, links if kind != "gcn" else None)
                hidden, links = out if isinstance(out, tuple) else (out, links)
            else:
                hidden = layer(hidden, edge_index, *((edge,) if kind != "gcn" else ()))
            hidden = torch.relu(hidden)
        optimiser.zero_grad(set_to_none=True)
        hidden.square().mean().backward()
        optimiser.step()
        return hidden

    return step


def check_equal(dim: int) -> None:
    x, edge_index, edge, _ = make_batch(3, dim)
    gcn, gin = GCNMixer(dim), GINMixer(dim, True)
    their_gcn, their_gin = GCNConv(dim, dim), GINEConv(gin.mlp)
    their_gcn.lin.weight, their_gcn.bias = gcn.linear.weight, gcn.bias
    torch.testing.assert_close(gcn(x, edge_index), their_gcn(x, edge_index), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gin(x, edge_index, edge), their_gin(x, edge_index, edge), atol=1e-4, rtol=1e-4)


def peak_bytes(kind: str, form: str, options: argparse.Namespace) -> int:
    """The peak of three steps above what libraries and inputs hold; in a fresh process."""
    sizes = ["--graphs", str(options.graphs), "--dim", str(options.dim), "--depth", str(options.depth)]
    command = [sys.executable, __file__, "--measure-memory", kind, form, *sizes]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(kind: str, form: str, options: argparse.Namespace) -> int:
    small = argparse.Namespace(graphs=1, dim=options.dim, depth=options.depth)
    make_step(kind, form, small)()  # libraries load what they need before the measurement
    step = make_step(kind, form, options)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = high_water_bytes()
    for _ in range(3):
        step()
    return high_water_bytes() - before


def high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--measure-memory", nargs=2, metavar=("KIND", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print(measure_memory(*options.measure_memory, options))
        return
    check_equal(options.dim)
    shape = f"{options.depth} layers x {options.dim} channels, {options.graphs} graphs of 23 vertices"
    print(f"training step, {shape}, float32")
    print(f"{'layer':>10} {'form':>18} {'ms':>8} {'peak MiB':>9} | time and memory over ours (paired median)")
    for kind, forms in PAIRS.items():
        steps = {form: make_step(kind, form, options) for form in forms}
        times: dict[str, list[float]] = {form: [] for form in forms}
        for repeat in range(options.repeats + 2):
            for form, step in steps.items():
                start = time.perf_counter()
                step()
                if repeat >= 2:  # the first two warm up
                    times[form].append(time.perf_counter() - start)
        peaks = {form: peak_bytes(kind, form, options) for form in forms}
        for form in forms:
            ratio = statistics.median(b / a for a, b in zip(times["ours"], times[form], strict=True))
            memory = peaks[form] / max(1, peaks["ours"])
            tail = "" if form == "ours" else f"{ratio:.2f}x time, {memory:.2f}x memory"
            line = f"{kind:>10} {form:>18} {statistics.median(times[form]) * 1e3:>8.1f} {peaks[form] / 2**20:>9.1f}"
            print(f"{line} | {tail}")


if __name__ == "__main__":
    main()
