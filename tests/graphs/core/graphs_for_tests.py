"""Small graphs with every oddity: isolated vertices, self-loops, parallel and one-way edges, no edges at all."""

import torch
from hypothesis import strategies as st


@st.composite
def odd_graphs(draw, largest=7, most_edges=14):
    """(edge_index, num_vertices) with self-loops, parallel edges and isolated vertices."""
    size = draw(st.integers(1, largest))
    vertex = st.integers(0, size - 1)
    pairs = draw(st.lists(st.tuples(vertex, vertex), max_size=most_edges))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).t().contiguous(), size


@st.composite
def odd_batches(draw, most=3):
    """(edge_index, batch vector, edge counts) of one to three odd graphs joined as PyTorch Geometric does."""
    parts = draw(st.lists(odd_graphs(5, 9), min_size=1, max_size=most))
    edges, batch, start = [], [], 0
    for number, (edge_index, size) in enumerate(parts):
        edges.append(edge_index + start)
        batch += [number] * size
        start += size
    return torch.cat(edges, dim=1), torch.tensor(batch), parts
