"""Checkpoints: a folder with ``config.json`` and ``weights.safetensors``; whole or not at all, nothing executable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.network import PreDecoder

__all__ = ["load_checkpoint", "load_convolutions", "save_checkpoint"]

FORMAT = "heliograph.surface_predecoder/1"


def save_checkpoint(network: PreDecoder, folder: Path) -> None:
    """Writes a folder beside the target and renames it into place.

    Raises:
        BadInput: the target exists and is no checkpoint; it is left alone.
    """
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInput(f"{folder} exists and is no checkpoint; it is not replaced")
    weights = save_tensors({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    config = {
        "format": FORMAT,
        "filters": list(network.filters),
        "kernel": network.kernel,
        "variant": network.variant,
        "dropout": network.dropout,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = scratch / "new"
        made.mkdir()
        for name, content in (("weights.safetensors", weights), ("config.json", json.dumps(config, indent=1).encode())):
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(scratch / "old")
        made.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_checkpoint(folder: Path) -> PreDecoder:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        BadInput: missing, truncated or altered files, or another version.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = (folder / "weights.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no readable pre-decoder checkpoint: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise BadInput(f"{folder / 'config.json'} has format {found!r}; this version reads {FORMAT!r}")
    if hashlib.sha256(weights).hexdigest() != config.get("sha256"):
        raise BadInput(
            f"{folder / 'weights.safetensors'} ({len(weights)} bytes) is truncated or altered: its checksum is not the "
            "one in config.json"
        )
    try:
        network = PreDecoder(config["filters"], config["kernel"], variant=config["variant"], dropout=config["dropout"])
        network.load_state_dict(load_tensors(weights))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{folder}: config and weights do not fit: {error}") from None
    return network.eval()


def load_convolutions(path: Path) -> PreDecoder:
    """A plain network from any safetensors file that holds a stack of 3-D convolutions, in the order of their names.

    For weights published elsewhere. Shapes are checked; whether their channels, orientation and time slices mean what
    they mean here cannot be seen from a file, so measure such a network before you trust it.

    Raises:
        BadInput: not safetensors, or not a stack from 4 channels to 4.
    """
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is no readable safetensors file: {error}") from None
    names = sorted((n for n, t in tensors.items() if t.ndim == 5), key=_natural)
    stack = [tensors[n] for n in names]
    biases = [tensors.get(re.sub(r"weight$", "bias", n)) for n in names]
    kernels = {t.shape[2:] for t in stack}
    widths = [4, *(t.shape[0] for t in stack)]
    fits = all(t.shape[1] == w for t, w in zip(stack, widths[:-1], strict=True)) and widths[-1] == 4
    if len(stack) < 2 or len(kernels) != 1 or len(set(next(iter(kernels)))) != 1 or not fits:
        raise BadInput(
            f"{path} holds no stack of cubic 3-D convolutions from 4 channels to 4: {[tuple(t.shape) for t in stack]}"
        )
    network = PreDecoder(widths[1:-1], int(stack[0].shape[2]))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
    with torch.no_grad():
        for convolution, weight, bias in zip(convolutions, stack, biases, strict=True):
            convolution.weight.copy_(weight)
            assert convolution.bias is not None
            convolution.bias.copy_(torch.zeros_like(convolution.bias) if bias is None else bias)
    return network.eval()


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
