"""Meshes on a device, side by side: all that a step of a simulator needs but the fields.

Shapes: N vertices, E edges of the support, D dimensions of space.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer.mesh_graph_net import edge_geometry
from heliograph.graphs.mesh_transformer.supports import join_supports

__all__ = ["MeshFrame"]


@dataclass(frozen=True, eq=False)
class MeshFrame:
    """Meshes on a device, side by side, without their fields.

    Attributes:
        pos: [N, D].
        code: [N, NODE_TYPES], one-hot.
        normal: [N, 1], 1 on normal vertices, which get noise.
        free: indices of the vertices that are predicted.
        held: [N, 1] bool, the others.
        support: who hears whom; ``support.batch`` numbers the meshes.
    """

    pos: Tensor
    code: Tensor
    normal: Tensor
    free: Tensor
    held: Tensor
    support: Support

    @cached_property
    def edge_index(self) -> Tensor:
        """The support's edges, [2, E]."""
        return torch.stack([self.support.source, self.support.target])

    @cached_property
    def geometry(self) -> Tensor:
        """Relative position and length of the support's edges, [E, D + 1]."""
        return edge_geometry(self.pos, self.edge_index)

    @classmethod
    def join(cls, frames: Sequence[MeshFrame]) -> MeshFrame:
        """The meshes of several frames side by side."""
        if len(frames) == 1:
            return frames[0]
        parts = {
            name: torch.cat([getattr(frame, name) for frame in frames]) for name in ("pos", "code", "normal", "held")
        }
        begins = [0, *itertools.accumulate(len(frame.pos) for frame in frames[:-1])]
        free = torch.cat([frame.free + begin for frame, begin in zip(frames, begins, strict=True)])
        return cls(**parts, free=free, support=join_supports([frame.support for frame in frames]))
