import math

import networkx as nx
import pytest
import torch
from torch_geometric.data import Batch, Data

from heliograph.errors import BadInput
from heliograph.graphs.inputs import make_task, read_graphs

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "C", "CCN", "CCCl", "C1CCCCC1", "C#N", "CO", "CC", "CCC", "C=C"]


def write_smiles(path, values, head="smiles,solubility", smiles=SMILES):
    path.write_text("\n".join([head, *(f"{s},{v}" for s, v in zip(smiles, values, strict=False))]) + "\n")
    return path


def write_tables(folder, **changes):
    """Two graphs of 3 and 2 vertices, with features, edge features and a target a vertex and a graph."""
    tables = {
        "edges": "graph,source,target,weight,length\n1,0,1,1,0.5\n1,1,2,2,0.25\n2,0,1,1,0.125\n",
        "vertices": "graph,mass,y\n1,1.5,0\n1,2.5,1\n1,3.5,0\n2,4.5,1\n2,5.5,1\n",
        "graphs": "graph,energy,part\n1,0.5,train\n2,1.5,test\n",
    }
    folder.mkdir(exist_ok=True)
    for name, text in {**tables, **changes}.items():
        if text is not None:
            (folder / f"{name}.csv").write_text(text)
    return folder


def test_smiles_become_molecules_with_numbers(tmp_path):
    pytest.importorskip("rdkit")
    read = read_graphs(write_smiles(tmp_path / "a.csv", [0.5 * i for i in range(12)]))
    assert len(read.graphs) == 12
    assert read.columns == ("solubility",)
    task = make_task(read, "a")
    assert str(task.target) == "1 number for each graph"
    assert task.inputs()["node_types"] == len(read.vocabulary) + 1
    assert task.inputs()["edge_types"] == 4
    assert [len(p) for p in (task.train, task.valid, task.test)] == [10, 1, 1]


def test_unreadable_smiles_are_left_out_and_counted(tmp_path):
    pytest.importorskip("rdkit")
    smiles = [*SMILES[:5], "what", *SMILES[6:]]
    read = read_graphs(write_smiles(tmp_path / "a.csv", range(12), smiles=smiles))
    assert len(read.graphs) == 11
    assert read.notes == ("1 of 12 SMILES cannot be read and are left out; the first is row 6: 'what'",)
    assert [int(g.y) for g in read.graphs] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_texts_become_classes_and_keep_their_names(tmp_path):
    pytest.importorskip("rdkit")
    values = ["poor", "good"] * 6
    path = write_smiles(tmp_path / "a.csv", values)
    read = read_graphs(path)
    assert read.classes == ("good", "poor")
    assert [int(g.y) for g in read.graphs[:2]] == [1, 0]
    again = read_graphs(path, classes=("poor", "good", "best"))
    assert [int(g.y) for g in again.graphs[:2]] == [0, 1]
    with pytest.raises(BadInput, match="class 'good' was not there"):
        read_graphs(path, classes=("poor",))


def test_atom_kinds_of_training_are_kept_for_prediction(tmp_path):
    pytest.importorskip("rdkit")
    read = read_graphs(write_smiles(tmp_path / "a.csv", range(3), smiles=["CC", "CO", "C"]))
    new = write_smiles(tmp_path / "b.csv", ["", ""], smiles=["CC", "CBr"])
    found = read_graphs(new, vocabulary=read.vocabulary, need_target=False)
    assert found.graphs[0].x.tolist() == [read.vocabulary.index(("C", 0, 3)) + 1] * 2
    assert found.graphs[1].x.tolist()[1] == 0


def test_tables_become_graphs(tmp_path):
    read = read_graphs(write_tables(tmp_path / "d"))
    first, second = read.graphs
    assert first.x.tolist() == [[1.5], [2.5], [3.5]]
    assert first.edge_index.tolist() == [[0, 1], [1, 2]]
    assert first.edge_attr.tolist() == [[0.5], [0.25]]
    assert first.edge_weight.tolist() == [1, 2]
    assert (first.y.tolist(), second.y.tolist()) == ([0, 1, 0], [1, 1])
    by_graph = read_graphs(tmp_path / "d", "energy", split="part")
    assert [g.y.tolist() for g in by_graph.graphs] == [[[0.5]], [[1.5]]]
    assert by_graph.split == ("train", "test")


