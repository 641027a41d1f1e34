"""What kernels compiled by numba are made of: numbers of either width, vectors, an exponential, rows among threads.

bfloat16 is the upper half of float32 and is passed as int16; :func:`wide` and :func:`narrow` go between the two, and
are nothing for float32. Rounding is to the nearest, and to even between two.

The compiler turns a loop over scalars into vector instructions only where it can prove much about indices and signs.
For products of heads it gets vectors outright: their width is eight times the length of a tuple, so that it is known
when a kernel is compiled.

Compiled kernels are kept beside their files. After a change in this file, touch those that import it: numba only looks
at the file of the kernel itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

__all__ = ["LANES", "add_scaled", "array", "dots", "exponential", "in_parts", "kernel", "narrow", "wide"]

LANES = 8
"""Channels for each entry of the tuple that gives a vector's width."""
PART = 1 << 24
"""Operations that are worth another thread: milliseconds of them. For so long torch's own threads spin after a product,
in the way of others."""

FAST = {"reassoc", "contract", "arcp", "nsz"}
I32, F32 = ir.IntType(32), ir.FloatType()

_intrinsic: Any = intrinsic  # generated code has no types for mypy
_inlined: Any = functools.partial(numba.njit, inline="always", fastmath=FAST, error_model="numpy")


def kernel(function: Any) -> Any:
    """Compiles a function on its first call, and keeps what was compiled where a folder for it can be written."""
    compiler = functools.partial(numba.njit, nogil=True, fastmath=FAST, error_model="numpy")
    try:
        return compiler(cache=True)(function)
    except RuntimeError:  # neither beside the file nor in the user's cache
        return compiler()(function)


def array(x: Tensor) -> Any:
    """The tensor's memory as numba takes it: bfloat16 as int16."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def in_parts(run: Callable[[int, int], None], rows: int, operations: int, weights: Any = None) -> None:
    """Calls ``run(first, last)`` for parts of ``rows``, on as many threads as torch uses where it is worth it.

    Args:
        run: releases the interpreter's lock.
        rows: to divide.
        operations: of all rows together, about.
        weights: array [rows] of how much work each is; None for all the same.
    """
    parts = max(1, min(torch.get_num_threads(), rows, operations // PART))
    if parts == 1:
        run(0, rows)
        return
    work = np.arange(1, rows + 1) if weights is None else np.cumsum(weights)
    inner = np.searchsorted(work, work[-1] * np.arange(1, parts) / parts, side="right")
    bounds = [0, *inner.tolist(), rows]
    others = [_threads(parts).submit(run, *bounds[part : part + 2]) for part in range(1, parts)]
    run(*bounds[:2])
    for other in others:
        other.result()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="kernels")


@_intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), generate


@_intrinsic
def _as_bits(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), generate


@_intrinsic
def _multiply_add(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; unlike the operators it stays where it is put."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


def wide(number: Any) -> Any:
    """A number as float32."""
    raise NotImplementedError  # compiled code gets the form for its type


@overload(wide, inline="always", strict=False)
def _wide(number: Any) -> Any:
    if number == types.int16:
        return lambda number: _as_float(np.int32(number) << np.int32(16))
    return lambda number: number


def narrow(out: Any, number: Any) -> Any:
    """A float32 as what ``out`` holds."""
    raise NotImplementedError


@overload(narrow, inline="always", strict=False)
def _narrow(out: Any, number: Any) -> Any:
    if out.dtype != types.int16:
        return lambda out, number: number

    def rounded(out: Any, number: Any) -> Any:
        bits = _as_bits(number)
        if bits & np.int32(0x7FFFFFFF) > np.int32(0x7F800000):
            return np.int16(0x7FC0)  # not a number: rounding could make an infinity of it
        return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))

    return rounded


@_inlined
def exponential(x: Any) -> Any:
    """e to the x for float32 within 2e-7 of it; x is held between -87 and 88, beyond which float32 ends.

    x = n ln 2 + r with a whole n: the power of two goes into the exponent's bits, and e to the r, with r within half a
    logarithm of two, is a polynomial of the sixth degree (coefficients of the Cephes library). The logarithm is taken
    off in two parts, in this order.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = _multiply_add(n, np.float32(2.12194440e-4), _multiply_add(n, np.float32(-0.693359375), x))
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))


