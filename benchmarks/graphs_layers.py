"""Our graph layers against PyTorch Geometric's nearest: time and peak memory of a training step on the same batch.

Interleaved in one process (A B A B); memory in processes of their own (Linux), or from the allocator on a GPU. Run it
with ``OMP_NUM_THREADS=1 python benchmarks/graphs_layers.py``; ``--help`` names device, sizes and the JSON record.

What is compared: a stack of bare layers with ReLU between, forward and backward and an AdamW update, float32. Ours keep
the edge order and add rows by index; PyG's go through its message-passing base class. ``GatedGCN`` divides by the sum
of the gates and renews edge states, PyG's ``ResGatedGraphConv`` does neither; ``GPSConv`` attends over each whole graph
and is there for scale. Outputs of GCN and GINE are compared in the same run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from graphs_measure import interleaved_seconds, peak_bytes, ratio_to, write_record
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
    x, edge_index, edge, batch = (part.to(options.device) for part in make_batch(options.graphs, options.dim))
    layers = make_layers(kind, form, options.dim, options.depth).to(options.device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--graphs", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_equal(options.dim)
    small = argparse.Namespace(**{**vars(options), "graphs": 1})
    # memory first: a forked process must not take over what earlier steps have freed
    peaks = {
        (kind, form): peak_bytes(
            partial(make_step, kind, form, options), partial(make_step, kind, form, small), options.device
        )
        for kind, forms in PAIRS.items()
        for form in forms
    }
    shape = f"{options.depth} layers x {options.dim} channels, {options.graphs} graphs of 23 vertices"
    print(f"{options.device}: training step, {shape}, float32")
    print(f"{'layer':>10} {'form':>18} {'ms':>8} {'peak MiB':>9} | time and memory over ours (paired median)")
    rows = []
    for kind, forms in PAIRS.items():
        steps = {form: make_step(kind, form, options) for form in forms}
        times = interleaved_seconds(steps, options.repeats, 2, options.device)
        for form in forms:
            ratio, memory = ratio_to(times, "ours", form), peaks[kind, form] / max(1, peaks[kind, "ours"])
            row = {
                "layer": kind,
                "form": form,
                "seconds": statistics.median(times[form]),
                "peak_bytes": peaks[kind, form],
                "time_over_ours": ratio,
                "memory_over_ours": memory,
            }
            rows.append(row)
            tail = "" if form == "ours" else f"{ratio:.2f}x time, {memory:.2f}x memory"
            line = f"{kind:>10} {form:>18} {row['seconds'] * 1e3:>8.1f} {row['peak_bytes'] / 2**20:>9.1f}"
            print(f"{line} | {tail}")
    if options.output is not None:
        sizes = {name: getattr(options, name) for name in ("graphs", "dim", "depth", "repeats")}
        write_record(options.output, options.device, rows, **sizes)


if __name__ == "__main__":
    main()
