r"""Every linear map between states of vertices and pairs that commutes with renumbering vertices (arXiv:1812.09902).

A pair state X [n, n] can be sent to pairs in 15 independent ways, to vertices in 5, to the graph in 2; a vertex state
[n] to pairs in 5, to vertices in 2, to the graph in 1. Those are the numbers of partitions of the indices of input and
output (theorem 1 there), and the 15, 5 and 2 maps below span them. Sums are means here (over the n of a graph's real
vertices), so that outputs do not grow with the graph; this scales a basis map by a power of n, and changes neither the
span for a given n nor equivariance. Each map has a matrix of channels of its own, and each kind of output place a bias:
vertices one, the diagonal and the other pairs one each.

Shapes: B graphs padded to M vertices, c and d channels in and out, K basis maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput

__all__ = ["BASIS_SIZES", "EquivariantLinear", "Place", "equivariant_basis"]

Place = Literal["pair", "vertex", "graph"]

BASIS_SIZES: Mapping[tuple[Place, Place], int] = {
    ("pair", "pair"): 15,
    ("pair", "vertex"): 5,
    ("pair", "graph"): 2,
    ("vertex", "pair"): 5,
    ("vertex", "vertex"): 2,
    ("vertex", "graph"): 1,
}
"""How many independent maps there are, by the places of input and output."""

AXES: Mapping[Place, int] = {"pair": 2, "vertex": 1, "graph": 0}


class EquivariantLinear(nn.Module):
    """A learned combination of all equivariant maps.

    Args:
        in_channels, out_channels: c and d.
        source: "pair" for states [B, M, M, c], "vertex" for [B, M, c].
        target: "pair" for [B, M, M, d], "vertex" for [B, M, d], "graph" for [B, d].
        bias: whether constants are learned too (they are equivariant, and no part of the basis).

    Raises:
        BadInput: channels below 1 or unknown places; in the call, states or a mask of another shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        source: Literal["pair", "vertex"] = "pair",
        target: Place = "pair",
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if (source, target) not in BASIS_SIZES:
            raise BadInput(f"source is pair or vertex and target pair, vertex or graph; got {source!r} and {target!r}")
        if min(in_channels, out_channels) < 1:
            raise BadInput(f"channels must be 1 or more; got {in_channels} and {out_channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.source, self.target = source, target
        self.weight = nn.Parameter(torch.empty(BASIS_SIZES[source, target], in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.diagonal_bias = nn.Parameter(torch.empty(out_channels)) if bias and target == "pair" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights as for a linear layer of K c inputs; constants begin at 0."""
        bound = (self.weight.shape[0] * self.in_channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        for constant in (self.bias, self.diagonal_bias):
            if constant is not None:
                nn.init.zeros_(constant)

    def forward(self, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """The new state, 0 wherever padded.

        Args:
            state: [B, M, M, c] or [B, M, c]; what is padded does not matter.
            mask: [B, M], True on real vertices; all real where None.
        """
        expected = AXES[self.source] + 2
        if state.dim() != expected or state.shape[-1] != self.in_channels:
            form = "[B, M, M, c]" if self.source == "pair" else "[B, M, c]"
            raise BadInput(f"the state must be {form} with c = {self.in_channels}; got {list(state.shape)}")
        basis = equivariant_basis(state, self.target, mask)
        out = torch.stack([part @ self.weight[k].to(part.dtype) for k, part in enumerate(basis)]).sum(0)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        if self.diagonal_bias is not None:
            out = out + _diagonal(self.diagonal_bias.to(out.dtype).expand(*out.shape[:2], -1))
        return _masked(out, _real(state, mask), self.target)

    def extra_repr(self) -> str:
        """Places and channels."""
        return f"{self.source} -> {self.target}, {self.in_channels} -> {self.out_channels}"


def equivariant_basis(state: Tensor, target: Place, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """The basis maps applied to a state: :data:`BASIS_SIZES` tensors of the target's shape, channel by channel.

    Args:
        state: [B, M, M, c] or [B, M, c].
        target: where they lead.
        mask: [B, M], True on real vertices.

    Raises:
        BadInput: a state or mask of another shape.
    """
    real = _real(state, mask)
    source: Place = "pair" if state.dim() == 4 else "vertex"
    x = _masked(state, real, source)
    count = real.sum(1).clamp(min=1).to(x.dtype)[:, None]  # [B, 1]
    if source == "vertex":
        mean = x.sum(1) / count
        vertices, graphs = (x,), (mean,)
    else:
        own = x.diagonal(dim1=1, dim2=2).transpose(1, 2)
        rows, columns = x.sum(2) / count[:, None], x.sum(1) / count[:, None]
        trace, total = own.sum(1) / count, rows.sum(1) / count
        vertices, graphs = (own, rows, columns), (trace, total)  # type: ignore[assignment]
    size = real.shape[1]
    if target == "graph":
        return graphs
    spread = tuple(part[:, None].expand(-1, size, -1) for part in graphs)
    if target == "vertex":
        return tuple(_masked(part, real, "vertex") for part in (*vertices, *spread))
    found = [x, x.transpose(1, 2)] if source == "pair" else []
    for part in vertices:  # to its row, to its column, to its place on the diagonal
        found += [part[:, :, None].expand(-1, -1, size, -1), part[:, None].expand(-1, size, -1, -1), _diagonal(part)]
    for part in spread:  # to all pairs, to the diagonal
        found += [part[:, :, None].expand(-1, -1, size, -1), _diagonal(part)]
    return tuple(_masked(part, real, "pair") for part in found)


def _real(state: Tensor, mask: Tensor | None) -> Tensor:
    fits = state.dim() in (3, 4) and (state.dim() == 3 or state.shape[1] == state.shape[2])
    if not fits:
        raise BadInput(f"a state is [B, M, M, c] or [B, M, c]; got {list(state.shape)}")
    if mask is None:
        return torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
    if mask.shape != state.shape[:2]:
        raise BadInput(f"the mask must be {list(state.shape[:2])}, one entry a vertex; got {list(mask.shape)}")
    return mask


def _masked(values: Tensor, real: Tensor, place: Place) -> Tensor:
    if place == "graph":
        return values
    shown = real if place == "vertex" else real[:, :, None] & real[:, None, :]
    return torch.where(shown.unsqueeze(-1), values, torch.zeros((), dtype=values.dtype, device=values.device))


def _diagonal(rows: Tensor) -> Tensor:
    """[B, M, c] on the diagonal of [B, M, M, c], 0 elsewhere."""
    return torch.diag_embed(rows.transpose(1, 2)).permute(0, 2, 3, 1)
