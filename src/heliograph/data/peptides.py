"""Peptides with a measured function, as heavy-atom graphs: antimicrobial against UniProt, from the wheel ``modlamp``.

Source: ``modlamp`` 4 (BSD-3) carries ``AMPvsUniProt``: 2,600 antimicrobial peptides and 2,600 sequences of UniProt
without that function. RDKit turns a sequence into a molecule of 140 to 220 heavy atoms on average.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliograph.data.molecules import Molecule, from_rdkit
from heliograph.errors import MissingData

__all__ = ["amp_sequences", "peptide_molecule"]


def amp_sequences() -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Sequences in one-letter code, and 1 for antimicrobial, else 0.

    Raises:
        MissingData: ``modlamp`` is not installed.
    """
    found = importlib.util.find_spec("modlamp")
    if found is None or not found.submodule_search_locations:
        raise MissingData("modlamp", "pip install --no-deps modlamp")
    path = Path(next(iter(found.submodule_search_locations))) / "data" / "AMPvsUniProt.csv"
    lines = path.read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split(",") for line in lines if line.strip()]
    return tuple(sequence.strip() for sequence, _ in rows), np.array([int(label) for _, label in rows], dtype=np.int64)


def peptide_molecule(sequence: str) -> Molecule | None:
    """The heavy-atom graph of a peptide; None where a letter stands for no natural amino acid."""
    try:
        chem = importlib.import_module("rdkit.Chem")
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
    except ImportError as error:
        raise MissingData("rdkit", "pip install rdkit") from error
    mol = chem.MolFromSequence(sequence)
    return None if mol is None or mol.GetNumAtoms() == 0 else from_rdkit(mol, sequence)
