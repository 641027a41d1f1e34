r"""MeshTransformer: vertices of a mesh attend to their mesh neighbours and to nobody else (arXiv:2508.18051).

The adjacency is the attention mask; there are no edge features and no edge states. Encoder, L blocks, decoder:

.. math:: x \leftarrow x + W_o\,\mathrm{Attn}(\mathrm{norm}(x)), \qquad u = \mathrm{norm}(x), \qquad
          x \leftarrow x + W_3(\mathrm{gelu}(W_1 u) \odot W_2 u)

Shapes: N vertices, E edges, D dimensions of space, C channels, H heads of K channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heliograph.errors import BadInput
from heliograph.graphs.core.attend import attend
from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer.supports import edge_set

__all__ = ["MeshAttentionBlock", "MeshTransformer", "MeshTransformerConfig", "RMSNorm", "mesh_mlp"]

Activation = Literal["relu", "silu"]
ROPE_BASE = 1e4


@dataclass(frozen=True)
class MeshTransformerConfig:
    """All arguments of a :class:`MeshTransformer`; JSON-ready."""

    in_dim: int
    out_dim: int
    hidden: int = 64
    layers: int = 10
    heads: int = 4
    ffn_expansion: int = 3
    mlp_layers: int = 4
    activation: str = "relu"
    rope_dim: int = 0
    gated_attention: bool = False
    shared_qkv: bool = False
    double_norm: bool = False
    recompute: bool = False


class MeshTransformer(nn.Module):
    """Masked attention on a mesh.

    Args:
        in_dim, out_dim: channels of a vertex, in and out.
        hidden, layers, heads: C, L and H; published sizes are 10 blocks of 64 channels with 4 heads.
        ffn_expansion: width of the gated feed-forward part, in C.
        mlp_layers: linear layers of the encoder and of the decoder.
        activation: of these, "relu" or "silu".
        rope_dim: dimensions D of ``pos`` by which queries and keys are rotated; 0 for none. Each axis turns
            K // (2 D) pairs of channels, by ``pos`` times frequencies from 1 down to 1e-4.
        gated_attention: what attention gives is multiplied by sigmoid(W_g norm(x)).
        shared_qkv: one projection serves as query, key and value.
        double_norm: the feed-forward part normalises once more, as the official code does.
        recompute: keep no activations inside blocks and compute them again in the backward pass: less memory, more
            time.

    Shapes:
        ``model(x, edge_index)`` takes x [N, in_dim] and edge_index [2, E] (row 0 is heard by row 1; parallel edges
        count once) and returns [N, out_dim]; ``pos`` [N, D] and ``batch`` [N] as in PyTorch Geometric. A vertex that
        hears nobody gets 0 from attention. ``support`` replaces the edges. ``model(data)`` takes a ``Data`` or
        ``Batch``.

    Raises:
        BadInput: sizes below 1, ``hidden`` not divisible by ``heads``, rotations without ``pos`` or with fewer than
            2 D channels a head, inputs that do not fit.
    """

    uses_edge_features = False

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden: int = 64,
        layers: int = 10,
        heads: int = 4,
        ffn_expansion: int = 3,
        mlp_layers: int = 4,
        activation: Activation = "relu",
        rope_dim: int = 0,
        gated_attention: bool = False,
        shared_qkv: bool = False,
        double_norm: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_dim, out_dim, hidden, layers, heads, ffn_expansion, mlp_layers)
        if min(sizes) < 1:
            raise BadInput(
                f"in_dim, out_dim, hidden, layers, heads, ffn_expansion and mlp_layers must be 1 or more; got {sizes}"
            )
        if hidden % heads:
            raise BadInput(f"hidden={hidden} channels cannot be divided among heads={heads}; choose a multiple")
        if rope_dim and hidden // heads < 2 * rope_dim:
            raise BadInput(
                f"rotations by {rope_dim} coordinates need {2 * rope_dim} channels a head; hidden={hidden} and "
                f"heads={heads} give {hidden // heads}"
            )
        self.config = MeshTransformerConfig(
            in_dim,
            out_dim,
            hidden,
            layers,
            heads,
            ffn_expansion,
            mlp_layers,
            activation,
            rope_dim,
            gated_attention,
            shared_qkv,
            double_norm,
            recompute,
        )
        self.encoder = nn.Sequential(mesh_mlp(in_dim, hidden, hidden, mlp_layers, activation), RMSNorm(hidden))
        self.blocks = nn.ModuleList(
            MeshAttentionBlock(hidden, heads, ffn_expansion, rope_dim, gated_attention, shared_qkv, double_norm)
            for _ in range(layers)
        )
        self.decoder = mesh_mlp(hidden, hidden, out_dim, mlp_layers, activation)

    def forward(
        self,
        x: Any,
        edge_index: Tensor | None = None,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        support: Support | None = None,
    ) -> Tensor:
        """[N, out_dim]; see the class."""
        if not isinstance(x, Tensor):
            return self.from_data(x, support=support)
        if x.dim() != 2 or x.shape[1] != self.config.in_dim:
            raise BadInput(f"x must be [N, {self.config.in_dim}]; got {list(x.shape)}")
        if support is None:
            if edge_index is None:
                raise BadInput("give edge_index [2, E], or a support")
            support = edge_set(edge_index, len(x), batch)
        elif support.num_vertices != len(x):
            raise BadInput(f"the support has {support.num_vertices} vertices and x {len(x)}")
        angle = self._angles(pos, len(x))
        state = self.encoder(x)
        for block in self.blocks:
            if self.config.recompute and self.training:
                state = checkpoint(block, state, support, angle, use_reentrant=False)
            else:
                state = block(state, support, angle)
        out: Tensor = self.decoder(state)
        return out

    def from_data(self, data: Any, *, support: Support | None = None) -> Tensor:
        """The same for a ``Data`` or ``Batch`` with ``x``, ``edge_index`` and, where they are needed, ``pos``."""
        return self(data.x, data.edge_index, data.get("pos"), data.get("batch"), support=support)  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> MeshTransformer:
        """The untrained model of a description."""
        return cls(**description)

    def _angles(self, pos: Tensor | None, size: int) -> Tensor | None:
        """[N, D, m]: by how much each pair of channels of each axis turns."""
        axes = self.config.rope_dim
        if not axes:
            return None
        if pos is None or pos.dim() != 2 or pos.shape != (size, axes):
            found = "none" if pos is None else str(list(pos.shape))
            raise BadInput(f"rotations need pos [{size}, {axes}]; got {found}")
        pairs = self.config.hidden // self.config.heads // (2 * axes)
        frequency = ROPE_BASE ** (-torch.arange(pairs, device=pos.device, dtype=torch.float64) / pairs)
        return pos.unsqueeze(-1) * frequency.to(pos.dtype)


class MeshAttentionBlock(nn.Module):
    """One block: attention over the support, then a gated feed-forward part, both with norm before and residual."""

    def __init__(
        self,
        dim: int,
        heads: int,
        expansion: int = 3,
        rope_dim: int = 0,
        gated: bool = False,
        shared_qkv: bool = False,
        double_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.rope_dim = heads, rope_dim
        self.norm_attention, self.norm_feed = RMSNorm(dim), RMSNorm(dim)
        self.norm_again = RMSNorm(dim) if double_norm else nn.Identity()
        self.project = nn.Linear(dim, dim if shared_qkv else 3 * dim)
        self.gate = nn.Linear(dim, dim) if gated else None
        self.mix = nn.Linear(dim, dim)
        self.rise, self.open = nn.Linear(dim, expansion * dim), nn.Linear(dim, expansion * dim)
        self.fall = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor, support: Support, angle: Tensor | None = None) -> Tensor:
        """x [N, C]; angle [N, D, m] or None. Returns the new x."""
        u = self.norm_attention(x)
        heard = self._attend(u, support, angle)
        if self.gate is not None:
            heard = heard * torch.sigmoid(self.gate(u))
        x = x + self.mix(heard)
        u = self.norm_again(self.norm_feed(x))
        out: Tensor = x + self.fall(nn.functional.gelu(self.rise(u)) * self.open(u))
        return out

    def _attend(self, u: Tensor, support: Support, angle: Tensor | None) -> Tensor:
        projected = self.project(u)
        narrow = projected.dtype
        parts = projected.chunk(3, dim=-1) if projected.shape[1] != u.shape[1] else (projected,) * 3
        # scores, softmax and sums in float32 at least, whatever the projections are computed in
        with torch.autocast(u.device.type, enabled=False):
            q, k, v = (
                (part.float() if narrow in (torch.float16, torch.bfloat16) else part).reshape(len(u), self.heads, -1)
                for part in parts
            )
            if angle is not None:
                q, k = rotate(q, angle), rotate(k, angle)
            heard = attend(support, q, k, v)
        return heard.reshape(len(u), -1).to(narrow)


class RMSNorm(nn.Module):
    r"""x / (|x| / sqrt(C) + 1e-8) times a learned gain; computed in float32 for 16-bit types."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        out: Tensor = (wide / (length + 1e-8)).to(x.dtype) * self.gain
        return out


def rotate(values_NHK: Tensor, angle_NDm: Tensor) -> Tensor:
    """Turns the first 2 D m channels of each head pair by pair; the rest stays."""
    angle = angle_NDm.flatten(1).unsqueeze(1).to(values_NHK.dtype)
    turned = 2 * angle.shape[-1]
    first, second = values_NHK[..., 0:turned:2], values_NHK[..., 1:turned:2]
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return torch.cat([pairs, values_NHK[..., turned:]], dim=-1)


def mesh_mlp(in_dim: int, hidden: int, out_dim: int, layers: int, activation: Activation = "relu") -> nn.Sequential:
    """``layers`` linear layers with activations between them.

    Raises:
        BadInput: an unknown activation.
    """
    kinds = {"relu": nn.ReLU, "silu": nn.SiLU}
    if activation not in kinds:
        raise BadInput(f"activation is relu or silu; got {activation!r}")
    widths = [in_dim, *[hidden] * (layers - 1), out_dim]
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Linear(widths[number], widths[number + 1]), kinds[activation]()]
    return nn.Sequential(*parts[:-1])
