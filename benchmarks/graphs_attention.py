"""Attention along the edges of a large mesh: our back ends against PyTorch Geometric's ``TransformerConv``.

Vertices are random points of the unit square, and each hears its nearest neighbours: 300,000 vertices with 10 each and
100,000 with 30 each make 3 million edges (on a CPU a tenth of the vertices). They are numbered along a space-filling
curve, as a mesh generator leaves them, and at random. All forms have the same weights, and their outputs are compared
in the same run; times are interleaved medians of forward and backward.

Two bounds stand beside the kernel's time, at the bandwidth that a copy reaches on the same device: every tensor read or
written once (what an unlimited cache would need), and every edge fetching its rows from memory (no cache at all).

Run it with ``python benchmarks/graphs_attention.py``; ``--output FILE`` writes the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.spatial
import torch
from torch import Tensor
from torch_geometric.nn import TransformerConv

from heliograph.graphs.core.attend import Backend, attend
from heliograph.graphs.core.support import Support, given_support

HEADS = 4


def neighbour_edges(vertices: int, degree: int, ordered: bool) -> Tensor:
    """Edge list [2, vertices * degree]: each point hears its nearest others."""
    points = np.random.default_rng(0).random((vertices, 2))
    if ordered:
        points = points[np.argsort(curve_place(points), kind="stable")]
    _, near = scipy.spatial.cKDTree(points).query(points, degree + 1, workers=-1)
    target = np.repeat(np.arange(vertices), degree)
    return torch.from_numpy(np.stack([near[:, 1:].reshape(-1), target]))


def curve_place(points: np.ndarray, bits: int = 12) -> np.ndarray:
    """The place of each point along the Z-order curve: the bits of its coordinates in turn."""
    cells = (points * 2**bits).astype(np.int64)
    place = np.zeros(len(points), dtype=np.int64)
    for bit in range(bits):
        for axis in range(points.shape[1]):
            place |= ((cells[:, axis] >> bit) & 1) << (points.shape[1] * bit + axis)
    return place


class Case:
    """One support with states, and the forms that attend on it."""

    def __init__(self, edge_index: Tensor, vertices: int, dim: int, dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        self.edge_index = edge_index.to(device)
        self.support: Support = given_support(self.edge_index, vertices)
        self.dim = dim
        self.x = torch.randn(vertices, HEADS * dim, device=device, dtype=dtype)
        self.peer = TransformerConv(HEADS * dim, dim, heads=HEADS, root_weight=False).to(device, dtype)
        self.slope = torch.randn(vertices, HEADS * dim, device=device, dtype=dtype)

    def states(self) -> list[Tensor]:
        maps = (self.peer.lin_query, self.peer.lin_key, self.peer.lin_value)
        return [linear(self.x).view(len(self.x), HEADS, self.dim) for linear in maps]

    def layer(self, form: str) -> Callable[[], Tensor]:
        """Forward and backward of a whole layer: three linear maps and attention."""

        def run() -> Tensor:
            self.peer.zero_grad(set_to_none=True)
            out: Tensor
            if form == "TransformerConv":
                out = self.peer(self.x, self.edge_index)
            else:
                backend: Backend = form  # type: ignore[assignment]
                out = attend(self.support, *self.states(), backend=backend).flatten(1)
            out.backward(self.slope)
            return out.detach()

        return run

    def parts(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Forward, and forward with backward, of the kernel alone."""
        states = [state.detach().requires_grad_() for state in self.states()]
        slope = self.slope.view(len(self.x), HEADS, self.dim)

        def forward() -> None:
            with torch.no_grad():
                attend(self.support, *states, backend="csr")

        def both() -> None:
            torch.autograd.grad(attend(self.support, *states, backend="csr"), states, slope)

        return forward, both


