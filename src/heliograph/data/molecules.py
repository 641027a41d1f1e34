"""Molecules as graphs: ZINC structures from the wheel ``molsets``, and any SMILES of one's own, read by RDKit.

Source: ``molsets`` 0.3.1 (MIT) carries the MOSES sample of ZINC Clean Leads, 1,584,663 structures for training and
176,074 for testing, 21.4 heavy atoms on average and 26 at most. The files are read from the installed wheel; nothing is
downloaded. NumPy and RDKit only.

Shapes of one molecule: n heavy atoms, E directed edges (two a bond).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.data.keep import cache_home, read_tables, write_tables
from heliograph.errors import BadInput, MissingData

__all__ = [
    "BOND_TYPES",
    "Molecule",
    "MoleculeSample",
    "PropertyScale",
    "atom_kinds",
    "molecule",
    "penalised_log_p",
    "read_smiles",
    "zinc",
    "zinc_smiles",
]

BOND_TYPES = 4  # 0 is kept for "none", then single, double, triple
FILES = {"train": "train.csv.gz", "test": "test.csv.gz"}

AtomKind = tuple[str, int, int]


@dataclass(frozen=True)
class Molecule:
    """One molecule, kekulised.

    Attributes:
        smiles: as read.
        kinds: (element, charge, hydrogens) of each heavy atom.
        edge_index: [2, E] int64, each bond in both directions, side by side.
        bonds: [E] int64: 1 single, 2 double, 3 triple.
    """

    smiles: str
    kinds: tuple[AtomKind, ...]
    edge_index: NDArray[np.int64]
    bonds: NDArray[np.int64]


@dataclass(frozen=True)
class PropertyScale:
    """Mean and standard deviation of the three parts of the target: log P, synthetic accessibility, long cycles."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @classmethod
    def of(cls, parts_N3: NDArray[np.float64]) -> PropertyScale:
        """Of a sample; a part that never changes keeps a deviation of 1."""
        deviation = parts_N3.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        return cls(tuple(parts_N3.mean(axis=0).tolist()), tuple(deviation.tolist()))

    def combine(self, parts_N3: NDArray[np.float64]) -> NDArray[np.float64]:
        """z(log P) - z(SA) - z(cycle), [N]."""
        z = (parts_N3 - np.array(self.mean)) / np.array(self.deviation)
        return np.asarray(z[:, 0] - z[:, 1] - z[:, 2])


@dataclass(frozen=True)
class MoleculeSample:
    """Molecules with one number each, atom kinds numbered by ``vocabulary`` (0 is a kind not seen in training)."""

    molecules: tuple[Molecule, ...]
    targets: NDArray[np.float64]
    vocabulary: tuple[AtomKind, ...]
    scale: PropertyScale

    @property
    def node_types(self) -> int:
        """Size of the vocabulary, unknown kinds included."""
        return len(self.vocabulary) + 1


def zinc(n_train: int, n_test: int, seed: int = 0) -> tuple[MoleculeSample, MoleculeSample]:
    """Regression on ZINC molecules, as the ZINC benchmark (arXiv:2003.00982) defines its target.

    y = z(log P) - z(SA) - z(cycle): Crippen's log P, the synthetic accessibility score, and how much longer than 6 the
    longest ring is; each standardised over the training sample. Few of these molecules have a ring longer than 6
    (1.8 %), so the last part is nearly constant.

    Args:
        n_train, n_test: molecules, drawn without repetition from the training and the test file.
        seed: of the draw.

    Raises:
        MissingData: ``molsets`` or ``rdkit`` is not installed. BadInput: more molecules than there are.
    """
    graphs, parts = _zinc_draw(n_train, n_test, seed)
    scale = PropertyScale.of(parts[0])
    vocabulary = atom_kinds(graphs[0])
    train, test = (
        MoleculeSample(side, scale.combine(part), vocabulary, scale) for side, part in zip(graphs, parts, strict=True)
    )
    return train, test


def _zinc_draw(n_train: int, n_test: int, seed: int) -> tuple[list[tuple[Molecule, ...]], list[NDArray[np.float64]]]:
    """Molecules and the parts of the target of both sides; kept on disk, since reading the wheel takes seconds."""
    version = importlib.metadata.version("rdkit") if importlib.util.find_spec("rdkit") else ""
    code = hashlib.sha256(Path(__file__).read_bytes() + version.encode()).hexdigest()[:16]
    path = cache_home() / "zinc" / f"{n_train}-{n_test}-{seed}-{code}.tab"
    kept = read_tables(path)
    if kept is None:
        random = np.random.default_rng(seed)
        kept = {}
        for split, count in (("train", n_train), ("test", n_test)):
            lines = zinc_smiles(split)
            if not 1 <= count <= len(lines):
                raise BadInput(f"the {split} file holds {len(lines):,} molecules; got {count}")
            drawn = [lines[i] for i in random.choice(len(lines), size=count, replace=False)]
            kept |= _to_tables(split, [molecule(smiles) for smiles in drawn])
            kept[f"{split}_parts"] = penalised_log_p(drawn)
        write_tables(path, kept)
    splits = ("train", "test")
    return [_from_tables(split, kept) for split in splits], [kept[f"{split}_parts"] for split in splits]


