"""Chunked pivotal attention against its five-index form: time (interleaved) and peak memory (fresh processes; Linux).

Both run forward and backward on the same inputs; outputs and gradients are compared in the same run. Run it with
``OMP_NUM_THREADS=1 python benchmarks/floydnet_attention.py``; ``--help`` names the sizes.

What bounds each: the five-index form keeps several tensors of B H N^3 numbers for its backward pass, so it meets the
memory limit first; the chunked form repeats the score products in its backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from heliograph.graphs.floydnet.attention import AttentionSize, estimate_bytes, pivotal_attention, reference_attention

HEADS, CHANNELS = 2, 16


def make_inputs(size: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, size, size, CHANNELS)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(5)]


def run(form: str, inputs: list[Tensor], chunk: int) -> tuple[Tensor, ...]:
    out = pivotal_attention(*inputs, chunk=chunk) if form == "chunked" else reference_attention(*inputs)
    return (out, *torch.autograd.grad(out.square().sum(), inputs))


def seconds_of(form: str, inputs: list[Tensor], chunk: int) -> float:
    cuda = inputs[0].is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(form, inputs, chunk)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(form: str, size: int, chunk: int, device: str) -> int:
    """The peak of one forward and backward pass above what the inputs and the libraries hold; in a fresh process."""
    command = [sys.executable, __file__, "--measure-memory", form, "--sizes", str(size), "--chunk", str(chunk)]
    command += ["--device", device]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(form: str, size: int, chunk: int, device: str) -> int:
    run(form, make_inputs(4, device), chunk)  # libraries load what they need before the measurement
    inputs = make_inputs(size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(form, inputs, chunk)
        return torch.cuda.max_memory_allocated() - before
    before = high_water_bytes()
    run(form, inputs, chunk)
    return high_water_bytes() - before


def high_water_bytes() -> int:
    """The process's peak resident memory. Not ru_maxrss: a child inherits that from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--measure-memory", choices=["chunked", "five_index"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print(measure_memory(options.measure_memory, options.sizes[0], options.chunk, options.device))
        return
    print(f"forward + backward, float32, B=1, H={HEADS}, D={CHANNELS}, chunk={options.chunk}, {options.device}")
    print(f"{'N':>4} {'form':>10} {'ms':>9} {'peak MiB':>9} {'estimate':>9} | time and memory, five-index / chunked")
    for size in options.sizes:
        inputs = make_inputs(size, options.device)
        for mine, theirs in zip(run("chunked", inputs, options.chunk), run("five_index", inputs, 0), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)
        times: dict[str, list[float]] = {"chunked": [], "five_index": []}
        for _ in range(options.repeats):
            for form, measured in times.items():
                measured.append(seconds_of(form, inputs, options.chunk))
        ratio = statistics.median(b / a for a, b in zip(times["chunked"], times["five_index"], strict=True))
        peaks = {form: peak_bytes(form, size, options.chunk, options.device) for form in times}
        extent = AttentionSize(1, HEADS, (size, size), size, CHANNELS)
        for form, measured in times.items():
            estimate = estimate_bytes(extent, options.chunk, form)
            line = f"{size:>4} {form:>10} {statistics.median(measured) * 1e3:>9.1f} {peaks[form] / 2**20:>9.1f}"
            ratios = f"{ratio:.2f}x time, {peaks['five_index'] / max(1, peaks['chunked']):.2f}x memory"
            print(f"{line} {estimate / 2**20:>9.1f} | {ratios if form == 'five_index' else ''}")


if __name__ == "__main__":
    main()
