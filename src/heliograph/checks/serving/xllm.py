"""Do placement by predicted latency, changing roles, zero-evict admission and co-location pay? (arXiv:2510.14686)

The engine is held to a plain forward pass, and a real cluster to the same with a process stopped. The service policies
run in virtual time on real schedulers, with step times fitted on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliograph.checks.serving.xllm_parts import costs, engine, failure, loads, service
from heliograph.trials.check import (
    Check,
    Claim,
    Contender,
    Control,
    Exact,
    Experiment,
    NotWorse,
    Size,
    StressAxis,
    Superior,
    Workload,
)

__all__ = ["CHECK"]

MINUTE = 60.0
EVERYWHERE = ("smoke", "laptop", "gpu")

# all of them ours, and fixed before the first run
FASTER_TOKENS, OVERLAP_GAIN, ONLINE_LOSS = 1 / 0.85, 1.05, 0.01
OFFLINE_GAIN, ATTAINMENT_MARGIN, SAME = 1.05, 0.05, 1.05

FIT: dict[str, Any] = {
    "model": "smollm2-135m",
    "grid": {"prompts": [16, 64, 160], "batches": [1, 6, 16], "contexts": [32, 256, 512]},
    "repeats": 2,
}
STATED: dict[str, Any] = {"cost": costs.STATED}

HEAVY_PROMPTS = {"prompt": [150, 350], "output": [8, 32], "load": 0.7}
HEAVY_ANSWERS = {"prompt": [16, 64], "output": [100, 250], "load": 0.7}
BOTH = {"prompt": [60, 180], "output": [40, 120], "load": 0.7}
ROLES = {**FIT, "instances": 8, "ratios": [2, 3, 4, 5, 6], "phase_s": 60.0, "most": 100}
SWING = Workload(
    "mix that swings between long prompts and long answers every 60 s",
    {**ROLES, "phases": [HEAVY_PROMPTS, HEAVY_ANSWERS, HEAVY_PROMPTS, HEAVY_ANSWERS]},
)
STEADY = Workload("constant mix", {**ROLES, "phases": [BOTH, BOTH]})
SMALL_SWING = SWING.with_params(**STATED, most=8, instances=4, ratios=[2])
SMALL_STEADY = STEADY.with_params(**STATED, most=8, instances=4, ratios=[2])

SCARCE = Workload(
    "memory for 60 % of the demand, load 1.2",
    {**FIT, "prompt": [32, 96], "output": [16, 256], "overload": 1.2, "pool": 0.6, "requests": 240},
)
PLENTY = Workload("memory for three times the demand, load 1.2", {**SCARCE.params, "pool": 3.0, "requests": 80})

EBB = {"prompt": [60, 180], "output": [40, 120], "load": 0.25}
FLOOD = {**EBB, "load": 0.6}
TIDES = Workload(
    "online ebb and flood every 45 s, and an offline backlog",
    {
        **FIT,
        "instances": 4,
        "phase_s": 45.0,
        "most": 60,
        "phases": [EBB, FLOOD, EBB, FLOOD],
        "offline": 160,
        "offline_prompt": [64, 192],
        "offline_output": [64, 192],
        "drain": 1.25,
    },
)
NO_BACKLOG = Workload("online alone", {**TIDES.params, "offline": 0})

TOKENS = Workload(
    "SmolLM2, first 4 layers, 16 prompts",
    {
        "model": "smollm2-135m",
        "layers": 4,
        "prompts": 16,
        "longest": 40,
        "output": 7,
        "chunks": [16, 64, None],
        "block_size": 8,
        "blocks": 30,
    },
)
OVERLAP = Workload(
    "SmolLM2, first 4 layers, 16 prompts at once",
    {"model": "smollm2-135m", "layers": 4, "prompts": 16, "longest": 32, "output": 16, "blocks": 256, "threads": 1},
)
STOPPED = Workload(
    "SmolLM2, first 4 layers, 1 prefill and 2 decode processes",
    {
        "model": "smollm2-135m",
        "layers": 4,
        "prompts": 12,
        "longest": 64,
        "output": 48,
        "engine": {"num_blocks": 512, "max_tokens_per_step": 64},
        "heartbeat_s": 0.25,
        "suspect_s": 1.0,
        "remove_s": 2.0,
        "slack_s": 2.0,
        "deadline_s": 45.0,
    },
)

COST = Experiment(
    "cost model",
    "step times of the real model on this machine, and the formula that virtual time runs on",
    (Contender("fit", "system"),),
    costs.measure,
    {
        preset: Size((Workload("SmolLM2, 13 shapes of steps", FIT),), 1, time_limit_s=3 * MINUTE, estimate_s=30)
        for preset in ("laptop", "gpu")
    },
    alone=True,
)
ENGINE = Experiment(
    "engine",
    "tokens in 12 settings: prefix cache, chunks, overlap; random arrivals, a cache that is too small",
    (Contender("engine", "system"),),
    engine.measure_tokens,
    {
        "smoke": Size(
            (
                TOKENS.with_params(
                    model="random", layers=2, prompts=6, longest=32, output=8, chunks=[16, None], blocks=9
                ),
            ),
            1,
            time_limit_s=MINUTE,
            estimate_s=6,
        ),
        "laptop": Size((TOKENS,), 1, time_limit_s=2 * MINUTE, estimate_s=25),
        "gpu": Size((TOKENS.with_params(layers=None),), 1, time_limit_s=3 * MINUTE, estimate_s=40),
    },
)
ROLE_ARMS = (
    Contender("roles that follow", "system"),
    Contender("best static ratio", "baseline", "same router, the split that was best in hindsight, block by block"),
    Contender("least outstanding", "baseline", "every instance computes prompts and answers"),
    Contender("round robin", "baseline", "every instance computes prompts and answers"),
)
FOLLOW = Experiment(
    "roles",
    "eight instances in virtual time: how many compute prompts and how many decode",
    ROLE_ARMS,
    service.measure_roles,
    {
        "smoke": Size((SMALL_SWING,), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((SWING,), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((SWING,), 8, time_limit_s=MINUTE, estimate_s=3),
    },
)
CONSTANT = Experiment(
    "roles, constant mix",
    "the same instances under a mix that does not change",
    ROLE_ARMS[:2],
    service.measure_roles,
    {
        "smoke": Size((SMALL_STEADY,), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((STEADY,), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((STEADY,), 8, time_limit_s=MINUTE, estimate_s=3),
    },
)
ADMISSION = Experiment(
    "admission",
    "one instance with too little memory and too many requests, in virtual time",
    (
        Contender("zero-evict", "system"),
        Contender("evicting", "baseline", "everybody starts who finds blocks for the first step"),
    ),
    service.measure_admission,
    {
        "smoke": Size((SCARCE.with_params(**STATED, requests=60),), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((SCARCE, PLENTY), 5, time_limit_s=MINUTE, estimate_s=1),
        "gpu": Size((SCARCE, PLENTY), 8, time_limit_s=MINUTE, estimate_s=1),
    },
)
COLOCATION = Experiment(
    "co-location",
    "four instances in virtual time, online requests with limits and an offline backlog",
    (
        Contender("colocation", "system"),
        Contender("online alone", "baseline", "no offline work at all"),
        Contender("separate pools", "baseline", "one instance for offline work, the others split as is best"),
        Contender(
            "priority only", "baseline", "mixed instances, least outstanding; offline requests yield to online ones"
        ),
    ),
    service.measure_colocation,
    {
        "smoke": Size((TIDES.with_params(**STATED, most=6, offline=6),), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((TIDES,), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((TIDES,), 8, time_limit_s=MINUTE, estimate_s=3),
    },
)
WITHOUT = Experiment(
    "co-location, nothing offline",
    "the same policy with no offline work",
    (Contender("colocation", "control"), Contender("online alone", "baseline")),
    service.measure_colocation,
    {
        "smoke": Size((NO_BACKLOG.with_params(**STATED, most=6),), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((NO_BACKLOG,), 5, time_limit_s=MINUTE, estimate_s=1),
        "gpu": Size((NO_BACKLOG,), 8, time_limit_s=MINUTE, estimate_s=1),
    },
)
FAILURE = Experiment(
    "stopped process",
    "a real cluster on this machine; one decode process is stopped with a signal and never answers again",
    (Contender("one stopped", "system", "after a round in which none is"),),
    failure.measure,
    {
        preset: Size((STOPPED,), 1, time_limit_s=2 * MINUTE, memory_limit_bytes=8 * 2**30, estimate_s=40)
        for preset in ("laptop", "gpu")
    },
    alone=True,
)
STEPS = Experiment(
    "overlap",
    "throughput with the next step planned during this one",
    (
        Contender("overlapped", "system"),
        Contender("one after the other", "baseline"),
        Contender("one after the other, again", "control"),
    ),
    engine.measure_overlap,
    {
        "laptop": Size((OVERLAP,), 1, repeats=3, time_limit_s=1.5 * MINUTE, estimate_s=20),
        "gpu": Size(
            (OVERLAP.with_params(layers=None, output=64),), 8, repeats=5, time_limit_s=2 * MINUTE, estimate_s=25
        ),
    },
    kind="interleaved",
)

VIRTUAL = "whether real steps spread as the formula's do not, and real networks; Ascend devices"
FITTED = "step times come from a formula fitted on this machine"


def _adopt(path: Path, preset: str) -> Mapping[str, Workload]:
    smoke = preset == "smoke"
    return loads.adopt(
        path,
        preset,
        {
            "roles": SMALL_SWING if smoke else SWING,
            "co-location": TIDES.with_params(**STATED) if smoke else TIDES,
        },
    )


CHECK = Check(
    slug="xllm",
    experiments=(COST, ENGINE, FOLLOW, CONSTANT, ADMISSION, COLOCATION, WITHOUT, FAILURE, STEPS),
    claims=(
        Claim(
            "engine_tokens",
            "engine",
            "same",
            "engine",
            Exact(),
            measured="greedy tokens of 16 requests in each of 12 settings against a plain forward pass",
            cannot_show="number formats below float32, where rounding may turn a token",
            presets=EVERYWHERE,
        ),
        Claim(
            "cost_model",
            "cost model",
            "within",
            "fit",
            Exact(),
            measured="half of the measured steps are met by the formula within 20 %",
            cannot_show="shapes outside the measured grid",
            presets=("laptop", "gpu"),
        ),
        Claim(
            "roles_follow_load",
            "roles",
            "attainment",
            "roles that follow",
            NotWorse(0.0),
            baseline="best static ratio",
            measured=f"share of requests within both limits; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "roles_goodput",
            "roles",
            "goodput",
            "roles that follow",
            NotWorse(1.0),
            baseline="best static ratio",
            effect="ratio",
            unit="x",
            measured=f"requests a second within both limits; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "roles_over_mixed",
            "roles",
            "attainment",
            "roles that follow",
            NotWorse(0.0),
            baseline="least outstanding",
            measured=f"share of requests within both limits, against instances that do both; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "never_evicts",
            "admission",
            "no_eviction",
            "zero-evict",
            Exact(),
            measured="evictions, with answers up to the limit that the admission assumes",
            cannot_show="answers beyond that limit, which can still evict",
            presets=EVERYWHERE,
            provenance="simulated",
        ),
        Claim(
            "zero_evict",
            "admission",
            "tpot_s",
            "zero-evict",
            Superior(FASTER_TOKENS),
            baseline="evicting",
            effect="ratio",
            better="lower",
            unit="x",
            workloads=(SCARCE.name,),
            measured=f"mean time per output token, evicting over zero-evict; {FITTED}",
            cannot_show="Qwen3-8B on Ascend under an end-to-end limit",
            provenance="simulated",
        ),
        Claim(
            "colocation_online",
            "co-location",
            "online_attainment",
            "colocation",
            NotWorse(ONLINE_LOSS),
            baseline="online alone",
            measured=f"share of online requests within both limits, with and without offline work; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "colocation_offline",
            "co-location",
            "offline_tokens_per_s",
            "colocation",
            Superior(OFFLINE_GAIN),
            baseline="separate pools",
            effect="ratio",
            unit="x",
            measured=f"offline tokens drawn in the same time; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "colocation_over_priority",
            "co-location",
            "online_attainment",
            "colocation",
            Superior(ONLINE_LOSS),
            baseline="priority only",
            measured=f"share of online requests within both limits; {FITTED}",
            cannot_show=VIRTUAL,
            provenance="simulated",
        ),
        Claim(
            "stopped_process",
            "stopped process",
            "ended",
            "one stopped",
            Exact(),
            measured="requests that ended within their deadline with all their tokens",
            cannot_show="networks that split, and machines that fail as a whole",
        ),
        Claim(
            "stopped_process_tokens",
            "stopped process",
            "same",
            "one stopped",
            Exact(),
            measured="requests with the tokens of a plain forward pass: none twice, none lost",
            cannot_show="networks that split, and machines that fail as a whole",
        ),
        Claim(
            "stopped_process_noticed",
            "stopped process",
            "noticed",
            "one stopped",
            Exact(),
            measured="suspect after 1 s and removed after 2 s of silence, at most 2 s late",
            cannot_show="the published windows of 3 s and 15 s more, which only take longer",
        ),
        Claim(
            "asynchronous_scheduling",
            "overlap",
            "seconds",
            "overlapped",
            Superior(OVERLAP_GAIN),
            baseline="one after the other",
            effect="ratio",
            better="lower",
            unit="x",
            measured="time of a batch, one after the other over overlapped",
            cannot_show="on two cores the planner takes a core from the model; DeepSeek-R1-Distill-Qwen-1.5B on Ascend",
            presets=("gpu",),
        ),
    ),
    controls=(
        Control(
            "misplaced blocks",
            "an engine that reads a block in the place of another must give other tokens, and memory must have run out",
            "engine",
            "fault_noticed",
            "engine",
        ),
        Control(
            "more work takes longer",
            "the formula must tell a batch from one request, and a prompt from its half",
            "cost model",
            "grows",
            "fit",
            guards=("cost_model",),
        ),
        Control(
            "constant mix",
            "where the mix does not change, roles that follow must bring nothing over the best static split",
            "roles, constant mix",
            "attainment",
            "roles that follow",
            "best static ratio",
            margin=ATTAINMENT_MARGIN,
            guards=("roles_follow_load", "roles_goodput", "roles_over_mixed"),
        ),
        Control(
            "enough memory",
            "with memory for everybody both ways of admission must be equally fast",
            "admission",
            "tpot_s",
            "zero-evict",
            "evicting",
            effect="ratio",
            margin=SAME,
            workloads=(PLENTY.name,),
            guards=("zero_evict",),
        ),
        Control(
            "evictions do happen",
            "without the simulation before admission there must be evictions",
            "admission",
            "evicts",
            "evicting",
            workloads=(SCARCE.name,),
            guards=("never_evicts", "zero_evict"),
        ),
        Control(
            "nothing offline",
            "without offline work the policy must leave online requests as they are",
            "co-location, nothing offline",
            "online_attainment",
            "colocation",
            "online alone",
            margin=ONLINE_LOSS,
            guards=("colocation_online", "colocation_offline", "colocation_over_priority"),
        ),
        Control(
            "none stopped",
            "with all processes running nobody is suspected and tokens are the same",
            "stopped process",
            "undisturbed",
            "one stopped",
        ),
        Control(
            "same engine twice",
            "the engine without overlap against itself",
            "overlap",
            "seconds",
            "one after the other",
            "one after the other, again",
            effect="ratio",
            margin=SAME,
        ),
    ),
    preload=("numpy", "scipy", "torch"),
    sources=("heliograph.serving", "heliograph.sim", "heliograph.lm.core", "heliograph.checks.serving"),
    tuning="published settings for every contender, and for the static split the best of five in hindsight",
    stress=(
        StressAxis("roles", "phase_s", (15.0, 30.0, 120.0), "seconds between changes of the mix"),
        StressAxis("admission", "pool", (0.3, 0.45, 0.9), "memory as a share of the demand"),
        StressAxis("co-location", "offline", (40, 400), "offline requests"),
    ),
    adopt=_adopt,
    accepts="a request trace (JSON lines) whose requests have arrival_s and prompt_tokens",
)