def test_parquet_gives_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    csv = pytest.importorskip("pyarrow.csv")
    folder = write_tables(tmp_path / "d")
    expected = read_graphs(folder).graphs
    for path in list(folder.iterdir()):
        parquet.write_table(csv.read_csv(path), path.with_suffix(".parquet"))
        path.unlink()
    for one, two in zip(read_graphs(folder).graphs, expected, strict=True):
        for name in ("x", "edge_index", "edge_attr", "y"):
            assert torch.equal(one[name], two[name])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"edges": "graph,source,target\n1,0,3\n"}, r"row 0: vertex 3 of graph 1, which has 3 vertices"),
        ({"edges": "graph,source,target\n2,-1,0\n"}, r"vertex -1 of graph 2"),
        ({"edges": "graph,source,target\n7,0,0\n"}, "names graph 7"),
        ({"edges": "graph,source,target\n1,0\n"}, "line 2: 2 fields, but the first line names 3"),
        ({"edges": "graph,source\n1,0\n"}, "no column 'target'"),
        ({"edges": "graph,source,target\n1,0.5,1\n"}, "must hold whole numbers; got 0.5"),
        ({"vertices": "graph,mass,y\n1,nan,0\n2,1,1\n"}, "column 'mass', row 0 holds nan"),
        ({"vertices": "graph,mass,y\n1,heavy,0\n2,1,1\n"}, "holds 'heavy', not a number"),
        ({"vertices": "graph,mass,y\n2,1,0\n1,1,1\n"}, "sorted by graph"),
        ({"vertices": "graph,mass\n1,1\n1,1\n1,1\n2,1\n2,1\n"}, "no column 'y'"),
        ({"vertices": "mass,y\n", "edges": ""}, "is empty"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_numbers(tmp_path, changes, text):
    with pytest.raises(BadInput, match=text):
        read_graphs(write_tables(tmp_path / "d", **changes))


def test_feature_rows_that_do_not_match_the_vertices_are_refused(tmp_path):
    graph = Data(x=torch.ones(4, 1), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([1.0]), num_nodes=5)
    torch.save([graph], tmp_path / "a.pt")
    with pytest.raises(BadInput, match="4 rows of x for 5 vertices"):
        read_graphs(tmp_path / "a.pt")


def test_a_graph_too_many_rows_of_targets_is_refused(tmp_path):
    write_tables(tmp_path / "d", graphs="graph,energy\n1,0.5\n2,1\n3,2\n")
    with pytest.raises(BadInput, match="3 rows for 2 graphs"):
        read_graphs(tmp_path / "d", "energy")


def test_one_pyg_graph_is_split_by_vertices(tmp_path):
    graph = Data(x=torch.rand(20, 3), edge_index=torch.randint(20, (2, 40)), y=torch.arange(20) % 2)
    torch.save(graph, tmp_path / "one.pt")
    task = make_task(read_graphs(tmp_path / "one.pt"), "one", seed=3)
    known = [(part[0].y >= 0) for part in (task.train, task.valid, task.test)]
    assert [int(k.sum()) for k in known] == [16, 2, 2]
    assert torch.equal(torch.stack(known).sum(0), torch.ones(20, dtype=torch.long))
    assert any("transductive" in note for note in task.notes)


def test_a_saved_batch_is_refused_with_the_way_out(tmp_path):
    batch = Batch.from_data_list([Data(x=torch.ones(1, 1), edge_index=torch.zeros(2, 0, dtype=torch.long))])
    torch.save(batch, tmp_path / "b.pt")
    with pytest.raises(BadInput, match="to_data_list"):
        read_graphs(tmp_path / "b.pt")


def test_graphml_is_read_with_its_attributes(tmp_path):
    folder = tmp_path / "g"
    folder.mkdir()
    for number in range(3):
        graph = nx.path_graph(3 + number)
        nx.set_node_attributes(graph, 1.5, "mass")
        nx.set_edge_attributes(graph, 2.0, "length")
        graph.graph["toxic"] = ["yes", "no", "yes"][number]
        nx.write_graphml(graph, folder / f"{number}.graphml")
    read = read_graphs(folder, "toxic")
    assert read.classes == ("no", "yes")
    assert [g.y.tolist() for g in read.graphs] == [[1], [0], [1]]
    assert read.graphs[0].edge_index.shape == (2, 4)
    assert read.graphs[0].edge_attr.tolist() == [[2.0]] * 4
    with pytest.raises(BadInput, match="no attribute 'heat'"):
        read_graphs(folder, "heat")


def test_what_cannot_be_read_is_named(tmp_path):
    pytest.importorskip("rdkit")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("name,y\nx,1\n")
    (tmp_path / "c.graphml").write_text("<no")
    two = write_smiles(tmp_path / "two.csv", ["1,2"] * 12, head="smiles,a,b")
    for path, text in (
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path / "a.txt", "cannot tell what this is"),
        (tmp_path / "b.csv", "no column 'smiles' among name, y"),
        (tmp_path / "c.graphml", "as GraphML"),
        (two, "name the target column with --target; there are a, b"),
        (write_smiles(tmp_path / "n.csv", ["", *"12345678901"]), "holds '', not a number|has no target"),
        (write_smiles(tmp_path / "nan.csv", ["nan", *"12345678901"]), "holds nan"),
    ):
        with pytest.raises(BadInput, match=text):
            read_graphs(path)


def test_targets_that_teach_nothing_are_refused(tmp_path):
    pytest.importorskip("rdkit")
    with pytest.raises(BadInput, match="everywhere; there is nothing to learn"):
        make_task(read_graphs(write_smiles(tmp_path / "a.csv", [1.5] * 12)), "a")
    with pytest.raises(BadInput, match="has no training example"):
        make_task(
            read_graphs(write_smiles(tmp_path / "b.csv", ["a"] * 8 + ["b"] * 4)),
            "b",
            seed=next(s for s in range(500) if _leaves_out(s)),
            valid=0.3,
            test=0.3,
        )


def _leaves_out(seed):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    return all(place < 8 for place in order[8:])


def test_large_whole_numbers_are_no_types(tmp_path):
    graphs = [
        Data(x=torch.tensor([[5000 + i]]), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([i / 2]))
        for i in range(12)
    ]
    torch.save(graphs, tmp_path / "a.pt")
    with pytest.raises(BadInput, match="floating point"):
        make_task(read_graphs(tmp_path / "a.pt"), "a")


def test_nothing_is_nan_after_reading(tmp_path):
    for graph in read_graphs(write_tables(tmp_path / "d")).graphs:
        assert all(math.isfinite(v) for v in graph.x.reshape(-1).tolist())
