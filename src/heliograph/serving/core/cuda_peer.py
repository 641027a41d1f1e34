"""Tensors of another process on this machine's GPUs: opened by handle and copied from device to device.

The owner says in plain data where a tensor lies (:func:`share_tensor`) and keeps it until the other one has thanked;
the other one opens it (:func:`open_tensor`) and copies. Nothing is unpickled. Between GPUs the copy goes over NVLink or
PCIe, as the driver finds it; on one GPU it stays there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import HeliographError

__all__ = ["PeerUnreachable", "checksum", "host_id", "open_tensor", "share_tensor"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PeerUnreachable(HeliographError):
    """A tensor of another process cannot be opened here."""


@functools.cache
def host_id() -> str:
    """The same for all processes of a running machine, and for no others; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def share_tensor(tensor: Tensor) -> dict[str, Any]:
    """Where a tensor lies, as plain data for :func:`open_tensor` in another process.

    The tensor must live until the other process has copied it; what was launched on its device has ended on return.

    Args:
        tensor: contiguous, on a CUDA device.

    Raises:
        PeerUnreachable: it lies elsewhere, or the driver gives no handle.
    """
    if not tensor.is_cuda or not tensor.is_contiguous():
        raise PeerUnreachable(f"a contiguous tensor on a CUDA device can be shared; this one is on {tensor.device}")
    torch.cuda.synchronize(tensor.device)
    try:
        _, *handle = tensor.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise PeerUnreachable(f"the driver gives no handle: {error}") from None
    return {
        "device": _uuid(tensor.device.index),
        "handle": handle,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "offset": tensor.storage_offset(),
        "sum": checksum(tensor),
    }


def open_tensor(where: Mapping[str, Any]) -> Tensor:
    """The other process's tensor, on its device; a copy of it is this process's own.

    Raises:
        PeerUnreachable: its device is not visible here, the handle is not valid, or the sizes do not fit.
    """
    try:
        shape, dtype = tuple(int(n) for n in where["shape"]), DTYPES[where["dtype"]]
        device, offset = _device(str(where["device"])), int(where["offset"])
        storage = torch.UntypedStorage._new_shared_cuda(device, *where["handle"])
        if min(shape, default=1) < 0 or offset < 0:
            raise ValueError("sizes below 0")
        if (offset + math.prod(shape)) * dtype.itemsize > storage.nbytes():
            raise ValueError(
                f"{list(shape)} from {offset} on is more than the {storage.nbytes()} bytes that are shared"
            )
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        found: Tensor = torch.empty(0, dtype=dtype, device=f"cuda:{device}").set_(storage, offset, shape, strides)
        return found
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PeerUnreachable(f"a tensor of another process cannot be opened: {error}") from None


def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's 32-bit words and of its odd bytes, modulo 2**64; worked out where it lies."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = flat[: len(flat) // 4 * 4]
    if whole.storage_offset() % 4:
        whole = whole.clone()
    words = whole.view(torch.int32).sum(dtype=torch.int64)
    return int(words + flat[len(flat) // 4 * 4 :].sum(dtype=torch.int64)) & (2**64 - 1)


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def _device(uuid: str) -> int:
    """This process's number of a device; processes may number them differently."""
    for index in range(torch.cuda.device_count()):
        if _uuid(index) == uuid:
            return index
    raise ValueError(f"the device {uuid} is not visible here")
