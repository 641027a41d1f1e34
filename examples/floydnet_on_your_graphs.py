"""Trains FloydNet on PyTorch Geometric graphs: here, to count the triangles through each vertex.

Replace ``your_graphs`` by your own list of ``Data``. Features are looked up in tables, so ``x`` and ``edge_attr`` hold
integers; ``node_vocab`` and ``edge_vocab`` say how many values each has.
"""

import networkx as nx
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.utils import from_networkx

from heliograph.graphs import FloydNet


def your_graphs(count: int = 48) -> list[Data]:
    """Random graphs of 6 to 9 vertices with a kind a vertex and the triangles through it as the target."""
    graphs = []
    for seed in range(count):
        graph = nx.gnp_random_graph(6 + seed % 4, 0.5, seed=seed)
        data = from_networkx(graph)
        data.x = torch.arange(len(graph)) % 3
        data.y = torch.tensor([float(nx.triangles(graph, vertex)) for vertex in graph])
        graphs.append(data)
    return graphs


def main(steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    loader = DataLoader(your_graphs(), batch_size=16, shuffle=True)
    model = FloydNet(node_vocab=3, dim=16, heads=2, depth=3, levels=("vertex",), out_dim=1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            loss = (model.forward_pyg(batch).vertex.squeeze(-1) - batch.y).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    print(f"mean absolute error: {losses[0]:.3g} at the first step, {losses[-1]:.3g} after {len(losses)}")
    return losses


if __name__ == "__main__":
    main()
