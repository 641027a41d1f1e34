"""All vertex pairs of a batch, and attention over them: pair by pair, or in padded blocks of graphs of similar size.

A pair's state is a row, in the order of ``complete_support``: by target i, then source j, both of one graph. The
``edges`` back end gathers both ends of each row. The ``dense`` back end lays the rows out in blocks [G, M, M, ...], so
that both ends are broadcast instead; a block holds graphs of similar size only, so one large graph pads no small ones.

Shapes: N vertices, P pairs, B graphs; a block has G graphs padded to M vertices; H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.aggregate import segment_softmax, segment_sum
from heliograph.graphs.core.attend import Score
from heliograph.graphs.core.support import Support

__all__ = ["Backend", "Block", "Heard", "PairLayout", "available_bytes", "estimate_bytes"]

Backend = Literal["auto", "dense", "edges"]
SIMILAR = 0.7  # share of a block's largest graph that its smallest has at least: at most twice the pairs are padded
KEPT = {"dense": 9, "edges": 12}  # tensors of all channels that a layer keeps for the backward pass, a pair
UNQUESTIONED_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Block:
    """Graphs of similar size: ``graphs`` of them padded to ``size`` vertices; mask [G, M] of the real ones."""

    graphs: int
    size: int
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Heard:
    """out [N, H, D]; heard [N, H, D], the pair states each target heard; state [P, H, D] and weights [P, H] if kept."""

    out: Tensor
    heard: Tensor
    state: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True, eq=False)
class PairLayout:
    """Where the states of all pairs of a batch lie.

    Attributes:
        support: the complete support of the batch.
        blocks: of the ``dense`` back end; none for ``edges``.
        vertex_place, pair_place: [N] and [P], where each row lies in the blocks, laid end to end; None where all graphs
            have one size, so that rows and blocks have one order and nothing is padded.
    """

    support: Support
    blocks: tuple[Block, ...] = ()
    vertex_place: Tensor | None = None
    pair_place: Tensor | None = None

    @classmethod
    def of(
        cls, support: Support, backend: Backend = "auto", *, hidden: int, layers: int = 1, element_size: int = 4
    ) -> PairLayout:
        """The layout for a complete support.

        Args:
            support: from ``complete_support``.
            backend: ``auto`` takes ``dense`` where it fits into memory and needs at most twice the bytes of ``edges``.
            hidden, layers, element_size: of the network, for the estimate of its bytes.

        Raises:
            MemoryEstimateError: neither fits into the memory that is free; the numbers and the way out are named.
        """
        if backend not in ("auto", "dense", "edges"):
            raise BadInput(f"backend is auto, dense or edges; got {backend!r}")
        sizes = support.sizes.tolist()
        need = estimate_bytes(sizes, hidden, layers, element_size)
        chosen = backend
        if backend == "auto":
            # a broadcast pair costs less time than a gathered one, so blocks may take up to twice the bytes
            spacious = need["dense"] <= 2 * need["edges"] and _fits(need["dense"], support.batch.device)
            chosen = "dense" if spacious else "edges"
        if not _fits(need[chosen], support.batch.device):
            free = available_bytes(support.batch.device)
            raise MemoryEstimateError(
                f"{layers} layers of {hidden} channels for all {sum(n * n for n in sizes):,} pairs of {len(sizes)} "
                f"graphs (largest: {max(sizes)} vertices) take about {need[chosen] / 2**30:.1f} GiB with the {chosen} "
                f"back end, and {free / 2**30:.1f} GiB are free; use smaller batches, fewer channels or layers, or "
                "smaller graphs"
            )
        if chosen == "edges":
            return cls(support)
        return cls(support, *_lay_out(support, sizes))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pair: Tensor,
        score: Score,
        dropout: Callable[[Tensor], Tensor],
        *,
        keep_state: bool,
        keep_weights: bool = False,
    ) -> Heard:
        """Attention over all pairs.

        Args:
            q, k, v: [N, H, D].
            pair: [P, H, C], as the score takes it.
            score: rates pairs and gives each a new state [..., H, D].
            dropout: applied to the weights after the softmax.
            keep_state, keep_weights: whether these are returned, as rows.
        """
        attend = self._attend_blocks if self.blocks else self._attend_rows
        return attend(q, k, v, pair, score, dropout, keep_state, keep_weights)

    def _attend_rows(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pair: Tensor,
        score: Score,
        dropout: Callable[[Tensor], Tensor],
        keep_state: bool,
        keep_weights: bool,
    ) -> Heard:
        source, target, size = self.support.source, self.support.target, self.support.num_vertices
        scored = score(q[target], k[source], pair)
        state = _need_state(scored.pair)
        raw = segment_softmax(scored.logits, target, size)
        weights = dropout(raw).unsqueeze(-1)
        out = segment_sum(weights * v[source], target, size)
        heard = segment_sum(weights * state, target, size)
        return Heard(out, heard, state if keep_state else None, raw if keep_weights else None)

    def _attend_blocks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pair: Tensor,
        score: Score,
        dropout: Callable[[Tensor], Tensor],
        keep_state: bool,
        keep_weights: bool,
    ) -> Heard:
        vertices = sum(block.graphs * block.size for block in self.blocks)
        pairs = sum(block.graphs * block.size**2 for block in self.blocks)
        parts = [_place(rows, self.vertex_place, vertices) for rows in (q, k, v)]
        spread = _place(pair, self.pair_place, pairs)
        outs, heards, states, all_weights = [], [], [], []
        for block, own, own_pairs in self._slices():
            shape = block.graphs, block.size
            q_GMHD, k_GMHD, v_GMHD = (part[own].reshape(*shape, *part.shape[1:]) for part in parts)
            pair_GMMHC = spread[own_pairs].reshape(*shape, block.size, *spread.shape[1:])
            scored = score(q_GMHD[:, :, None], k_GMHD[:, None], pair_GMMHC)
            state_GMMHD = _need_state(scored.pair)
            raw_GMMH = _masked_softmax(scored.logits, block.mask[:, None, :, None])
            weights_GMMH = dropout(raw_GMMH)
            outs.append(torch.einsum("gijh,gjhd->gihd", weights_GMMH, v_GMHD).flatten(0, 1))
            heards.append((weights_GMMH.unsqueeze(-1) * state_GMMHD).sum(2).flatten(0, 1))
            states.append(state_GMMHD.flatten(0, 2))
            all_weights.append(raw_GMMH.flatten(0, 2))
        return Heard(
            _take(_join(outs), self.vertex_place),
            _take(_join(heards), self.vertex_place),
            _take(_join(states), self.pair_place) if keep_state else None,
            _take(_join(all_weights), self.pair_place) if keep_weights else None,
        )

    def _slices(self) -> Iterator[tuple[Block, slice, slice]]:
        vertex = pair = 0
        for block in self.blocks:
            vertices, pairs = block.graphs * block.size, block.graphs * block.size**2
            yield block, slice(vertex, vertex + vertices), slice(pair, pair + pairs)
            vertex, pair = vertex + vertices, pair + pairs


def estimate_bytes(sizes: Sequence[int], hidden: int, layers: int, element_size: int = 4) -> dict[str, int]:
    """Bytes of pair states that each back end keeps for the backward pass, or needs at once where there is none.

    B N^2 d L numbers, times the tensors that a layer keeps; for ``dense`` N counts the vertices a graph is padded to.

    Args:
        sizes: vertices of each graph.
        hidden, layers: d and L. Without gradients one layer is held at a time.
        element_size: bytes a number.
    """
    held = layers if torch.is_grad_enabled() else 1
    pairs = {
        "edges": sum(size * size for size in sizes),
        "dense": sum(len(group) * sizes[group[0]] ** 2 for group in _groups(sizes)),
    }
    return {name: count * hidden * held * KEPT[name] * element_size for name, count in pairs.items()}


def available_bytes(device: torch.device) -> int:
    """Free memory of a device, or of this machine."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _fits(need: int, device: torch.device) -> bool:
    return need <= UNQUESTIONED_BYTES or need <= available_bytes(device)


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of graphs of similar size, the largest first; graphs without vertices are in none."""
    groups: list[list[int]] = []
    for graph in sorted((g for g, size in enumerate(sizes) if size), key=lambda g: -sizes[g]):
        if not groups or sizes[graph] < SIMILAR * sizes[groups[-1][0]]:
            groups.append([])
        groups[-1].append(graph)
    return groups


def _lay_out(support: Support, sizes: Sequence[int]) -> tuple[tuple[Block, ...], Tensor | None, Tensor | None]:
    device = support.batch.device
    if sizes and sizes[0] and set(sizes) == {sizes[0]}:
        full = torch.ones((len(sizes), sizes[0]), dtype=torch.bool, device=device)
        return (Block(len(sizes), sizes[0], full),), None, None
    blocks, first_vertex, first_pair, padded = [], [0] * len(sizes), [0] * len(sizes), [0] * len(sizes)
    vertex = pair = 0
    for group in _groups(sizes):
        largest = sizes[group[0]]
        for graph in group:
            first_vertex[graph], first_pair[graph], padded[graph] = vertex, pair, largest
            vertex, pair = vertex + largest, pair + largest**2
        own = torch.tensor([sizes[graph] for graph in group], device=device)
        blocks.append(Block(len(group), largest, torch.arange(largest, device=device) < own[:, None]))
    starts = torch.tensor([first_vertex, first_pair, padded], device=device).reshape(3, -1)
    vertex_start, pair_start, width = starts[:, support.batch]  # of each vertex's graph
    place = support.place
    pair_place = (pair_start + place * width)[support.target] + place[support.source]
    return tuple(blocks), vertex_start + place, pair_place


def _take(rows: Tensor, place: Tensor | None) -> Tensor:
    return rows if place is None else rows.index_select(0, place)


def _place(rows: Tensor, place: Tensor | None, total: int) -> Tensor:
    """The rows where they lie in the blocks, 0 elsewhere."""
    if place is None:
        return rows
    return rows.new_zeros((total, *rows.shape[1:])).index_copy(0, place, rows)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _masked_softmax(logits: Tensor, sources: Tensor) -> Tensor:
    """Softmax over axis 2, the sources; in float32 for 16-bit types. A block has no graph without vertices."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    weights: Tensor = wide.masked_fill(~sources, -torch.inf).softmax(dim=2).to(logits.dtype)
    return weights


def _need_state(state: Tensor | None) -> Tensor:
    if state is None:
        raise BadInput("this attention needs a score that gives each pair a state")
    return state
