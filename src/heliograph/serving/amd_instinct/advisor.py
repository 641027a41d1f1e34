"""Flags from architecture: classify the model, plan memory for each tensor parallel degree, apply the rules, choose.

What cannot be verified on the present machine is listed, never assumed (arXiv:2603.10031; the procedure is ours).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct.capacity import CapacityModel, EffectiveRates
from heliograph.serving.amd_instinct.memory import GIB, DoesNotFit, MemoryPlan, check_fits, plan_memory
from heliograph.serving.amd_instinct.rules import (
    AITER_HEADS,
    RULES,
    EngineVersion,
    Evidence,
    ServingFacts,
    ServingRule,
    Setting,
)
from heliograph.workload.device_spec import DeviceSpec
from heliograph.workload.shape import LlmShape

__all__ = ["RejectedDegree", "ServingAdvisor", "ServingPlan", "SettingReason"]


@dataclass(frozen=True)
class SettingReason:
    """Why a setting has its value.

    Attributes:
        setting: what is set. rule: id of the rule that set it. reason, evidence: of the rule.
        verified: whether the engine's version lies in the range for which the rule was established.
        overruled_by: the rule that set the same thing to another value and won; "" for the winner.
        alternative: what may be faster but was not tried.
    """

    setting: Setting
    rule: str
    reason: str
    evidence: Evidence
    verified: bool
    overruled_by: str = ""
    alternative: str = ""


@dataclass(frozen=True)
class RejectedDegree:
    """A tensor parallel degree that cannot or should not be used, and why."""

    tensor_parallel: int
    reason: str


@dataclass(frozen=True)
class ServingPlan:
    """What to run, and why.

    Attributes:
        model, device, engine: what the plan is for. attention: the class that decided.
        tensor_parallel: ranks of a server; replicas: servers that fit beside each other.
        settings: chosen ones. why: every one that a rule named, overruled ones included.
        memory: of a rank. capacity: predicts rates.
        rejected: degrees that were not chosen, with reasons.
        unknowns: facts that could not be verified here.
    """

    model: str
    device: str
    engine: EngineVersion
    attention: str
    tensor_parallel: int
    replicas: int
    settings: tuple[Setting, ...]
    why: tuple[SettingReason, ...]
    memory: MemoryPlan
    capacity: CapacityModel
    rejected: tuple[RejectedDegree, ...]
    unknowns: tuple[str, ...]

    def value(self, name: str) -> str | int | None:
        """The value of a setting; None where it is left out."""
        return next((setting.value for setting in self.settings if setting.name == name), None)

    @property
    def flags(self) -> dict[str, str | int | None]:
        """Flags of the command by name; None for those that are left out on purpose."""
        degree: dict[str, str | int | None] = {"tensor-parallel-size": self.tensor_parallel}
        return degree | {s.name: s.value for s in self.settings if s.kind == "flag"}

    @property
    def env(self) -> dict[str, str | int | None]:
        """Variables of the environment by name."""
        return {s.name: s.value for s in self.settings if s.kind == "env"}

    @property
    def block_size(self) -> int:
        """Tokens of a cache block."""
        return int(self.value("block-size") or 16)

    @property
    def offloads(self) -> bool:
        """Whether the cache is offloaded to the host."""
        return self.value("kv-offloading-size") is not None

    @property
    def offload_forbidden(self) -> bool:
        """Whether a rule leaves offloading out on purpose."""
        return any(s.name == "kv-offloading-size" and s.value is None for s in self.settings)

    def max_concurrency(self, tokens: int) -> int:
        """Sequences of this length that one server holds at once."""
        return self.memory.max_concurrency(tokens)

    def saturation(self, prompt: int, output: int) -> float:
        """The concurrency of one server beyond which doubling gives less than 5 %."""
        return self.capacity.saturation(prompt + output // 2, prompt, output)

    def explain(self, name: str) -> tuple[SettingReason, ...]:
        """Every rule that spoke about a flag or variable, the winner first."""
        return tuple(sorted((w for w in self.why if w.setting.name == name), key=lambda w: bool(w.overruled_by)))

    def command(self, model: str = "MODEL") -> str:
        """A shell line that starts one server.

        Raises:
            BadInput: the engine's command line is not known here.
        """
        env = " ".join(f"{s.name}={s.value}" for s in self.settings if s.kind == "env" and s.value is not None)
        heads = {"vllm": ["vllm", "serve", model], "heliograph": ["heliograph", "serve", model]}
        if self.engine.engine not in heads:
            raise BadInput(f"the command line of {self.engine.engine} is not known here; known: {', '.join(heads)}")
        words = list(heads[self.engine.engine])
        if self.tensor_parallel > 1:
            words += ["--tensor-parallel-size", str(self.tensor_parallel)]
        for setting in self.settings:
            if setting.kind == "flag" and setting.value is not None:
                words += [f"--{setting.name}", *([str(setting.value)] if setting.value != "" else [])]
        return f"{env} {shlex.join(words)}".strip()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "device": self.device,
            "engine": str(self.engine),
            "attention": self.attention,
            "tensor_parallel": self.tensor_parallel,
            "replicas": self.replicas,
            "settings": [asdict(setting) for setting in self.settings],
            "why": [asdict(why) for why in self.why],
            "memory": {
                "weight_gib": self.memory.weight_bytes / GIB,
                "activation_gib": self.memory.activation_bytes / GIB,
                "cache_gib": self.memory.cache_bytes / GIB,
                "kv_bytes_per_token": self.memory.kv_bytes_per_token,
                "blocks": self.memory.blocks,
            },
            "rejected": [asdict(rejected) for rejected in self.rejected],
            "unknowns": list(self.unknowns),
        }


@dataclass(frozen=True)
class _Candidate:
    facts: ServingFacts
    settings: tuple[Setting, ...]
    why: tuple[SettingReason, ...]
    memory: MemoryPlan
    capacity: CapacityModel
    score: float


class ServingAdvisor:
    """Recommends flags.

    Args:
        rules: the table; the built-in one by default. Add your own with ``(*RULES, mine)``.
        utilisation: share of a device's memory that the engine takes.
    """

    def __init__(self, rules: Sequence[ServingRule] = RULES, utilisation: float = 0.9) -> None:
        ids = [rule.id for rule in rules]
        if len(set(ids)) != len(ids):
            raise BadInput("two rules share an id")
        self.rules, self.utilisation = tuple(rules), utilisation

    def recommend(
        self,
        shape: LlmShape,
        device: DeviceSpec,
        engine: str = "vllm==0.14.1",
        *,
        concurrency: int = 1000,
        prompt: int = 2048,
        output: int = 512,
        steady: bool = False,
        rates: EffectiveRates | None = None,
        tensor_parallel: int | None = None,
    ) -> ServingPlan:
        """Flags for one model on one kind of host.

        Args:
            shape: the model.
            device: of the host, with its count.
            engine: name and version.
            concurrency: requests at once that are wanted of the host.
            prompt, output: tokens of a usual request.
            steady: whether even latency matters more than a few percent.
            rates: measured ones; shares of the data sheet where None.
            tensor_parallel: this degree only.

        Raises:
            DoesNotFit: no degree leaves room for one request; with the three largest consumers.
            BadInput: sizes out of range, or ranks that divide no head.
        """
        if min(concurrency, prompt, output) < 1:
            raise BadInput(f"need a concurrency and lengths of 1 or more; got {concurrency}, {prompt}, {output}")
        version = EngineVersion.parse(engine)
        effective = rates or EffectiveRates.from_sheet(device, shape.weights.bits)
        kept: list[_Candidate] = []
        rejected: list[RejectedDegree] = []
        for degree in [tensor_parallel] if tensor_parallel else _divisors(device.count):
            try:
                facts = ServingFacts(shape, device, device.count, degree, version, steady)
                kept.append(self._candidate(facts, effective, concurrency, prompt, output))
            except (BadInput, DoesNotFit) as error:
                rejected.append(RejectedDegree(degree, str(error)))
        kept, more = _without_unsuited(kept)
        rejected += more
        if not kept:
            raise DoesNotFit("; ".join(f"tensor parallel {r.tensor_parallel}: {r.reason}" for r in rejected))
        best = max(kept, key=lambda candidate: (candidate.score, -candidate.facts.tensor_parallel))
        chosen = best.facts.tensor_parallel
        rejected += [
            RejectedDegree(
                c.facts.tensor_parallel,
                f"{c.score:,.0f} tokens/s a device predicted, {best.score:,.0f} at degree {chosen}",
            )
            for c in kept
            if c is not best
        ]
        return ServingPlan(
            shape.name,
            f"{device.count} x {device.name}",
            version,
            shape.attention_class,
            chosen,
            device.count // chosen,
            best.settings,
            best.why,
            best.memory,
            best.capacity,
            tuple(sorted(rejected, key=lambda r: r.tensor_parallel)),
            _unknowns(shape, device, version, best.why, effective),
        )

    def _candidate(
        self, facts: ServingFacts, effective: EffectiveRates, concurrency: int, prompt: int, output: int
    ) -> _Candidate:
        shape, device, degree = facts.shape, facts.device, facts.tensor_parallel
        if device.count % degree:
            raise BadInput(f"{degree} ranks do not divide {device.count} devices")
        probe = plan_memory(shape, device, degree, utilisation=self.utilisation)
        check_fits(probe, prompt + output)
        spills = concurrency > probe.max_concurrency(prompt + output)
        facts = replace(facts, spills=spills)
        settings, why = self._resolve(facts)
        block = next((int(s.value) for s in settings if s.name == "block-size" and s.value), 16)
        memory = plan_memory(shape, device, degree, block_size=block, utilisation=self.utilisation)
        check_fits(memory, prompt + output)
        capacity = CapacityModel(shape, effective, degree)
        running = min(concurrency, memory.max_concurrency(prompt + output))
        score = capacity.rate(running, prompt + output // 2) / degree
        return _Candidate(facts, settings, why, memory, capacity, score)

    def _resolve(self, facts: ServingFacts) -> tuple[tuple[Setting, ...], tuple[SettingReason, ...]]:
        """Per name the highest priority wins; among equals the later rule, which is the more specific by custom."""
        spoken = [
            (rule.priority, index, rule, setting)
            for index, rule in enumerate(self.rules)
            if rule.applies(facts)
            for setting in rule.settings(facts)
        ]
        winner = {
            setting.name: (priority, index, rule, setting)
            for priority, index, rule, setting in sorted(spoken, key=lambda row: row[:2])
        }  # the last one stays
        why = []
        for _, index, rule, setting in spoken:
            _, won, best, kept = winner[setting.name]
            overruled = best.id if won != index and kept.value != setting.value else ""
            why.append(
                SettingReason(
                    setting,
                    rule.id,
                    rule.reason,
                    rule.evidence,
                    rule.verified(facts.engine),
                    overruled,
                    rule.alternative,
                )
            )
        return tuple(setting for *_, setting in winner.values()), tuple(why)


def one_size_fits_all(devices: int) -> tuple[Setting, ...]:
    """The baseline: the same flags for every model, whatever its architecture."""
    return (
        Setting("flag", "block-size", 16),
        Setting("flag", "kv-offloading-size", 64),
        Setting("flag", "tensor-parallel-size", devices),
        Setting("env", "VLLM_ROCM_USE_AITER", 1),
    )


def _divisors(count: int) -> list[int]:
    return [number for number in range(1, count + 1) if count % number == 0]


def _without_unsuited(kept: list[_Candidate]) -> tuple[list[_Candidate], list[RejectedDegree]]:
    """Drops degrees whose heads a rank the latent kernel does not take, where another degree suits it."""
    latent = [c for c in kept if c.facts.rocm_vllm and c.facts.latent]
    suited = [c for c in latent if c.facts.heads_a_rank in AITER_HEADS]
    if not suited:
        return kept, []
    dropped = [c for c in latent if c not in suited]
    reasons = [
        RejectedDegree(
            c.facts.tensor_parallel,
            f"the vendor's latent-attention kernel does not take {c.facts.heads_a_rank} heads a rank",
        )
        for c in dropped
    ]
    return [c for c in kept if c not in dropped], reasons


def _unknowns(
    shape: LlmShape,
    device: DeviceSpec,
    version: EngineVersion,
    why: Sequence[SettingReason],
    rates: EffectiveRates,
) -> tuple[str, ...]:
    found = list(shape.unknowns)
    if not rates.measured:
        found.append("rates are shares of a data sheet; measure them for a better prediction")
    if not version.parts:
        found.append(f"the version of {version.engine} is not given")
    unsure = sorted({reason.rule for reason in why if not reason.verified})
    if unsure:
        found.append(f"rules {', '.join(unsure)} were not verified for {version}")
    if device.vendor == "cpu" and not math.isfinite(device.memory_bytes):
        found.append("the memory of this host is not known")
    if shape.vision:
        found.append("how many tokens an image becomes depends on size and model: only the server can count them")
    return tuple(found)
