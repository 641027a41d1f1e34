"""What the advisor decides: against the study's own flags, against a table written by hand, and with facts changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliograph.errors import HeliographError
from heliograph.serving.amd_instinct.advisor import ServingAdvisor, ServingPlan, one_size_fits_all
from heliograph.serving.amd_instinct.studied import studied_model
from heliograph.trials.check import Context
from heliograph.workload.config_reader import read_shape
from heliograph.workload.device_spec import DeviceSpec

__all__ = ["TABLE", "Decision", "measure", "studied_decisions"]


@dataclass(frozen=True)
class Decision:
    """What is expected of a plan; None is not compared.

    Attributes:
        block_sizes: any of them. offload: False where it must be left out. aiter: the variable's value.
        tensor_parallel: ranks of a server.
    """

    block_sizes: tuple[int, ...] = ()
    offload: bool | None = None
    aiter: int | None = None
    tensor_parallel: int | None = None

    def outcomes(self, plan: ServingPlan) -> list[bool]:
        """One boolean for each part that is compared."""
        found = []
        if self.block_sizes:
            found.append(plan.block_size in self.block_sizes)
        if self.offload is not None:
            found.append(plan.offload_forbidden is not self.offload)
        if self.aiter is not None:
            found.append(plan.value("VLLM_ROCM_USE_AITER") == self.aiter)
        if self.tensor_parallel is not None:
            found.append(plan.tensor_parallel == self.tensor_parallel)
        return found


# Of the dense and the vision model the sources here state neither degree nor, for the dense one, one value of AITER.
STUDY: Mapping[str, Decision] = {
    "kimi_k25": Decision((1,), offload=False, aiter=0, tensor_parallel=4),
    "deepseek_v32": Decision((1,), offload=False, aiter=1, tensor_parallel=8),
    "llama31_405b": Decision((16, 32), offload=True),
    "qwen3_vl_235b": Decision((16, 32), offload=True, aiter=1),
}


def _gqa(model: str, layers: int, hidden: int, heads: int, grouped: int, inner: int, **extra: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    rest = {"num_key_value_heads": grouped, "intermediate_size": inner, "vocab_size": 128256, "torch_dtype": "bfloat16"}
    return {"model_type": model, **sizes, **rest, "max_position_embeddings": 32768, **extra}


def _mla(heads: int, layers: int, hidden: int, **extra: Any) -> dict[str, Any]:
    latent = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return _gqa("deepseek_v3", layers, hidden, heads, heads, 4 * hidden, **{**latent, **extra})


EXPERTS = {"n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 12, "sliding_window": 128}

VLLM = "vllm==0.14.1"

# Configuration, device, engine, expected: written from the rules' wording, not from the advisor's output.
TABLE: tuple[tuple[str, dict[str, Any], str, str, Decision], ...] = (
    ("latent, 16 heads, one device", _mla(16, 27, 2048, **EXPERTS), "mi325x:1", VLLM, Decision((1,), False, 1)),
    ("latent, 128 heads, one device", _mla(128, 20, 4096), "mi300x:1", VLLM, Decision((1,), False, 1, 1)),
    ("latent, 40 heads: never suited", _mla(40, 62, 2560), "mi325x:8", VLLM, Decision((1,), False, 0)),
    ("latent, other vendor", _mla(16, 27, 2048), "h100:1", VLLM, Decision((64,), None, None, 1)),
    ("grouped, dense, small", _gqa("llama", 32, 4096, 32, 8, 14336), "mi325x:1", VLLM, Decision((16, 32), True)),
    ("grouped, dense, other vendor", _gqa("llama", 32, 4096, 32, 8, 14336), "h100:1", VLLM, Decision((16,), True)),
    (
        "grouped, experts",
        _gqa("mixtral", 32, 4096, 32, 8, 14336, num_local_experts=8, num_experts_per_tok=2),
        "mi300x:1",
        VLLM,
        Decision((16, 32), True, 1),
    ),
    ("multi-head", _gqa("llama", 32, 4096, 32, 32, 11008), "mi325x:1", VLLM, Decision((16, 32), True)),
    (
        "hybrid windows",
        _gqa("gpt_oss", 24, 2880, 64, 8, 2880, head_dim=64, **SLIDING),
        "mi325x:1",
        VLLM,
        Decision((16,), False),
    ),
    ("unknown architecture", _gqa("never_seen", 32, 4096, 32, 8, 14336), "mi325x:1", VLLM, Decision((16,), False, 0)),
    ("grouped, processor", _gqa("llama", 30, 576, 9, 3, 1536), "toml", "heliograph", Decision((64,), False)),
    ("latent, processor", _mla(9, 12, 576), "toml", "heliograph", Decision((64,), False)),
)

HOST = DeviceSpec("host", "cpu", "any", 16e9, 2e10, {"fp32": 1e11})


def measure(context: Context) -> Mapping[str, Any]:
    """``study`` and ``table``: each decision as expected; ``notices``: other facts must give other decisions."""
    study, uniform = studied_decisions(), []
    for name, decision in STUDY.items():
        fixed = {setting.name: setting.value for setting in one_size_fits_all(8)}
        uniform += [
            fixed["block-size"] in decision.block_sizes,
            (fixed["kv-offloading-size"] is not None) is decision.offload,
        ]
        context.keep(name, _plan(name).to_json())
    table = [
        ok for _, config, device, engine, wanted in TABLE for ok in wanted.outcomes(_plan_for(config, device, engine))
    ]
    return {"study": study, "table": table, "notices": [*_noticed(), not all(uniform)], "uniform": uniform}


def studied_decisions() -> list[bool]:
    """The four models' decisions, part by part."""
    return [ok for name, decision in STUDY.items() for ok in decision.outcomes(_plan(name))]


def _plan(name: str) -> ServingPlan:
    return ServingAdvisor().recommend(studied_model(name), DeviceSpec.mi325x(8), VLLM)


def _plan_for(config: Mapping[str, Any], device: str, engine: str) -> ServingPlan:
    spec = HOST if device == "toml" else DeviceSpec.named(device)
    return ServingAdvisor().recommend(read_shape(config), spec, engine, concurrency=64)


def _noticed() -> list[bool]:
    """The same configuration without its latent, with other heads, on another vendor's device, at another version."""
    latent = _mla(16, 27, 2048)
    plain = {key: value for key, value in latent.items() if key not in ("kv_lora_rank",)}
    plain["num_key_value_heads"] = 4
    base, other = _plan_for(latent, "mi325x:1", VLLM), _plan_for(plain, "mi325x:1", VLLM)
    heads = _plan_for(_mla(40, 27, 2560), "mi325x:1", VLLM)
    vendor = _plan_for(latent, "h100:1", VLLM)
    later = _plan_for(latent, "mi325x:1", "vllm==0.30.0")
    try:
        _plan_for(
            {key: value for key, value in latent.items() if key != "qk_nope_head_dim"}, "mi325x:1", "vllm==0.14.1"
        )
        refused = False
    except HeliographError:
        refused = True
    return [
        base.block_size != other.block_size,
        base.offload_forbidden and not other.offload_forbidden,
        base.value("VLLM_ROCM_USE_AITER") != heads.value("VLLM_ROCM_USE_AITER"),
        base.block_size != vendor.block_size,
        all(why.verified for why in base.why if why.rule == "R1"),
        not any(why.verified for why in later.why if why.rule == "R1"),
        refused,
    ]
