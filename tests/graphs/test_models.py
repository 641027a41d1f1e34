"""Every named network on the same small tasks: inputs, saving, batches, sizes that it refuses."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs import evaluate, fit, load_model, predict
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import GraphTask, infer_target
from heliograph.graphs.core.train import encoded
from heliograph.graphs.models import MODELS, Shape, build_model

SMALL = Shape(layers=2, hidden=16, walk_steps=4)


def small_graphs(level: str, count: int = 12) -> list[Data]:
    random = torch.Generator().manual_seed(0)
    graphs = []
    for number in range(count):
        size = 3 + number % 4
        half = torch.randint(size, (2, 5), generator=random)
        edges = torch.cat([half, half.flip(0)], dim=1)
        y = torch.randint(2, (size,), generator=random) if level == "vertex" else torch.tensor([number % 2])
        graphs.append(
            Data(
                x=torch.randint(3, (size,), generator=random),
                edge_index=edges,
                edge_attr=torch.randint(2, (5,), generator=random).repeat(2),
                y=y,
            )
        )
    return graphs


def small_task(level: str) -> GraphTask:
    graphs = small_graphs(level)
    target = infer_target(graphs).fitted(graphs)
    return GraphTask("small", tuple(graphs), (), tuple(graphs), target, node_types=3, edge_types=2)


@pytest.mark.parametrize("level", ["graph", "vertex"])
@pytest.mark.parametrize("name", MODELS)
def test_network_trains_is_kept_and_answers_the_same_alone_as_in_a_batch(name, level, tmp_path):
    task = small_task(level)
    torch.manual_seed(0)
    model = build_model(name, task.inputs(), level, SMALL)
    graphs = encoded(model, task.train, use_cache=False)
    fitted = fit(model, graphs, target=task.target, epochs=1, batch_size=4, device="cpu")
    fitted.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    answers = predict(fitted, graphs, batch_size=5)
    torch.testing.assert_close(answers, predict(again, graphs, batch_size=12), atol=1e-4, rtol=1e-4)
    alone = torch.cat([predict(again, [graph]) for graph in graphs])
    torch.testing.assert_close(answers, alone, atol=1e-4, rtol=1e-4)
    assert 0 <= evaluate(fitted, graphs).quality <= 1


@pytest.mark.parametrize("name", MODELS)
def test_wider_network_has_more_parameters(name):
    task = small_task("graph")
    small, large = (build_model(name, task.inputs(), "graph", Shape(2, width, walk_steps=4)) for width in (16, 32))
    assert count_parameters(large) > 2 * count_parameters(small)


def test_bad_choices_are_refused():
    inputs = small_task("graph").inputs()
    with pytest.raises(BadInput, match="choose from gnn_plus"):
        build_model("transformer", inputs, "graph")
    with pytest.raises(BadInput, match="multiple of"):
        build_model("gps", inputs, "graph", Shape(hidden=17))
    with pytest.raises(BadInput, match="gnn_plus only"):
        build_model("gps", inputs, "graph", Shape(off=("ffn",)))
    with pytest.raises(BadInput, match="steps"):
        build_model("grit", inputs, "graph", Shape(walk_steps=0))
    with pytest.raises(BadInput, match=r"dropout in \[0, 1\)"):
        Shape(dropout=1.0)


def test_network_on_all_pairs_refuses_a_large_graph_before_it_takes_the_memory():
    inputs = {"out_dim": 1, "node_types": 3, "in_dim": 0, "edge_types": None, "edge_dim": 0}
    model = build_model("floydnet", inputs, "graph", SMALL)
    graph = Data(x=torch.zeros(300, dtype=torch.long), edge_index=torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(MemoryEstimateError, match="300 vertices"):
        model(Batch.from_data_list([graph]))


def test_network_without_messages_does_not_see_edges():
    graphs = small_graphs("graph", 4)
    model = build_model("mlp", small_task("graph").inputs(), "graph", SMALL).eval()
    bare = [Data(x=graph.x, edge_index=graph.edge_index[:, :0], y=graph.y) for graph in graphs]
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), model(Batch.from_data_list(bare)))