def seconds_of(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each run, interleaved; the first two rounds warm up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat >= 2:
                found[name].append(time.perf_counter() - start)
    return found


def peak_of(run: Callable[[], Any], device: str) -> int | None:
    """Peak bytes of device memory above what was there before; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(2**28 if device != "cpu" else 2**25, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = seconds_of({"copy": lambda: target.copy_(source)}, 7, device)["copy"]
    return 2 * source.numel() * 4 / statistics.median(times)


def bounds(case: Case, bandwidth: float) -> dict[str, dict[str, float]]:
    """Seconds that the bytes alone take, for the forward pass and for both passes."""
    vertices, edges = case.support.num_vertices, case.support.num_edges
    row, index, number = HEADS * case.dim * case.x.element_size(), 8, 4 * HEADS
    lists = edges * index + vertices * index
    # forward: q, k, v in, out out. Backward: q, k, v and the slope of out are read by both kernels, out and that slope
    # once more for delta; three slopes are written
    once = {"forward": vertices * (4 * row + number) + lists}
    once["both"] = once["forward"] + vertices * (13 * row + 5 * number) + 2 * lists + edges * index
    apiece = {"forward": edges * 2 * row + vertices * (2 * row + number) + lists}
    apiece["both"] = (
        apiece["forward"]
        + edges * (4 * row + 2 * number)
        + vertices * (9 * row + 3 * number)
        + 2 * lists
        + edges * index
    )
    return {
        name: {"tensors_once_s": once[name] / bandwidth, "edges_apiece_s": apiece[name] / bandwidth}
        for name in ("forward", "both")
    }


def measure(vertices: int, degree: int, ordered: bool, dim: int, dtype: torch.dtype, options: Any) -> dict[str, Any]:
    device = options.device
    case = Case(neighbour_edges(vertices, degree, ordered), vertices, dim, dtype, device)
    forms = (["csr"] if device == "cuda" else []) + ["edges", "TransformerConv"]
    runs = {form: case.layer(form) for form in forms}
    first = runs[forms[0]]()
    gap = {form: float((runs[form]() - first).abs().max()) for form in forms[1:]}
    times = seconds_of(runs, options.repeats, device)
    row: dict[str, Any] = {
        "vertices": vertices,
        "edges": case.support.num_edges,
        "order": "curve" if ordered else "random",
        "channels": HEADS * dim,
        "type": str(dtype).removeprefix("torch."),
        "largest_difference": gap,
        "layer_seconds": {form: statistics.median(found) for form, found in times.items()},
        "layer_peak_bytes": {form: peak_of(run, device) for form, run in runs.items()},
        "time_over_ours": {
            form: statistics.median(b / a for a, b in zip(times[forms[0]], times[form], strict=True))
            for form in forms[1:]
        },
    }
    if device == "cuda":
        forward, both = case.parts()
        kernel = seconds_of({"forward": forward, "both": both}, options.repeats, device)
        row["kernel_seconds"] = {name: statistics.median(found) for name, found in kernel.items()}
        row["bounds"] = bounds(case, options.bandwidth)
        row["share_of_bound"] = {
            name: {key.removesuffix("_s"): value / row["kernel_seconds"][name] for key, value in found.items()}
            for name, found in row["bounds"].items()
        }
    return row


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['vertices']:,} vertices, {row['edges']:,} edges, {row['order']} order, {row['channels']} channels, "
        f"{row['type']}"
    )
    ours = next(iter(row["layer_seconds"]))
    for form, seconds in row["layer_seconds"].items():
        peak = row["layer_peak_bytes"][form]
        memory = "" if peak is None else f"{peak / 2**20:>9.0f} MiB"
        ratio = "" if form == ours else f"  {row['time_over_ours'][form]:.2f}x the time of {ours}"
        print(f"  layer {form:>16} {seconds * 1e3:>9.2f} ms{memory}{ratio}")
    for name, seconds in row.get("kernel_seconds", {}).items():
        share = row["share_of_bound"][name]
        print(
            f"  kernel, {name:>8} {seconds * 1e3:>7.3f} ms: {share['tensors_once']:.0%} of the bound with each tensor "
            f"once, {share['edges_apiece']:.0%} with each edge's rows"
        )


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.bandwidth = copy_bandwidth(options.device)
    part = 1 if options.device == "cuda" else 10
    types = (torch.float32, torch.bfloat16) if options.device == "cuda" else (torch.float32,)
    rows = []
    print(f"{options.device}: a copy moves {options.bandwidth / 1e9:,.0f} GB/s")
    for vertices, degree in ((300_000 // part, 10), (100_000 // part, 30)):
        for ordered in (True, False):
            for dim in (16, 32) if options.device == "cuda" else (16,):
                for dtype in types:
                    rows.append(measure(vertices, degree, ordered, dim, dtype, options))
                    show(rows[-1])
    if options.output is not None:
        name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
        facts = {"device": name, "torch": torch.__version__, "copy_bytes_per_s": options.bandwidth, "rows": rows}
        options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
