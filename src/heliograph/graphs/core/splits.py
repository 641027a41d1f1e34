"""Molecules split by scaffold, so that those of the test are built on other ring systems than those of the training.

Source: Bemis and Murcko, J. Med. Chem. 39 (1996), for the scaffold: ring systems and the chains between them. Molecules
without a ring share the empty scaffold.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from heliograph.errors import BadInput, MissingData

__all__ = ["murcko_scaffolds", "scaffold_split"]


def murcko_scaffolds(smiles: Sequence[str]) -> list[str]:
    """The scaffold of each molecule as a canonical SMILES without stereochemistry; "" for one without rings.

    Raises:
        BadInput: a SMILES that RDKit cannot read. MissingData: ``rdkit`` is not installed.
    """
    try:
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
        chem = importlib.import_module("rdkit.Chem")
        murcko = importlib.import_module("rdkit.Chem.Scaffolds.MurckoScaffold")
    except ImportError as error:
        raise MissingData("rdkit", "pip install rdkit") from error
    out = []
    for text in smiles:
        mol = chem.MolFromSmiles(text)
        if mol is None:
            raise BadInput(f"RDKit cannot read the SMILES {text!r}")
        out.append(str(murcko.MurckoScaffoldSmiles(mol=mol, includeChirality=False)))
    return out


def scaffold_split(scaffolds: Sequence[str], valid: float, test: float) -> tuple[list[int], list[int], list[int]]:
    """Places of the training, validation and test molecules; no scaffold is in two of them.

    Scaffolds are dealt whole, those of most molecules first (at equal number the one that comes first): to training
    while they fit into its share, then to validation while they fit, else to testing.

    Raises:
        BadInput: shares outside (0, 1), or a part that stays empty because one scaffold has too many molecules.
    """
    if not 0 < valid < 1 or not 0 < test < 1 or valid + test >= 1:
        raise BadInput(f"shares must leave some molecules for training; got {valid:g} to validate and {test:g} to test")
    sets: dict[str, list[int]] = {}
    for place, scaffold in enumerate(scaffolds):
        sets.setdefault(scaffold, []).append(place)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    train_size, valid_size = (1 - valid - test) * len(scaffolds), valid * len(scaffolds)
    for places in sorted(sets.values(), key=lambda found: (-len(found), found[0])):
        if len(parts[0]) + len(places) <= train_size:
            parts[0].extend(places)
        elif len(parts[1]) + len(places) <= valid_size:
            parts[1].extend(places)
        else:
            parts[2].extend(places)
    if not all(parts):
        name, count = max(((s, len(p)) for s, p in sets.items()), key=lambda pair: pair[1])
        raise BadInput(
            f"{len(sets)} scaffolds of {len(scaffolds)} molecules cannot be dealt to three parts: the largest "
            f"({name or 'no rings'}) has {count}; use a random split or other shares"
        )
    return parts
