"""Scaffold splits: whole scaffolds, the largest to training."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.graphs.core.splits import murcko_scaffolds, scaffold_split
from heliograph.graphs.inputs import make_task, read_graphs

# four benzenes, two cyclohexanes, two pyridines, one naphthalene, one without a ring
SMILES = [
    "Cc1ccccc1", "CCO", "OC1CCCCC1", "Oc1ccccc1", "Cc1ccccn1", "Nc1ccccc1", "NC1CCCCC1", "Clc1ccccc1", "Oc1ccccn1",
    "Cc1ccc2ccccc2c1",
]  # fmt: skip


def test_scaffolds_are_ring_systems_without_what_hangs_on_them() -> None:
    pytest.importorskip("rdkit")
    found = murcko_scaffolds(["Cc1ccccc1", "CCO", "C1CCCCC1CCc1ccccc1", "C[C@H]1CC[C@@H](O)CC1"])
    assert found == ["c1ccccc1", "", "c1ccc(CCC2CCCCC2)cc1", "C1CCCCC1"]


def test_a_smiles_that_cannot_be_read_is_refused() -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(BadInput, match="not-a-molecule"):
        murcko_scaffolds(["CC", "not-a-molecule"])


def test_the_largest_scaffolds_go_to_training_in_the_order_of_the_file() -> None:
    train, valid, test = scaffold_split(list("aaaabbcdef"), 0.2, 0.2)
    assert (train, valid, test) == ([0, 1, 2, 3, 4, 5], [6, 7], [8, 9])


@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=60),
    st.floats(0.05, 0.45, allow_nan=False),
    st.floats(0.05, 0.45, allow_nan=False),
)
def test_no_scaffold_is_in_two_parts_and_no_molecule_is_lost(kinds: list[int], valid: float, test: float) -> None:
    scaffolds = [str(kind) for kind in kinds]
    try:
        parts = scaffold_split(scaffolds, valid, test)
    except BadInput:  # one scaffold is too large
        return
    assert sorted(place for part in parts for place in part) == list(range(len(scaffolds)))
    owners = [{scaffolds[place] for place in part} for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners))
    assert len(parts[0]) <= (1 - valid - test) * len(scaffolds) + 1e-9
    assert len(parts[1]) <= valid * len(scaffolds) + 1e-9


def test_one_scaffold_for_all_is_refused_with_its_size() -> None:
    with pytest.raises(BadInput, match=r"1 scaffolds of 5 molecules .* has 5"):
        scaffold_split(["a"] * 5, 0.2, 0.2)


def test_a_smiles_table_is_split_by_scaffold(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    path = tmp_path / "m.csv"
    rows = [f"{smiles},{0.5 + place}" for place, smiles in enumerate(["broken(", *SMILES])]
    path.write_text("\n".join(["smiles,y", *rows]) + "\n")
    task = make_task(read_graphs(path, "y", split="scaffold"), "m", valid=0.2, test=0.2)
    values = [sorted(float(graph.y) for graph in part) for part in (task.train, task.valid, task.test)]
    # benzenes and cyclohexanes; pyridines; naphthalene and the one without rings
    assert values == [[1.5, 3.5, 4.5, 6.5, 7.5, 8.5], [5.5, 9.5], [2.5, 10.5]]
    assert any("5 scaffolds" in note for note in task.notes)


def test_a_column_of_that_name_wins(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    path = tmp_path / "m.csv"
    rows = [f"{smiles},{0.5 + n},{'test' if n == 0 else 'train'}" for n, smiles in enumerate(SMILES)]
    path.write_text("\n".join(["smiles,y,scaffold", *rows]) + "\n")
    task = make_task(read_graphs(path, "y", split="scaffold"), "m")
    assert [float(graph.y) for graph in task.test] == [0.5]
