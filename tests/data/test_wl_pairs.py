"""The named pairs are what their names say."""

import pickle

import networkx as nx
import numpy as np
import pytest

from heliograph.data.wl_pairs import atlas_pairs, cfi_pair, chang_pairs, named_pairs, read_brec, rook_pair
from heliograph.errors import BadInput


def test_the_atlas_holds_26_pairs_of_which_20_are_connected():
    pairs = atlas_pairs()
    assert len(pairs) == 26
    assert sum(nx.is_connected(pair.first) and nx.is_connected(pair.second) for pair in pairs) == 20


@pytest.mark.parametrize("pair", [p for p in named_pairs() if len(p.first) < 28], ids=lambda pair: pair.name)
def test_a_pair_agrees_in_degrees_and_is_not_isomorphic(pair):
    degrees = [sorted(degree for _, degree in graph.degree()) for graph in (pair.first, pair.second)]
    assert degrees[0] == degrees[1]
    assert not nx.is_isomorphic(pair.first, pair.second)


@pytest.mark.parametrize(
    ("graph", "parameters"),
    [(rook_pair().first, (6, 2, 2)), (rook_pair().second, (6, 2, 2)), (chang_pairs()[0].first, (12, 6, 4))]
    + [(pair.second, (12, 6, 4)) for pair in chang_pairs()],
)
def test_strongly_regular_graphs_have_their_parameters(graph, parameters):
    adj = nx.to_numpy_array(graph, dtype=int)
    degree, adjacent, apart = parameters
    squared = adj @ adj
    others = ~np.eye(len(adj), dtype=bool)
    assert set(adj.sum(axis=0)) == {degree}
    assert set(squared[adj == 1]) == {adjacent}
    assert set(squared[(adj == 0) & others]) == {apart}


def test_the_chang_graphs_differ_from_t8_and_from_each_other():
    graphs = [chang_pairs()[0].first, *(pair.second for pair in chang_pairs())]
    # the number of vertices in each vertex's neighbourhood cliques tells all four apart
    profiles = [sorted(sum(1 for _ in nx.find_cliques(g.subgraph(g[v]))) for v in g) for g in graphs]
    assert len({tuple(profile) for profile in profiles}) == 4


def test_two_twists_cancel_in_cfi():
    base = nx.complete_graph(4)
    even, odd = cfi_pair(base).first, cfi_pair(base).second
    other_base = nx.relabel_nodes(base, {0: 3, 3: 0})
    assert nx.is_isomorphic(odd, cfi_pair(other_base).second)
    assert not nx.is_isomorphic(even, odd)


def test_cfi_of_a_cycle_is_two_cycles_against_one():
    pair = cfi_pair(nx.cycle_graph(5))
    assert sorted(map(len, nx.connected_components(pair.first))) == [5, 5]
    assert sorted(map(len, nx.connected_components(pair.second))) == [10]


def test_cfi_of_k4_is_the_rook_and_shrikhande_pair():
    pair, rook = cfi_pair(nx.complete_graph(4)), rook_pair()
    matches = [[nx.is_isomorphic(a, b) for b in (rook.first, rook.second)] for a in (pair.first, pair.second)]
    assert sorted(matches) == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "base",
    [
        nx.empty_graph(2),
        nx.empty_graph(0),
        nx.Graph([(0, 1), (2, 3)]),
        nx.Graph([(0, 0), (0, 1)]),
        nx.DiGraph([(0, 1)]),
    ],
)
def test_a_base_that_cannot_be_twisted_is_refused(base):
    with pytest.raises(BadInput):
        cfi_pair(base)


def graph6(graph):
    return nx.to_graph6_bytes(graph, header=False).strip()


@pytest.mark.parametrize("kind", ["bytes", "object", "strings"])
def test_a_brec_file_gives_its_pairs(tmp_path, kind):
    graphs = [graph for pair in named_pairs()[:3] for graph in (pair.first, pair.second)]
    entries = [graph6(graph) for graph in graphs]
    array = np.array(entries)
    if kind == "object":
        array = np.array(entries, dtype=object)
    elif kind == "strings":
        array = np.array([entry.decode() for entry in entries], dtype=object)
    np.save(tmp_path / "brec.npy", array, allow_pickle=True)
    pairs = read_brec(tmp_path / "brec.npy")
    assert [nx.to_numpy_array(g).tolist() for p in pairs for g in (p.first, p.second)] == [
        nx.to_numpy_array(g).tolist() for g in graphs
    ]


def test_the_published_layout_gives_400_pairs(tmp_path):
    array = np.array([graph6(nx.cycle_graph(3 + number % 128 // 64)) for number in range(51_200)])
    np.save(tmp_path / "brec_v3.npy", array)
    pairs = read_brec(tmp_path / "brec_v3.npy")
    assert len(pairs) == 400
    assert [len(pair.first) for pair in pairs[:3]] == [3, 4, 3]


class Hostile:
    def __reduce__(self):
        return (print, ("hostile code ran",))


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, capsys):
    array = np.array([Hostile(), Hostile()], dtype=object)
    np.save(tmp_path / "hostile.npy", array, allow_pickle=True)
    with pytest.raises(BadInput, match=r"asks for builtins\.print"):
        read_brec(tmp_path / "hostile.npy")
    assert "hostile" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        pickle.dumps([b"A_"]),
        None,
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "file.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput):
        read_brec(path)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2]),
        np.array([b"A_"]),
        np.array([b"A_", b"\x01\x02"]),
        np.array([b"A_", 3], dtype=object),
        np.array([], dtype="S4"),
    ],
)
def test_entries_that_are_no_pairs_of_graphs_are_refused(tmp_path, array):
    np.save(tmp_path / "file.npy", array, allow_pickle=True)
    with pytest.raises(BadInput):
        read_brec(tmp_path / "file.npy")


def test_a_truncated_pickle_is_refused(tmp_path):
    np.save(tmp_path / "file.npy", np.array([b"A_", b"A_"], dtype=object), allow_pickle=True)
    whole = (tmp_path / "file.npy").read_bytes()
    (tmp_path / "file.npy").write_bytes(whole[:-9])
    with pytest.raises(BadInput, match="cannot be read"):
        read_brec(tmp_path / "file.npy")
