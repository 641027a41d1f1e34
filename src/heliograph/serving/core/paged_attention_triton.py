"""Attention over a cache of blocks on CUDA: decoding rows in parts side by side, prompt chunks in tiles of queries.

Decoding has one query a row and reads all of its past; a row's past is divided into parts, so that few rows fill a GPU,
and the parts are merged by their log-sum-exp. A program of the first kernel serves all query heads of one key head.
Imported only where it runs.

Shapes: T tokens of the step, R rows, M blocks a row at most, H heads, G key and value heads, S = H / G, D channels a
head (a power of two), P parts.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["INTERPRETED", "attend_chunks", "attend_decodes", "store"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton then runs kernels in Python, on any device
QUERIES = 32  # of a tile of a prompt chunk
KEYS = 32  # of a tile


@triton.jit
def _store(source, target, slots, source_stride, WIDTH: tl.constexpr, PAD: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, PAD)
    inside = at < WIDTH
    slot = tl.load(slots + row)
    values = tl.load(source + row.to(tl.int64) * source_stride + at, mask=inside)
    tl.store(target + slot.to(tl.int64) * WIDTH + at, values, mask=inside)


@triton.jit
def _decode(
    q,
    keys,
    values,
    tables,
    context,
    part_out,
    part_lse,
    scale,
    q_stride,
    table_stride,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    row, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(context + row)
    oldest = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    per = tl.cdiv(tl.cdiv(length - oldest, N), PARTS) * N
    begin = oldest + part * per
    end = tl.minimum(begin + per, length)
    head = tl.arange(0, HEADS)
    channel = tl.arange(0, D)
    real = head < SHARE
    asked = tl.load(
        q + row.to(tl.int64) * q_stride + (group * SHARE + head)[:, None] * D + channel[None, :],
        mask=real[:, None],
        other=0.0,
    )
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    heard = tl.zeros([HEADS, D], tl.float32)
    for start in range(begin, end, N):
        at = start + tl.arange(0, N)
        inside = at < end
        block = tl.load(tables + row.to(tl.int64) * table_stride + at // BLOCK, mask=inside, other=0)
        slot = block.to(tl.int64) * BLOCK + at % BLOCK
        place = slot[:, None] * (GROUPS * D) + group * D + channel[None, :]
        k = tl.load(keys + place, mask=inside[:, None], other=0.0)
        if PRECISE:
            score = tl.dot(asked, tl.trans(k), input_precision="ieee") * scale
        else:
            score = tl.dot(asked, tl.trans(k)) * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + place, mask=inside[:, None], other=0.0)
        heard = heard * shrink[:, None]
        if PRECISE:
            heard += tl.dot(weight, v, input_precision="ieee")
        else:
            heard += tl.dot(weight.to(v.dtype), v)
        top = higher
    some = total > 0
    heard = tl.where(some[:, None], heard / tl.where(some, total, 1.0)[:, None], 0.0)
    lse = tl.where(some, top + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    line = (row.to(tl.int64) * (GROUPS * SHARE) + group * SHARE + head) * PARTS + part
    tl.store(part_out + line[:, None] * D + channel[None, :], heard, mask=real[:, None])
    tl.store(part_lse + line, lse, mask=real)


@triton.jit
def _merge(part_out, part_lse, out, D: tl.constexpr, PARTS: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    channel = tl.arange(0, D)
    lse = tl.load(part_lse + line * PARTS + part)
    weight = tl.exp(lse - tl.max(lse, 0))
    heard = tl.load(part_out + (line * PARTS + part)[:, None] * D + channel[None, :])
    merged = tl.sum(heard * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + line * D + channel, merged.to(out.dtype.element_ty))


@triton.jit
def _chunk(
    q,
    keys,
    values,
    tables,
    context,
    begins,
    tile_row,
    tile_start,
    out,
    scale,
    q_stride,
    table_stride,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tile_row + tile)
    first = tl.load(begins + row)
    count = tl.load(begins + row + 1) - first
    length = tl.load(context + row)
    query = tl.load(tile_start + tile) + tl.arange(0, M)
    real = query < count
    position = length - count + query
    channel = tl.arange(0, D)
    at_q = (first + query).to(tl.int64)
    asked = tl.load(q + at_q[:, None] * q_stride + head * D + channel[None, :], mask=real[:, None], other=0.0)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    heard = tl.zeros([M, D], tl.float32)
    earliest = length - count + tl.load(tile_start + tile)
    last = tl.minimum(length, earliest + M)
    oldest = tl.maximum(earliest - WINDOW + 1, 0) // N * N if WINDOW > 0 else 0
    for start in range(oldest, last, N):
        at = start + tl.arange(0, N)
        inside = at < last
        block = tl.load(tables + row.to(tl.int64) * table_stride + at // BLOCK, mask=inside, other=0)
        slot = block.to(tl.int64) * BLOCK + at % BLOCK
        place = slot[:, None] * (GROUPS * D) + (head // SHARE) * D + channel[None, :]
        k = tl.load(keys + place, mask=inside[:, None], other=0.0)
        if PRECISE:
            score = tl.dot(asked, tl.trans(k), input_precision="ieee") * scale
        else:
            score = tl.dot(asked, tl.trans(k)) * scale
        seen = inside[None, :] & (at[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (position[:, None] - at[None, :] < WINDOW)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(tl.maximum(top, tl.max(score, 1)), -1e30)  # a tile may hold nothing that a query sees
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + place, mask=inside[:, None], other=0.0)
        heard = heard * shrink[:, None]
        if PRECISE:
            heard += tl.dot(weight, v, input_precision="ieee")
        else:
            heard += tl.dot(weight.to(v.dtype), v)
        top = higher
    heard = heard / total[:, None]
    tl.store(
        out + at_q[:, None] * (GROUPS * SHARE * D) + head * D + channel[None, :],
        heard.to(out.dtype.element_ty),
        mask=real[:, None],
    )


def store(source: Tensor, target: Tensor, slots: Tensor) -> None:
    """Writes [T, G, D] (its last two axes together) into the rows of [slots, G, D] that ``slots`` names."""
    width = source.shape[1] * source.shape[2]
    _store[(len(source),)](source, target, slots, source.stride(0), WIDTH=width, PAD=triton.next_power_of_2(width))


def attend_decodes(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    context: Tensor,
    block_size: int,
    parts: int,
    out: Tensor,
    window: int | None = None,
) -> None:
    """One query a row over its blocks; see :func:`~heliograph.serving.core.paged_attention.attend_rows`.

    Args:
        q: [R, H, D], the last two axes together.
        keys, values: [slots, G, D].
        tables, context: [R, M] and [R], int32.
        block_size: tokens a block.
        parts: into which each row's past is divided, a power of two.
        out: [R, H, D], written.
        window: how many positions back a query hears, itself included; None for all.
    """
    rows, heads, width = q.shape
    groups = keys.shape[1]
    part_out = torch.empty(rows, heads, parts, width, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(rows, heads, parts, dtype=torch.float32, device=q.device)
    settings: dict[str, Any] = {
        "GROUPS": groups,
        "SHARE": heads // groups,
        "HEADS": max(16, triton.next_power_of_2(heads // groups)),
        "D": width,
        "BLOCK": block_size,
        "N": KEYS,
        "PARTS": parts,
        "WINDOW": window or 0,
        "PRECISE": q.dtype == torch.float32,
    }
    _decode[(rows, groups, parts)](
        q, keys, values, tables, context, part_out, part_lse, width**-0.5, q.stride(0), tables.stride(0), **settings
    )
    _merge[(rows * heads,)](part_out, part_lse, out, D=width, PARTS=parts)


def attend_chunks(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    context: Tensor,
    begins: Tensor,
    tile_row: Tensor,
    tile_start: Tensor,
    block_size: int,
    out: Tensor,
    window: int | None = None,
) -> None:
    """Prompt chunks of several rows, each query over its own row's past and itself.

    Args:
        q: [T, H, D], the last two axes together.
        keys, values: [slots, G, D], the chunk's own included.
        tables, context: [R, M] and [R], int32.
        begins: [R + 1], where each row's queries begin, int32.
        tile_row, tile_start: of each tile of 32 queries, its row and its first query within the row, int32.
        block_size: tokens a block.
        out: [T, H, D], written where a row has queries.
        window: how many positions back a query hears, itself included; None for all.
    """
    heads, width = q.shape[1:]
    groups = keys.shape[1]
    _chunk[(len(tile_row), heads)](
        q,
        keys,
        values,
        tables,
        context,
        begins,
        tile_row,
        tile_start,
        out,
        width**-0.5,
        q.stride(0),
        tables.stride(0),
        GROUPS=groups,
        SHARE=heads // groups,
        D=width,
        BLOCK=block_size,
        M=QUERIES,
        N=KEYS,
        PRECISE=q.dtype == torch.float32,
        WINDOW=window or 0,
    )
