"""Serving rules as data: when each applies, what it sets, why, and on whose word (arXiv:2603.10031 and sources named).

A rule holds for a range of engine versions; outside it, it still speaks but is marked as not verified. Where two rules
set one thing, the higher priority wins, then the later in the table, and the loser is kept with the winner's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from heliograph.errors import BadInput
from heliograph.workload.device_spec import DeviceSpec
from heliograph.workload.shape import LlmShape

__all__ = ["AITER_HEADS", "RULES", "EngineVersion", "Evidence", "ServingFacts", "ServingRule", "Setting"]

Evidence = Literal["paper", "guide", "code", "inferred"]
AITER_HEADS = (16, 128)
LATENT = ("mla", "sparse-mla")


@dataclass(frozen=True, order=True)
class EngineVersion:
    """An engine and its version, for example ``vllm==0.14.1``; no version means any."""

    engine: str
    parts: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> EngineVersion:
        """From ``"vllm==0.14.1"`` or ``"vllm"``.

        Raises:
            BadInput: another form.
        """
        engine, _, version = text.strip().lower().partition("==")
        pieces = version.split(".") if version else []
        if not engine or not all(piece.isdecimal() for piece in pieces):
            raise BadInput(f"the engine is {text!r}; write it as vllm==0.14.1, or its name alone")
        return cls(engine, tuple(map(int, pieces)))

    def __str__(self) -> str:
        """As it is parsed."""
        return f"{self.engine}=={'.'.join(map(str, self.parts))}" if self.parts else self.engine


@dataclass(frozen=True)
class ServingFacts:
    """What rules look at.

    Attributes:
        shape: the model. device: one of them. devices: how many the host has.
        tensor_parallel: ranks under consideration. engine: which, at which version.
        steady: whether even latency matters more than a few percent of throughput.
        spills: whether the wanted load needs more cache than fits.
    """

    shape: LlmShape
    device: DeviceSpec
    devices: int
    tensor_parallel: int
    engine: EngineVersion
    steady: bool = False
    spills: bool = False

    @property
    def attention(self) -> str:
        """The attention class."""
        return self.shape.attention_class

    @property
    def latent(self) -> bool:
        """Whether keys and values are one latent."""
        return self.attention in LATENT

    @property
    def heads_a_rank(self) -> int:
        """Query heads of one rank."""
        return self.shape.heads // self.tensor_parallel

    @property
    def rocm_vllm(self) -> bool:
        """Whether this is vLLM on AMD devices."""
        return self.device.vendor == "amd" and self.engine.engine == "vllm"


@dataclass(frozen=True)
class Setting:
    """One value that a rule sets.

    Attributes:
        kind: a flag of the command, a variable of the environment, or a step on the host.
        name: as written, without dashes.
        value: None leaves it out on purpose.
    """

    kind: Literal["flag", "env", "host"]
    name: str
    value: str | int | None


@dataclass(frozen=True)
class ServingRule:
    """One rule.

    Attributes:
        id: short name. condition: on the facts. settings: what it sets, fixed or from the facts.
        reason: why, one sentence. evidence: on whose word.
        engine: that it is about; "" for any. versions: first and first excluded one, () for open ends.
        priority: larger wins.
        alternative: what else could be faster but was not tried, or "".
    """

    id: str
    condition: Callable[[ServingFacts], bool]
    settings: Callable[[ServingFacts], tuple[Setting, ...]]
    reason: str
    evidence: Evidence
    engine: str = "vllm"
    versions: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    priority: int = 10
    alternative: str = ""

    def applies(self, facts: ServingFacts) -> bool:
        """Whether it speaks about these facts."""
        return self.engine in ("", facts.engine.engine) and self.condition(facts)

    def verified(self, version: EngineVersion) -> bool:
        """Whether the version lies in the range for which the rule was established."""
        low, high = self.versions
        if not version.parts:
            return not low and not high
        return (not low or version.parts >= low) and (not high or version.parts < high)


def _flag(name: str, value: str | int | None) -> Setting:
    return Setting("flag", name, value)


def _env(name: str, value: str | int) -> Setting:
    return Setting("env", name, value)


def _fixed(*settings: Setting) -> Callable[[ServingFacts], tuple[Setting, ...]]:
    return lambda _: settings


def _full_tensor_parallel_suits(facts: ServingFacts) -> bool:
    return facts.shape.heads // facts.devices in AITER_HEADS if facts.shape.heads % facts.devices == 0 else False


NO_OFFLOAD = _flag("kv-offloading-size", None)
STUDIED = ((0, 14), (0, 15))

RULES: tuple[ServingRule, ...] = (
    ServingRule(
        "U1",
        lambda f: f.attention == "unknown",
        _fixed(_flag("block-size", 16), NO_OFFLOAD),
        "the attention of this model type is not known: the engine's plain settings, nothing optional",
        "inferred",
        engine="",
        priority=90,
    ),
    ServingRule(
        "U2",
        lambda f: f.attention == "unknown" and f.rocm_vllm,
        _fixed(_env("VLLM_ROCM_USE_AITER", 0)),
        "special kernels are for known attention",
        "inferred",
        priority=90,
    ),
    ServingRule(
        "R1",
        lambda f: f.rocm_vllm and f.latent,
        _fixed(_flag("block-size", 1)),
        "the latent-attention kernel addresses pages of one token",
        "paper",
        versions=STUDIED,
        priority=50,
    ),
    ServingRule(
        "R2",
        lambda f: f.rocm_vllm and f.latent,
        _fixed(NO_OFFLOAD),
        "the cache of latent attention cannot be offloaded on this stack: the server fails at start",
        "paper",
        versions=STUDIED,
        priority=50,
    ),
    ServingRule(
        "R3",
        lambda f: f.rocm_vllm and f.latent and f.heads_a_rank in AITER_HEADS and _full_tensor_parallel_suits(f),
        _fixed(_env("VLLM_ROCM_USE_AITER", 1)),
        "the vendor's latent-attention kernel takes 16 or 128 heads a rank, and is needed for competitive throughput",
        "code",
        versions=STUDIED,
        priority=40,
    ),
    ServingRule(
        "R4",
        lambda f: f.rocm_vllm and f.latent and not (f.heads_a_rank in AITER_HEADS and _full_tensor_parallel_suits(f)),
        _fixed(_env("VLLM_ROCM_USE_AITER", 0)),
        "over all devices the heads a rank do not suit the vendor's kernel (16 or 128), so Triton computes attention",
        "guide",
        versions=STUDIED,
        priority=60,
        alternative="with 16 or 128 heads a rank VLLM_ROCM_USE_AITER=1 is allowed and may be faster; not tried",
    ),
    ServingRule(
        "R5",
        lambda f: f.rocm_vllm and f.latent and f.device.arch == "gfx942" and f.heads_a_rank in AITER_HEADS,
        _fixed(_env("AITER_ENABLE_VSKIP", 0)),
        "left unset, the vendor's kernels crash with this kind of model on these devices",
        "guide",
        versions=STUDIED,
    ),
    ServingRule(
        "R6",
        lambda f: f.rocm_vllm and f.attention in ("gqa", "mha", "mqa"),
        lambda f: (
            _flag("block-size", 32 if f.shape.kv_bytes_per_token(2.0, f.tensor_parallel) < 2**16 else 16),
            *((_flag("kv-offloading-size", 64), _flag("kv-offloading-backend", "native")) if f.spills else ()),
        ),
        "grouped-query attention gains from larger pages, and offloading pays where the load needs more than fits",
        "paper",
        versions=STUDIED,
        priority=20,
    ),
    ServingRule(
        "R7",
        lambda f: f.rocm_vllm and f.attention in ("gqa", "mha", "mqa") and f.shape.moe is None,
        lambda f: (_env("VLLM_ROCM_USE_AITER", 0 if f.steady else 1),),
        "on dense models the vendor's kernels gain 3-5 % and make results 2-16x as variable",
        "paper",
        versions=STUDIED,
        priority=20,
    ),
    ServingRule(
        "R8",
        lambda f: f.rocm_vllm and f.shape.moe is not None,
        _fixed(_env("VLLM_ROCM_USE_AITER", 1)),
        "the vendor's fused experts",
        "guide",
        versions=STUDIED,
        priority=20,
    ),
    ServingRule(
        "R8b",
        lambda f: f.shape.moe is not None and f.tensor_parallel > 1 and f.shape.moe.experts % f.tensor_parallel == 0,
        _fixed(_flag("enable-expert-parallel", "")),
        "the experts divide evenly among the ranks",
        "inferred",
    ),
    ServingRule(
        "R9",
        lambda f: "fp8" in f.shape.weights.method,
        _fixed(_flag("quantization", None)),
        "the checkpoint says itself that it is quantised",
        "inferred",
    ),
    ServingRule(
        "R10",
        lambda f: f.shape.vision and f.tensor_parallel > 1,
        _fixed(_flag("mm-encoder-tp-mode", "data")),
        "a vision tower is small: each rank encodes other images instead of a share of each",
        "code",
    ),
    ServingRule(
        "R11",
        lambda f: f.attention == "hybrid",
        _fixed(_flag("disable-hybrid-kv-cache-manager", None), NO_OFFLOAD, _flag("block-size", 16)),
        "windows and states need the hybrid cache manager, which some versions cannot combine with offloading",
        "guide",
        priority=30,
    ),
    ServingRule(
        "R12",
        lambda f: f.rocm_vllm and f.tensor_parallel > 1,
        _fixed(
            _env("HIP_FORCE_DEV_KERNARG", 1),
            _env("NCCL_MIN_NCHANNELS", 112),
            Setting("host", "kernel.numa_balancing", 0),
        ),
        "several devices: kernel arguments on the device, enough channels, and no page migration by the system",
        "guide",
    ),
    ServingRule(
        "N1",
        lambda f: f.device.vendor == "nvidia" and f.latent,
        _fixed(_flag("block-size", 64)),
        "the latent-attention kernel of this vendor reads pages of 64 tokens",
        "code",
        priority=20,
    ),
    ServingRule(
        "N2",
        lambda f: f.device.vendor == "nvidia" and f.attention in ("gqa", "mha", "mqa"),
        lambda f: (
            _flag("block-size", 16),
            *((_flag("kv-offloading-size", 64), _flag("kv-offloading-backend", "native")) if f.spills else ()),
        ),
        "the usual page of paged kernels; offloading pays where the load needs more than fits",
        "inferred",
        priority=20,
    ),
    ServingRule(
        "C1",
        lambda f: f.device.vendor == "cpu",
        _fixed(_flag("block-size", 64), NO_OFFLOAD),
        "a processor reads a page as one run of memory: larger pages, longer runs; its memory is the host's already",
        "inferred",
        engine="",
        priority=20,
    ),
)
