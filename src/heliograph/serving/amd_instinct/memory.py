"""Where a device's memory goes: weights, activations, and what is left for keys and values.

Per rank, T ranks: weights W = parameters x bytes / T; activations 2 x tokens x d x 8 bytes unless measured; the rest is
divided into blocks of the cache (arXiv:2603.10031 explains its limits by this arithmetic; the form is ours).
"""

from __future__ import annotations

from dataclasses import dataclass

from heliograph.errors import BadInput, HeliographError
from heliograph.workload.device_spec import DeviceSpec
from heliograph.workload.shape import LlmShape

__all__ = ["DoesNotFit", "MemoryPlan", "plan_memory"]

GIB = 2**30


class DoesNotFit(HeliographError):
    """The model leaves no room for a cache; the message holds the largest consumers."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank.

    Attributes:
        shape: the model. tensor_parallel: ranks that share it.
        memory_bytes, usable_bytes: of the device, and the share that the engine may take.
        weight_bytes, activation_bytes, cache_bytes: the parts.
        block_size: tokens of a block. blocks: of them.
        kv_number_bytes: of a cached number.
    """

    shape: LlmShape
    tensor_parallel: int
    memory_bytes: float
    usable_bytes: float
    weight_bytes: float
    activation_bytes: float
    block_size: int
    kv_number_bytes: float

    @property
    def cache_bytes(self) -> float:
        """Left for keys and values; negative where the rest does not fit."""
        return self.usable_bytes - self.weight_bytes - self.activation_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that a token adds to the cache of this rank."""
        return self.shape.kv_bytes_per_token(self.kv_number_bytes, self.tensor_parallel)

    @property
    def blocks(self) -> int:
        """Blocks of tokens that fit, as if no layer had a window."""
        each = self.kv_bytes_per_token * self.block_size
        return max(0, int(self.cache_bytes // each)) if each > 0 else 2**31

    def sequence_bytes(self, tokens: int) -> float:
        """Bytes of one sequence, whole blocks counted; windows and constant states as they are."""
        whole = -(-tokens // self.block_size) * self.block_size
        return self.shape.kv_bytes(whole, self.kv_number_bytes, self.tensor_parallel)

    def max_concurrency(self, tokens: int) -> int:
        """Sequences of this length whose caches fit at once."""
        if tokens < 1:
            raise BadInput(f"a length is 1 token or more; got {tokens}")
        each = self.sequence_bytes(tokens)
        return max(0, int(self.cache_bytes // each)) if each > 0 else 2**31

    def consumers(self, tokens: int) -> tuple[tuple[str, float], ...]:
        """The parts and one sequence's cache, the largest first."""
        parts = [
            ("weights", self.weight_bytes),
            ("activations", self.activation_bytes),
            (f"cache of one sequence of {tokens:,} tokens", self.sequence_bytes(tokens)),
        ]
        return tuple(sorted(parts, key=lambda part: -part[1]))


def plan_memory(
    shape: LlmShape,
    device: DeviceSpec,
    tensor_parallel: int = 1,
    *,
    block_size: int = 16,
    utilisation: float = 0.9,
    batch_tokens: int = 8192,
    kv_number_bytes: float = 2.0,
    activation_bytes: float | None = None,
) -> MemoryPlan:
    """How one rank's memory is divided.

    Args:
        shape: the model. device: of each rank.
        tensor_parallel: ranks that share the model.
        block_size: tokens of a cache block.
        utilisation: share of the memory that the engine takes.
        batch_tokens: tokens of the largest step, which decide the activations.
        kv_number_bytes: 2 for 16 bits, 1 for 8.
        activation_bytes: measured ones, in place of the estimate.

    Raises:
        BadInput: a size out of range, or ranks that divide neither heads nor key heads.
    """
    if block_size < 1 or not 0 < utilisation <= 1 or batch_tokens < 1 or tensor_parallel < 1:
        raise BadInput(
            f"need a block and a batch of 1 token or more and a utilisation in (0, 1]; got {block_size}, "
            f"{batch_tokens}, {utilisation}"
        )
    shape.kv_bytes(1, kv_number_bytes, tensor_parallel)  # refuses ranks that do not divide the heads
    estimate = 2.0 * batch_tokens * shape.hidden * 8
    return MemoryPlan(
        shape,
        tensor_parallel,
        device.memory_bytes,
        device.memory_bytes * utilisation,
        shape.weight_bytes() / tensor_parallel,
        estimate if activation_bytes is None else activation_bytes,
        block_size,
        kv_number_bytes,
    )


def check_fits(plan: MemoryPlan, tokens: int) -> None:
    """Refuses a plan that cannot hold one sequence of ``tokens`` tokens.

    Raises:
        DoesNotFit: with the largest consumers.
    """
    if plan.max_concurrency(tokens) < 1:
        parts = ", ".join(f"{name} {size / GIB:,.1f} GiB" for name, size in plan.consumers(tokens)[:3])
        raise DoesNotFit(
            f"{plan.usable_bytes / GIB:,.1f} GiB a rank hold no sequence of {tokens:,} tokens at tensor parallel "
            f"{plan.tensor_parallel}: {parts}. Use more devices, smaller weights or a shorter context"
        )
