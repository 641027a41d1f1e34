"""Minesweeper boards as the heterophilous benchmark defines them (arXiv:2302.11640), and how their vertices are split.

Shapes: n = side x side vertices of one board.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["KINDS", "make_board", "split_board"]

KINDS = 10
"""Values of x: 0 to 8 mines around a cell, 9 for a cell whose number is not shown."""


def make_board(side: int, seed: int, mines: float = 0.2, hidden: float = 0.5) -> Data:
    """One board: x [n] shown numbers, edges to the 8 cells around, y [n] whether a cell is a mine.

    Numbers of mines and of other cells are hidden alike, with chance ``hidden``.
    """
    from torch_geometric.data import Data

    random = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(side * side), side)
    edges = []
    for down, right in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
        there = (row + down >= 0) & (row + down < side) & (column + right >= 0) & (column + right < side)
        here = np.flatnonzero(there)
        edges.append(np.stack([here, here + down * side + right]))
    edge_index = np.concatenate(edges, axis=1)
    mine = random.random(side * side) < mines
    around = np.bincount(edge_index[1], weights=mine[edge_index[0]], minlength=side * side).astype(np.int64)
    shown = random.random(side * side) >= hidden
    return Data(
        x=torch.from_numpy(np.where(shown, around, KINDS - 1)),
        edge_index=torch.from_numpy(edge_index),
        y=torch.from_numpy(mine.astype(np.int64)),
    )


def split_board(board: Data, seed: int) -> tuple[Data, Data]:
    """The board with half of its answers for training, and with a quarter for testing; -1 elsewhere."""
    order = torch.randperm(len(board.y), generator=torch.Generator().manual_seed(seed))
    half, quarter = len(order) // 2, len(order) // 4
    parts = []
    for asked in (order[:half], order[-quarter:]):
        part = board.clone()
        part.y = torch.full_like(board.y, -1)
        part.y[asked] = board.y[asked]
        parts.append(part)
    return parts[0], parts[1]
