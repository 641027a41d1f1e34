"""Simulators as folders: ``simulator.json`` and ``weights.pt``; whole or not at all, nothing executable."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from heliograph import __version__
from heliograph.data.mesh import MeshSchema
from heliograph.errors import BadInput
from heliograph.graphs.mesh_transformer.simulator import MeshSimulator
from heliograph.graphs.mesh_transformer.supports import MeshSupport

__all__ = ["load_simulator", "save_simulator"]

FORMAT = 1
LOADABLE = "heliograph.graphs."
DESCRIPTION, WEIGHTS = "simulator.json", "weights.pt"


def save_simulator(simulator: MeshSimulator, folder: Path, *, overwrite: bool = False) -> None:
    """See :meth:`MeshSimulator.save`."""
    model = simulator.model
    if not hasattr(model, "describe") or not type(model).__module__.startswith(LOADABLE):
        raise BadInput(
            f"{type(model).__name__} cannot be rebuilt from a file; save the simulator's state_dict() instead"
        )
    if folder.exists() and not overwrite:
        raise BadInput(f"{folder} exists already; choose another place or allow overwriting")
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} holds something that is no simulator; it is not overwritten")
    description = {
        "format": FORMAT,
        "heliograph": __version__,
        "model": f"{type(model).__module__}:{type(model).__name__}",
        "arguments": model.describe(),  # type: ignore[operator]
        "names": list(simulator.schema.names),
        "dimensions": simulator.schema.dimensions,
        "noise_std": list(simulator.noise_std),
        "loss_types": list(simulator.loss_types),
        "support": simulator.support.to_json(),
        "history": simulator.history,
        "positions": simulator.positions,
    }
    weights = {name: value.detach().cpu() for name, value in simulator.state_dict().items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror}") from None
    try:
        torch.save(weights, part / WEIGHTS)
        (part / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o755)
        if folder.exists():
            old = part.with_name(part.name + "-old")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load_simulator(folder: Path) -> MeshSimulator:
    """See :meth:`MeshSimulator.load`."""
    try:
        data: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(f"{folder} is no simulator of heliograph: {str(error).splitlines()[0][:200]}") from None
    if data.get("format") != FORMAT or not str(data.get("model", "")).startswith(LOADABLE):
        raise BadInput(f"{folder}: format {data.get('format')} of {data.get('model')} cannot be read by {__version__}")
    try:
        module, _, name = data["model"].partition(":")
        simulator = MeshSimulator(
            getattr(importlib.import_module(module), name).from_description(data["arguments"]),
            MeshSchema(tuple(data["names"]), data["dimensions"]),
            noise_std=data["noise_std"],
            loss_types=data["loss_types"],
            support=MeshSupport.from_json(data["support"]),
            history=data["history"],
            positions=data["positions"],
        )
        simulator.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise BadInput(f"{folder}: description and weights do not fit: {str(error).splitlines()[0]}") from None
    return simulator.eval()
