r"""One layer of GRIT: attention over all pairs that also renews the pairs' states (arXiv:2305.17589, section 3.2).

Shapes: N vertices, P ordered pairs in the order of ``complete_support``, B graphs padded to M vertices, C channels,
H heads of D = C / H channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.attend import GritScore
from heliograph.graphs.core.states import MaskedBatchNorm, PairBatch
from heliograph.graphs.grit.pairs import Backend, PairLayout

__all__ = ["GRITLayer"]


class GRITLayer(nn.Module):
    r"""Vertices attend to all vertices of their graph, by scores that are computed in the states of pairs.

    .. math::
        t_{ij} &= \mathrm{relu}\big(\rho((W_Q x_i + W_K x_j) \odot W_{Ew} e_{ij}) + W_{Eb} e_{ij}\big), \qquad
        a_{ij} = \mathrm{softmax}_j(\mathrm{clamp}(w_A \cdot t_{ij}, -c, c)) \\
        y_i &= \sum_j a_{ij} (W_V x_j + W_{Ev} t_{ij}), \qquad
        z_i = \theta_1 \odot y_i + \log(1 + d_i)\, \theta_2 \odot y_i \\
        x'_i &= \mathrm{norm}(x_i + W_O z_i), \qquad
        x''_i = \mathrm{norm}(x'_i + W_2 \mathrm{relu}(W_1 x'_i)), \qquad
        e'_{ij} = \mathrm{norm}(e_{ij} + W_{Eo} t_{ij})

    per head up to z. The square root with a sign, rho, is that of :class:`GritScore`; d is the degree in the graph
    itself. The norm is batch norm over real vertices or pairs: layer norm would undo the degree's factor.

    Args:
        hidden, heads: C and H.
        dropout: of y, of t on its way into e', and within the feed-forward part.
        attention_dropout: of the weights a.
        clamp: c; None for no limit.
        update_pairs: False leaves e as it is, and the layer without its parameters for that.
        degree_scaler: False leaves z = y.

    Raises:
        BadInput: heads that do not divide hidden, a share outside [0, 1), a limit that is not positive.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        clamp: float | None = 5.0,
        update_pairs: bool = True,
        degree_scaler: bool = True,
    ) -> None:
        super().__init__()
        if min(hidden, heads) < 1 or hidden % heads:
            raise BadInput(f"heads must divide hidden, the channels; got {heads} heads and {hidden} channels")
        if not 0 <= dropout < 1 or not 0 <= attention_dropout < 1:
            raise BadInput(f"dropout is a share and must lie in [0, 1); got {dropout} and {attention_dropout}")
        if clamp is not None and not clamp > 0:
            raise BadInput(f"clamp limits scores on both sides and must be positive, or None; got {clamp}")
        dim = hidden // heads
        self.hidden, self.heads, self.update_pairs = hidden, heads, update_pairs
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.value, self.pair = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, 2 * hidden)
        for linear in (self.query, self.key, self.value, self.pair):
            nn.init.xavier_normal_(linear.weight)
        self.score = GritScore(heads, dim, clamp)
        self.pair_value = nn.Parameter(torch.empty(dim, heads, dim))
        nn.init.xavier_normal_(self.pair_value)
        self.degree = nn.Parameter(torch.empty(1, hidden, 2)) if degree_scaler else None
        if self.degree is not None:
            nn.init.xavier_normal_(self.degree)
        self.out, self.norm = nn.Linear(hidden, hidden), MaskedBatchNorm(hidden)
        self.pair_out = nn.Linear(hidden, hidden) if update_pairs else None
        self.pair_norm = MaskedBatchNorm(hidden) if update_pairs else None
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * hidden, hidden)
        )
        self.feed_forward_norm = MaskedBatchNorm(hidden)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        mask: Tensor | None = None,
        log_degree: Tensor | None = None,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """The new states of vertices and pairs, 0 wherever padded.

        Args:
            x: [B, M, C].
            e: [B, M, M, C]; ``e[b, i, j]`` is what target i knows of source j.
            mask: [B, M], True on real vertices; all real where None.
            log_degree: [B, M], log(1 + d); needed by a layer with a degree scaler.
            backend: "dense", "edges", or "auto" by bytes.

        Raises:
            BadInput: shapes that do not fit. MemoryEstimateError: not enough memory for the pairs.
        """
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        graphs, size, _ = x.shape if x.dim() == 3 else (0, 0, 0)
        if x.shape != (graphs, size, self.hidden) or e.shape != (graphs, size, size, self.hidden):
            raise BadInput(
                f"x must be [B, M, {self.hidden}] and e [B, M, M, {self.hidden}]; got {list(x.shape)} and "
                f"{list(e.shape)}"
            )
        if mask.shape != (graphs, size) or (log_degree is not None and log_degree.shape != (graphs, size)):
            found = list(mask.shape), None if log_degree is None else list(log_degree.shape)
            raise BadInput(f"mask and log_degree must be [{graphs}, {size}]; got {found[0]} and {found[1]}")
        states = PairBatch(x, e, mask)
        layout = PairLayout.of(states.support(), backend, hidden=self.hidden, element_size=x.element_size())
        rows, pairs = states.to_rows()
        degrees = None if log_degree is None else log_degree[mask].unsqueeze(-1)
        new_x, new_e, _ = self.exchange(rows, pairs, layout, degrees)

        def padded(rows: Tensor, real: Tensor) -> Tensor:
            blank = rows.new_zeros((*real.shape, rows.shape[-1]))
            return blank.masked_scatter(real.unsqueeze(-1), rows)

        return padded(new_x, mask), padded(new_e, states.pair_mask)

    def exchange(
        self, x: Tensor, e: Tensor, layout: PairLayout, log_degree: Tensor | None, *, keep_weights: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The layer on rows: x [N, C], e [P, C], log_degree [N, 1]; also the weights a [P, H] if they are kept."""
        by_head = (-1, (self.heads, self.hidden // self.heads))
        heard = layout.attend(
            self.query(x).unflatten(*by_head),
            self.key(x).unflatten(*by_head),
            self.value(x).unflatten(*by_head),
            self.pair(e).unflatten(-1, (self.heads, -1)),
            self.score,
            self.attention_dropout,
            keep_state=self.update_pairs,
            keep_weights=keep_weights,
        )
        # W_Ev is applied to the weighted sum of t, not to each pair
        y = heard.out + torch.einsum("nhd,dhc->nhc", heard.heard, self.pair_value.to(heard.heard.dtype))
        y = self.dropout(y.flatten(1))
        if self.degree is not None:
            if log_degree is None:
                raise BadInput("a layer with a degree scaler needs log_degree, log(1 + degree) of each vertex")
            y = y * self.degree[0, :, 0] + log_degree * y * self.degree[0, :, 1]
        x = self.norm(x + self.out(y))
        x = self.feed_forward_norm(x + self.feed_forward(x))
        if self.pair_out is not None and self.pair_norm is not None and heard.state is not None:
            e = self.pair_norm(e + self.pair_out(self.dropout(heard.state.flatten(1))))
        return x, e, heard.weights