def _to_tables(name: str, mols: Sequence[Molecule]) -> dict[str, NDArray[Any]]:
    kinds = [kind for mol in mols for kind in mol.kinds]
    return {
        f"{name}_smiles": np.array([mol.smiles for mol in mols]),
        f"{name}_atoms": np.array([len(mol.kinds) for mol in mols]),
        f"{name}_edges": np.array([len(mol.bonds) for mol in mols]),
        f"{name}_symbols": np.array([kind[0] for kind in kinds]),
        f"{name}_counts": np.array([kind[1:] for kind in kinds]),
        f"{name}_edge_index": np.concatenate([mol.edge_index for mol in mols], axis=1),
        f"{name}_bonds": np.concatenate([mol.bonds for mol in mols]),
    }


def _from_tables(name: str, tables: dict[str, NDArray[Any]]) -> tuple[Molecule, ...]:
    symbols, counts = tables[f"{name}_symbols"].tolist(), tables[f"{name}_counts"].tolist()
    kinds = [(symbol, charge, hydrogens) for symbol, (charge, hydrogens) in zip(symbols, counts, strict=True)]
    edge_index, bonds = tables[f"{name}_edge_index"], tables[f"{name}_bonds"]
    out, atom, edge = [], 0, 0
    columns = (tables[f"{name}_{part}"].tolist() for part in ("smiles", "atoms", "edges"))
    for smiles, atoms, edges in zip(*columns, strict=True):
        own = slice(edge, edge + edges)
        out.append(Molecule(smiles, tuple(kinds[atom : atom + atoms]), edge_index[:, own].copy(), bonds[own].copy()))
        atom, edge = atom + atoms, edge + edges
    return tuple(out)


@functools.cache
def zinc_smiles(split: str) -> tuple[str, ...]:
    """All SMILES of the training or the test file.

    Raises:
        MissingData: ``molsets`` is not installed.
    """
    found = importlib.util.find_spec("moses")
    if found is None or not found.submodule_search_locations:
        raise MissingData("molsets", "pip install --no-deps molsets")
    path = Path(next(iter(found.submodule_search_locations))) / "dataset" / "data" / FILES[split]
    with gzip.open(path, "rt", encoding="ascii") as lines:
        next(lines)
        return tuple(line.split(",")[0].strip() for line in lines)


def penalised_log_p(smiles: Sequence[str]) -> NDArray[np.float64]:
    """log P, synthetic accessibility and max(0, longest ring - 6) of each molecule, [N, 3]."""
    crippen, scorer = _rdkit("rdkit.Chem.Crippen"), _sa_scorer()
    rows = np.empty((len(smiles), 3))
    for place, text in enumerate(smiles):
        mol = _parse(text)
        rings = mol.GetRingInfo().AtomRings()
        longest = max((len(ring) for ring in rings), default=0)
        rows[place] = crippen.MolLogP(mol), scorer.calculateScore(mol), max(0, longest - 6)
    return rows


def molecule(smiles: str) -> Molecule:
    """The heavy-atom graph of a SMILES.

    Raises:
        BadInput: RDKit cannot read it. MissingData: ``rdkit`` is not installed.
    """
    return from_rdkit(_parse(smiles), smiles)


def from_rdkit(mol: Any, smiles: str = "") -> Molecule:
    """The heavy-atom graph of an RDKit molecule, which is left as it is."""
    chem = _rdkit("rdkit.Chem")
    mol = chem.Mol(mol)
    chem.Kekulize(mol, clearAromaticFlags=True)
    kinds = tuple((atom.GetSymbol(), atom.GetFormalCharge(), atom.GetTotalNumHs()) for atom in mol.GetAtoms())
    order = {chem.BondType.SINGLE: 1, chem.BondType.DOUBLE: 2, chem.BondType.TRIPLE: 3}
    edges, bonds = [], []
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges += [ends, ends[::-1]]
        bonds += [order.get(bond.GetBondType(), 1)] * 2
    table = np.array(edges, dtype=np.int64).reshape(-1, 2).T.copy()
    return Molecule(smiles, kinds, table, np.array(bonds, dtype=np.int64))


def read_smiles(lines: Sequence[str]) -> tuple[list[Molecule | None], str]:
    """Each line's molecule, None where RDKit cannot read it, and one sentence about those ("" where there are none)."""
    found: list[Molecule | None] = []
    wrong: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(molecule(line))
        except BadInput:
            found.append(None)
            wrong.append((number, line))
    if not wrong:
        return found, ""
    number, line = wrong[0]
    few = f"{len(wrong)} of {len(lines)} SMILES cannot be read and are left out"
    return found, f"{few}; the first is row {number}: {line!r}"


def atom_kinds(molecules: Sequence[Molecule]) -> tuple[AtomKind, ...]:
    """The kinds of atom that occur, sorted: a vocabulary whose entry k is numbered k + 1."""
    return tuple(sorted({kind for mol in molecules for kind in mol.kinds}))


def _parse(smiles: str) -> Any:
    mol = _rdkit("rdkit.Chem").MolFromSmiles(smiles) if smiles.strip() else None
    if mol is None or mol.GetNumAtoms() == 0:
        raise BadInput(f"RDKit cannot read the SMILES {smiles!r}")
    return mol


@functools.cache
def _rdkit(name: str) -> ModuleType:
    try:
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingData("rdkit", "pip install rdkit") from error


@functools.cache
def _sa_scorer() -> ModuleType:
    """The synthetic accessibility score that RDKit ships among its contributions, with its table of fragments."""
    folder = Path(str(_rdkit("rdkit.RDConfig").RDContribDir)) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("heliograph_sascorer", folder)
    if spec is None or spec.loader is None or not folder.is_file():
        raise MissingData("rdkit with its Contrib folder", "pip install --force-reinstall rdkit")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