def _place(context: Any, builder: Any, kind: Any, value: Any, at: Any, width: int) -> Any:
    """Pointer to ``width`` numbers of a contiguous array, from number ``at`` on."""
    data = context.make_array(kind)(context, builder, value).data
    number = ir.IntType(16) if kind.dtype == types.int16 else F32
    return builder.bitcast(builder.gep(data, [at]), ir.VectorType(number, width).as_pointer())


def _load(context: Any, builder: Any, kind: Any, value: Any, at: Any, width: int) -> Any:
    """Those numbers as a vector of float32."""
    pointer = _place(context, builder, kind, value, at, width)
    if kind.dtype != types.int16:
        return builder.load(pointer, align=4)
    bits = ir.VectorType(I32, width)
    shifted = builder.shl(builder.zext(builder.load(pointer, align=2), bits), ir.Constant(bits, [16] * width))
    return builder.bitcast(shifted, ir.VectorType(F32, width))


def _total(builder: Any, vector: Any, width: int) -> Any:
    """Sum of a vector: halves are added to each other as long as there are two."""

    def part(first: int, last: int) -> Any:
        chosen = ir.Constant(ir.VectorType(I32, last - first), list(range(first, last)))
        return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)

    while width % 2 == 0:
        width //= 2
        vector = builder.fadd(part(0, width), part(width, 2 * width), flags=["fast"])
    total = builder.extract_element(vector, ir.Constant(I32, 0))
    for n in range(1, width):
        total = builder.fadd(total, builder.extract_element(vector, ir.Constant(I32, n)), flags=["fast"])
    return total


@_intrinsic
def dots(
    context: Any, query: Any, i: Any, keys: Any, j: Any, scores: Any, at: Any, step: Any, share: Any, lanes: Any
) -> Any:
    """Scores of several heads for one key: ``scores[at + s * step] = query[i + s * D : ...] @ keys[j : j + D]``.

    All arrays are contiguous and indexed as if they had one axis; ``share`` and ``lanes`` are tuples with as many
    entries as there are heads s, and D / 8.
    """
    width = LANES * lanes.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        key = _load(context, builder, signature.args[2], args[2], args[3], width)
        out = context.make_array(signature.args[4])(context, builder, args[4]).data
        for s in range(share.count):
            first = builder.add(args[1], ir.Constant(args[1].type, s * width))
            head = _load(context, builder, signature.args[0], args[0], first, width)
            score = _total(builder, builder.fmul(head, key, flags=["fast"]), width)
            to = builder.add(args[5], builder.mul(args[6], ir.Constant(args[6].type, s)))
            builder.store(score, builder.gep(out, [to]))
        return context.get_dummy_value()

    taken = (query, types.intp, keys, types.intp, scores, types.intp, types.intp, share, lanes)
    return types.void(*taken), generate


@_intrinsic
def add_scaled(
    context: Any, heard: Any, i: Any, values: Any, j: Any, weights: Any, at: Any, step: Any, share: Any, lanes: Any
) -> Any:
    """Adds one value to several heads: ``heard[i + s * D : ...] += weights[at + s * step] * values[j : j + D]``.

    Arrays and tuples as in :func:`dots`; ``heard`` is float32.
    """
    width = LANES * lanes.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _load(context, builder, signature.args[2], args[2], args[3], width)
        given = context.make_array(signature.args[4])(context, builder, args[4]).data
        everywhere = ir.Constant(ir.VectorType(I32, width), [0] * width)
        for s in range(share.count):
            first = builder.add(args[1], ir.Constant(args[1].type, s * width))
            pointer = _place(context, builder, signature.args[0], args[0], first, width)
            before = builder.load(pointer, align=4)
            undefined = ir.Constant(before.type, ir.Undefined)
            of = builder.add(args[5], builder.mul(args[6], ir.Constant(args[6].type, s)))
            weight = builder.insert_element(undefined, builder.load(builder.gep(given, [of])), ir.Constant(I32, 0))
            weight = builder.shuffle_vector(weight, undefined, everywhere)
            scaled = builder.fmul(value, weight, flags=["fast"])
            builder.store(builder.fadd(before, scaled, flags=["fast"]), pointer, align=4)
        return context.get_dummy_value()

    taken = (heard, types.intp, values, types.intp, weights, types.intp, types.intp, share, lanes)
    return types.void(*taken), generate
