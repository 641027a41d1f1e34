"""Attention over a cache of blocks: tokens write keys and values into slots and hear their own sequence's slots.

Rows that decode come first, one token each; prompt chunks follow. ``attend_rows`` is the plain form; compiled loops
read the blocks where they lie instead of copying them, and must equal it.

Shapes: T tokens of the step, R rows, M blocks a row at most, H heads, G key and value heads, D channels a head.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from heliograph.errors import BadInput

__all__ = ["BlockCache", "PagedAttention", "PagedBatch", "attend_rows"]


class BlockCache:
    """Keys and values of all blocks, [L, 2, blocks, block_size, G, D].

    Args:
        layers, num_blocks, block_size, kv_heads, head_dim: sizes.
        dtype, device: of the numbers.
    """

    def __init__(
        self,
        layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.block_size = block_size
        try:
            self.data = torch.zeros(layers, 2, num_blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            nbytes = 2 * layers * num_blocks * block_size * kv_heads * head_dim * dtype.itemsize
            raise BadInput(
                f"no memory for a cache of {num_blocks} blocks of {block_size} tokens ({nbytes / 2**30:.2f} GiB); "
                "ask for fewer blocks"
            ) from error
        flat = self.data.flatten(2, 3)
        self.keys = [flat[layer, 0] for layer in range(layers)]
        self.values = [flat[layer, 1] for layer in range(layers)]

    def read(self, blocks: Sequence[int]) -> Tensor:
        """A copy of some blocks, [L, 2, len(blocks), block_size, G, D]."""
        return self.data.index_select(2, torch.tensor(list(blocks), device=self.data.device, dtype=torch.long))

    def write(self, blocks: Sequence[int], contents: Tensor) -> None:
        """Puts what :meth:`read` gave into other blocks.

        Raises:
            BadInput: contents of another shape.
        """
        wanted = (*self.data.shape[:2], len(blocks), *self.data.shape[3:])
        if tuple(contents.shape) != wanted or contents.dtype != self.data.dtype:
            raise BadInput(
                f"blocks of {tuple(contents.shape)} {contents.dtype} do not fit here; {wanted} {self.data.dtype} do"
            )
        index = torch.tensor(list(blocks), device=self.data.device, dtype=torch.long)
        self.data.index_copy_(2, index, contents.to(self.data.device))


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Where the tokens of a step stand.

    Attributes:
        slots: [T], where each token's key and value go.
        tables: [R, M] blocks of each row, int32; what lies beyond its context is not read.
        context: [R] tokens of each row after the step, int32.
        counts: of each row's tokens in the step; the first ``decodes`` rows have one.
        decodes: number of rows of one token that stand first.
    """

    slots: Tensor
    tables: Tensor
    context: Tensor
    counts: tuple[int, ...]
    decodes: int


