"""Who may attend to whom, from what is known of each token: one description, dense or as a FlexAttention predicate.

Shapes: B sequences, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heliograph.errors import BadInput

__all__ = ["MaskSpec"]


@dataclass(frozen=True, eq=False)
class MaskSpec:
    """A query sees a key of the same document, not later than itself and not farther back than the window.

    Attributes:
        query_position, key_position: [B, Q] and [B, K], places within the sequence. A key that is not there yet has a
            position of -1 and is seen by nobody.
        query_document, key_document: [B, Q] and [B, K]; None where each sequence is one document.
        causal: whether later keys are hidden.
        window: how many positions back a query sees, itself included; None for all.
    """

    query_position: Tensor
    key_position: Tensor
    query_document: Tensor | None = None
    key_document: Tensor | None = None
    causal: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit."""
        if self.query_position.dim() != 2 or self.key_position.dim() != 2:
            raise BadInput("positions must be [B, Q] and [B, K]")
        if (self.query_document is None) != (self.key_document is None):
            raise BadInput("name the documents of queries and keys, or of neither")
        if self.window is not None and self.window < 1:
            raise BadInput(f"a window sees at least the token itself; got {self.window}")

    def dense(self) -> Tensor:
        """[B, Q, K], True where attention is allowed."""
        q, k = self.query_position[:, :, None], self.key_position[:, None, :]
        allowed = (k >= 0).expand(-1, q.shape[1], -1)
        if self.causal:
            allowed = allowed & (k <= q)
        if self.window is not None:
            allowed = allowed & (q - k < self.window)
        if self.query_document is not None and self.key_document is not None:
            allowed = allowed & (self.query_document[:, :, None] == self.key_document[:, None, :])
        return allowed

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same as FlexAttention's ``mask_mod(batch, head, query, key)``."""
        positions = self.query_position, self.key_position
        documents = self.query_document, self.key_document
        causal, window = self.causal, self.window

        def allowed(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
            at, of = positions[0][b, q], positions[1][b, k]
            seen = of >= 0
            if causal:
                seen = seen & (of <= at)
            if window is not None:
                seen = seen & (at - of < window)
            if documents[0] is not None and documents[1] is not None:
                seen = seen & (documents[0][b, q] == documents[1][b, k])
            return seen

        return allowed

    def to(self, device: torch.device | str) -> MaskSpec:
        """The same on another device."""

        def moved(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device)

        return replace(
            self,
            query_position=self.query_position.to(device),
            key_position=self.key_position.to(device),
            query_document=moved(self.query_document),
            key_document=moved(self.key_document),
        )
