"""The selective scan's back ends against a plain loop and against mambapy, side by side in one run.

Interleaved in one process (A B A B); each step is a forward and a backward pass. Run it with
``OMP_NUM_THREADS=1 python benchmarks/selective_scan.py``; ``--device cuda`` on a GPU, ``--help`` for the sizes.

What is compared: ours with float32 states and gradients of all inputs. ``loop`` is the recurrence step by step under
autograd. ``mambapy`` (PyPI, MIT), where it can be imported, is ``MambaBlock.selective_scan`` of that package, a
parallel scan in plain torch. Bytes are those that the forward pass leaves for the backward pass. On CUDA the last
column is the share of the bound by memory bandwidth: the least traffic (every input read and every output written once,
forward; twice that and the gradients, backward) at the device's measured copy bandwidth, over the time taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from heliograph.lm.core.scan import selective_scan

Step = Callable[[], Tensor]


def make_inputs(options: argparse.Namespace) -> list[Tensor]:
    """u, dt, A, B, C."""
    random = torch.Generator().manual_seed(0)
    rows, steps, channels, state = options.rows, options.steps, options.channels, options.state

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(options.device).requires_grad_()

    dt = (0.1 * torch.rand(rows, steps, channels, generator=random)).to(options.device).requires_grad_()
    A = -torch.arange(1, state + 1).float().repeat(channels, 1).to(options.device)
    return [
        normal(rows, steps, channels), dt, A.requires_grad_(), normal(rows, steps, state), normal(rows, steps, state)
    ]  # fmt: skip


def mambapy_scan() -> Callable[..., Tensor] | None:
    """mambapy's scan with our argument order, where the package is there."""
    if importlib.util.find_spec("mambapy") is None:
        return None
    from mambapy.mamba import MambaBlock, MambaConfig

    def call(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        block = MambaBlock(MambaConfig(d_model=u.shape[-1], n_layers=1, d_state=A.shape[1], expand_factor=1))
        return block.to(u.device).selective_scan(u, dt, A, B, C, torch.zeros(u.shape[-1], device=u.device))

    return call


def make_forms(options: argparse.Namespace) -> dict[str, Callable[..., Tensor]]:
    forms: dict[str, Callable[..., Tensor]] = {
        "chunked": lambda *v: selective_scan(*v, backend="chunked"),
    }
    if options.steps <= options.longest_loop:
        forms["loop"] = lambda *v: selective_scan(*v, backend="reference")
    if options.device == "cuda":
        forms = {"triton": lambda *v: selective_scan(*v, backend="triton"), **forms}
    theirs = mambapy_scan()
    if theirs is not None:
        forms["mambapy"] = theirs
    return forms


def saved_bytes(call: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = call(*inputs)
    total = sum(kept.values())
    del y
    return total


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_bytes_per_second() -> float:
    """Bytes read plus written, best of ten copies of 1 GiB."""
    source = torch.empty(2**28, device="cuda")
    target, best = torch.empty_like(source), 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * 2**30 / (time.perf_counter() - start))
    return best


def least_bytes(options: argparse.Namespace) -> int:
    """Traffic that no implementation avoids, forward and backward, in float32."""
    wide = options.rows * options.steps * options.channels
    narrow = options.rows * options.steps * options.state
    forward = 3 * wide + 2 * narrow  # u, dt, y; B, C
    backward = 5 * wide + 4 * narrow  # u, dt, dy, du, ddt; B, C, dB, dC
    return 4 * (forward + backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--longest-loop", type=int, default=5000, help="the loop is left out for more steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    inputs, forms = make_inputs(options), make_forms(options)

    def step(call: Callable[..., Tensor]) -> Tensor:
        y = call(*inputs)
        torch.autograd.grad(y.sum(), inputs)
        wait(options.device)
        return y.detach()

    answers = {name: step(call) for name, call in forms.items()}
    first = next(iter(forms))
    for name, y in answers.items():
        torch.testing.assert_close(y, answers[first], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    times: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(options.repeats + 1):
        for name, call in forms.items():
            start = time.perf_counter()
            step(call)
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - start)
    bound = least_bytes(options) / copy_bytes_per_second() if options.device == "cuda" else None
    print(
        f"selective scan, forward and backward, {options.rows} x {options.steps} steps x {options.channels} channels x "
        f"{options.state} states, float32, {options.device}"
    )
    print(f"{'form':>9} {'ms':>9} {'saved MiB':>10} | over {first} (paired median)")
    for name in forms:
        ratio = statistics.median(b / a for a, b in zip(times[first], times[name], strict=True))
        spent = statistics.median(times[name])
        share = "" if bound is None else f", {bound / spent:.1%} of the bandwidth bound"
        kept = saved_bytes(forms[name], inputs) / 2**20
        print(f"{name:>9} {spent * 1e3:>9.2f} {kept:>10.1f} | {ratio:.2f}x time{share}")


if __name__ == "__main__":
    main()