class PagedAttention:
    """The attention of one step; a model calls :meth:`attend` once a layer.

    Args:
        cache: of blocks.
        batch: of the step.
        compiled: whether compiled code is used where it can be: kernels on CUDA, and on a CPU a loop for decoding rows.
    """

    def __init__(self, cache: BlockCache, batch: PagedBatch, *, compiled: bool = True) -> None:
        self.cache, self.batch = cache, batch
        self.kernels = _kernels(cache) if compiled else None
        self._loops = _loops(cache) if compiled and self.kernels is None else None
        self._tiles: tuple[Tensor, Tensor, Tensor] | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """Keeps k and v [T, G, D] and gives what q [T, H, D] hears, at most ``window`` positions back."""
        batch, keys, values = self.batch, self.cache.keys[layer], self.cache.values[layer]
        heard = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.kernels is not None:
            self._attend_by_kernels(self.kernels, q, k, v, keys, values, heard, window)
            return heard
        n = batch.decodes
        past = (batch.tables[:n], batch.context[:n], self.cache.block_size)
        if self._loops is not None:
            self._loops.store(k, v, keys, values, batch.slots)
            if n:
                self._loops.attend_decodes(q[:n], keys, values, *past, window, heard[:n])
        else:
            keys.index_copy_(0, batch.slots, k)
            values.index_copy_(0, batch.slots, v)
            if n:
                heard[:n] = attend_rows(q[:n], keys, values, *past, window)
        at = n
        for row in range(n, len(batch.counts)):
            count, context = batch.counts[row], int(batch.context[row])
            own = slice(at, at + count)
            if count == context:  # the whole prompt is in this step
                past_k, past_v = k[own], v[own]
            else:
                blocks = batch.tables[row, : -(-context // self.cache.block_size)].long()
                past_k, past_v = (
                    part.view(-1, self.cache.block_size, *part.shape[1:])[blocks].flatten(0, 1)[:context]
                    for part in (keys, values)
                )
            heard[own] = _attend_chunk(q[own], past_k, past_v, window)
            at += count
        return heard

    def _attend_by_kernels(
        self,
        kernels: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        heard: Tensor,
        window: int | None,
    ) -> None:
        batch, size, n = self.batch, self.cache.block_size, self.batch.decodes
        kernels.store(k, keys, batch.slots)
        kernels.store(v, values, batch.slots)
        if n:
            parts = decode_parts(n * k.shape[1], batch.tables.shape[1] * size)
            past = (batch.tables[:n], batch.context[:n], size, parts)
            kernels.attend_decodes(q[:n], keys, values, *past, heard[:n], window)
        if n == len(batch.counts):
            return
        if self._tiles is None:
            self._tiles = _tiles(batch.counts[n:], kernels.QUERIES, q.device)
        own = (batch.tables[n:], batch.context[n:], *self._tiles, size)
        kernels.attend_chunks(q[n:], keys, values, *own, heard[n:], window)


def decode_parts(programs: int, longest: int) -> int:
    """Into how many parts each row's past is divided, so that so many rows and key heads fill a GPU."""
    parts = 1
    while parts < 32 and programs * parts < 512 and parts * 128 < longest:
        parts *= 2
    return parts


def _kernels(cache: BlockCache) -> Any:
    """The CUDA kernels, where they can be used: a GPU (or Triton's interpreter), and a width that is a power of two."""
    width, device = cache.data.shape[-1], cache.data.device.type
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    if width < 16 or width & (width - 1):
        return None
    try:
        return importlib.import_module("heliograph.serving.core.paged_attention_triton")
    except ModuleNotFoundError:
        return None


def _loops(cache: BlockCache) -> Any:
    """The loops for a CPU, where they can be used: known numbers, and a width that is a multiple of a vector's."""
    known = cache.data.device.type == "cpu" and cache.data.dtype in (torch.float32, torch.bfloat16)
    if not known or cache.data.shape[-1] % 8:
        return None
    return importlib.import_module("heliograph.serving.core.paged_attention_numba")


def _tiles(counts: Sequence[int], queries: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows begin, and the row and first query of each tile of queries."""
    begins = [0]
    rows, starts = [], []
    for row, count in enumerate(counts):
        begins.append(begins[-1] + count)
        for start in range(0, count, queries):
            rows.append(row)
            starts.append(start)
    made = (torch.tensor(part, dtype=torch.int32, device=device) for part in (begins, rows, starts))
    first, second, third = made
    return first, second, third


def attend_rows(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    context: Tensor,
    block_size: int,
    window: int | None = None,
) -> Tensor:
    """One query a row over its own blocks, in plain torch.

    Args:
        q: [R, H, D].
        keys, values: [slots, G, D] of the layer.
        tables: [R, M] blocks.
        context: [R] tokens to hear.
        block_size: tokens a block.
        window: how many positions back a query hears, itself included; None for all.

    Returns:
        [R, H, D].
    """
    longest = int(context.max())
    used = tables[:, : -(-longest // block_size)].long()
    k, v = (part.view(-1, block_size, *part.shape[1:])[used].flatten(1, 2).transpose(1, 2) for part in (keys, values))
    at = torch.arange(k.shape[2], device=q.device)
    seen = at < context[:, None]
    if window is not None:
        seen = seen & (at >= context[:, None] - window)
    heard = functional.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=seen[:, None, None], enable_gqa=q.shape[1] != k.shape[1]
    )
    return heard[:, :, 0]


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """The last queries of a sequence over all its keys: q [t, H, D], k and v [c, G, D]."""
    count, context = len(q), len(k)
    queries, keys, values = (part.transpose(0, 1)[None] for part in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if count == context and (window is None or window >= context):
        heard = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    else:
        allowed = torch.ones(count, context, dtype=torch.bool, device=q.device).tril(context - count)
        if window is not None:
            allowed = allowed.triu(context - count - window + 1)
        heard = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=allowed[None, None], enable_gqa=grouped
        )
    return heard[0].transpose(0, 1)
