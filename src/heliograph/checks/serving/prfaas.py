"""Does Prefill-as-a-Service do what its paper says? (arXiv:2604.15039)

The paper's case study from its own profile: the printed rates by the model, then request by request in virtual time
against deployments that have a search of their own. On this machine: cache bytes a second of a windowed model, and its
caches over a paced link to another process.
"""

from __future__ import annotations

from heliograph.checks.serving.prfaas_parts import caches, clusters, links
from heliograph.trials.check import (
    Bound,
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
# fixed before the first run. The model's own ratios are 1.514 and 1.277; 5 % less is asked of the simulation. Of the
# published gains in time to first token (64 % and 50 %) 40/64 are asked.
THROUGHPUT, OVER_NAIVE = 0.95 * 1.514, 0.95 * 1.277
TTFT_P90, TTFT_MEAN = 1 / (1 - 0.40), 1 / (1 - 0.50 * 0.40 / 0.64)
OVER_LEAST_LOADED, LESS_RATE, HIDDEN, CALMER, SHORTER_QUEUE = 1.1, 3.0, 0.5, 1.2, 1.5

TABLE = Workload("printed rates within 3 %", {"tolerance": 0.03})
CASE = {"pieces": 4, "of": "own"}
FULL = Workload("1.3 of the own limit", {**CASE, "load": 1.3, "requests": 6_000})
OWN = Workload("0.95 of the own limit", {**CASE, "load": 0.95, "requests": 20_000})
SAME = Workload("0.95 of the homogeneous limit", {**CASE, "of": "homogeneous", "load": 0.95, "requests": 8_000})
LIGHT = Workload("0.1 of the own limit", {**CASE, "load": 0.1, "requests": 2_000})
SHORT = Workload("300 requests at 0.95 of the own limit", {**CASE, "load": 0.95, "requests": 300})
ABOVE = Workload("2,000 requests", {"requests": 2_000})
FEW = Workload("200 requests", {"requests": 200})

THIN = {"gbps": 20.0, "falls_to": 1 / 3, "load": 0.8, "requests": 1_500, "begin_s": 240.0, "pieces": 4}
FALLS = Workload("20 Gbit/s, a third of it for 60 s", {**THIN, "lasts_s": 60.0})
STEADY = Workload("100 Gbit/s throughout", {**THIN, "gbps": 100.0, "lasts_s": 0.0})
SMALL_FALL = Workload("150 requests", {**FALLS.params, "requests": 150, "begin_s": 20.0, "lasts_s": 10.0})

WINDOWED = {"model": "smollm2-135m", "layers": 6, "full_every": 6, "window": 512}
TINY = {"model": "random", "layers": 6, "full_every": 6, "window": 32}
WIDE = {"model": "random-wide", "layers": 12, "full_every": 6, "window": 512}
LONG = Workload("4,096 tokens", {**WINDOWED, "tokens": 4096, "runs": 1})
TINY_LONG = Workload("256 tokens, small", {**TINY, "tokens": 256, "runs": 1})
GPU_LONG = Workload("32,768 tokens, random weights", {**WIDE, "tokens": 32_768, "runs": 3})

PREFIXES = Workload(
    "6 pairs of prompts", {"prompts": 6, "tokens": 400, "block": 16, "checkpoint": 128, "window": 48, "answer": 16}
)
LINK = {"bytes_per_s": 12.5e6, "delay_s": 0.01, "chunk_bytes": 2**17}
ANSWERED = Workload(
    "all 30 layers, 100 Mbit/s", {**WINDOWED, **LINK, "layers": None, "lengths": [256, 600], "answer": 16}
)
TINY_ANSWERED = Workload("small, 100 Mbit/s", {**TINY, **LINK, "lengths": [20, 100, 300], "answer": 16})
HIDING = Workload("6 layers, 100 Mbit/s, 10 ms", {**WINDOWED, **LINK, "lengths": [512], "runs": 3, "still": 0.25})
GPU_LINK = {"delay_s": 0.01, "chunk_bytes": 2**20, "lengths": [8_192, 32_768], "runs": 5, "still": 0.25}
GPU_HIDING = (
    Workload("1 Gbit/s", {**WIDE, **GPU_LINK, "bytes_per_s": 1.25e8}),
    Workload("10 Gbit/s", {**WIDE, **GPU_LINK, "bytes_per_s": 1.25e9}),
)


def _sizes(estimate_s: float, smoke: Workload | None, *laptop: Workload, blocks: int = 5) -> dict[str, Size]:
    sizes = {"laptop": Size(laptop, blocks, time_limit_s=2 * MINUTE, estimate_s=estimate_s)}
    sizes["gpu"] = sizes["laptop"]
    if smoke is not None:
        sizes["smoke"] = Size((smoke,), 1, time_limit_s=MINUTE, estimate_s=2)
    return sizes


EXPERIMENTS = {
    "table": Experiment(
        "table",
        "the throughput model on the paper's profile, against its printed rates",
        (Contender("model", "system"),),
        clusters.measure_table,
        _sizes(2, TABLE, TABLE, blocks=1),
    ),
    "above": Experiment(
        "above",
        "a threshold above every length, request by request against no remote cluster",
        (Contender("threshold above all", "control"),),
        clusters.measure_above_all,
        _sizes(2, FEW, ABOVE, blocks=1),
    ),
    "prefixes": Experiment(
        "prefixes",
        "answers that begin from the longest prefix that all cache groups have",
        (Contender("common length", "system"),),
        caches.measure_prefixes,
        _sizes(3, PREFIXES, PREFIXES, blocks=1),
    ),
    "answers": Experiment(
        "answers",
        "greedy answers from caches that another process computed, over a paced link",
        (Contender("handed over", "system"),),
        links.measure_answers,
        _sizes(15, TINY_ANSWERED, ANSWERED, blocks=1),
    ),
    "deployments": Experiment(
        "deployments",
        "the paper's clusters in virtual time, each deployment at its own best split",
        (
            Contender("threshold", "system", "long prompts leave"),
            Contender("homogeneous", "baseline", "96 local devices, none leave"),
            Contender("naive", "baseline", "all prompts leave"),
            Contender("least loaded", "baseline", "to where fewest wait for each instance, whatever the length"),
            Contender("earliest finish", "baseline", "to where the prompt is expected to end first, by the profiles"),
        ),
        clusters.measure_deployments,
        _sizes(4, SHORT, FULL, OWN, SAME, LIGHT),
    ),
    "fluctuation": Experiment(
        "fluctuation",
        "a thin link that loses two thirds of its bandwidth for a minute",
        (
            Contender("adaptive", "system", "the threshold is solved again while the link is scarce"),
            Contender("fixed", "baseline", "the solved threshold throughout"),
            Contender("least loaded", "baseline", "no threshold"),
        ),
        clusters.measure_fluctuation,
        _sizes(2, SMALL_FALL, FALLS, STEADY),
    ),
    "rates": Experiment(
        "rates",
        "cache bytes a second of prefill: windowed SmolLM2, first six layers, against itself with all layers full",
        (Contender("windowed", "system"), Contender("all layers full", "baseline")),
        caches.measure_rates,
        {
            "smoke": Size((TINY_LONG,), 1, time_limit_s=MINUTE, estimate_s=2),
            "laptop": Size((LONG,), 5, time_limit_s=2 * MINUTE, estimate_s=8),
            "gpu": Size((GPU_LONG,), 5, time_limit_s=2 * MINUTE, estimate_s=10),
        },
        alone=True,
    ),
    "hiding": Experiment(
        "hiding",
        "first tokens whose caches leave layer by layer, against after the prompt; windowed SmolLM2, first six layers",
        (Contender("layer by layer", "system"),),
        links.measure_hiding,
        {
            "laptop": Size((HIDING,), 5, time_limit_s=2 * MINUTE, estimate_s=15),
            "gpu": Size(GPU_HIDING, 5, time_limit_s=3 * MINUTE, estimate_s=40),
        },
        alone=True,
    ),
}

ALWAYS = ("smoke", "laptop", "gpu")
PROFILED = "virtual time on the paper's profile and derived local speeds: no real clusters, no 1T model"


def _simulated(
    claim: str, metric: str, rule: Superior | NotWorse, baseline: str, workload: Workload, what: str
) -> Claim:
    return Claim(
        claim,
        "deployments",
        metric,
        "threshold",
        rule,
        baseline=baseline,
        effect="ratio",
        better="higher" if metric == "throughput" else "lower",
        workloads=(workload.name,),
        measured=what,
        cannot_show=PROFILED,
        provenance="simulated",
    )


CHECK = Check(
    slug="prfaas",
    experiments=tuple(EXPERIMENTS.values()),
    claims=(
        Claim(
            "table_reproduced",
            "table",
            "table",
            "model",
            Exact(),
            measured="rates, share, best threshold and splits of the printed table, each within 3 %",
            cannot_show="whether the profile itself is right; local speeds are derived from the same table",
            presets=ALWAYS,
            provenance="modelled",
        ),
        Claim(
            "prefix_identical",
            "prefixes",
            "identical",
            "common length",
            Exact(),
            measured="greedy answers from the pool's common prefix against answers from the start",
            cannot_show="recurrent states: the model has windows",
            presets=ALWAYS,
        ),
        Claim(
            "tokens_identical",
            "answers",
            "tokens",
            "handed over",
            Exact(),
            measured="greedy answers from caches of another process, sent by layer and whole, against local ones",
            cannot_show="processes on different machines; quality, which windows change",
            presets=ALWAYS,
        ),
        Claim(
            "rates_agree",
            "deployments",
            "agrees",
            "threshold",
            Exact(),
            workloads=(FULL.name,),
            measured="requests a second under overload, within 5 % of the model's",
            cannot_show=PROFILED,
            presets=("laptop", "gpu"),
            provenance="simulated",
        ),
        Claim(
            "bytes_exact",
            "rates",
            "exact",
            "windowed",
            Exact(),
            measured="bytes kept after a prompt against the formula by layer",
            cannot_show="padding of pages",
            presets=ALWAYS,
        ),
        _simulated(
            "throughput_gain",
            "throughput",
            Superior(THROUGHPUT),
            "homogeneous",
            FULL,
            "requests a second under overload, against 96 local devices at their best split",
        ),
        _simulated(
            "throughput_over_naive",
            "throughput",
            Superior(OVER_NAIVE),
            "naive",
            FULL,
            "requests a second under overload, against sending every prompt away",
        ),
        _simulated(
            "throughput_least_loaded",
            "throughput",
            NotWorse(1.0),
            "least loaded",
            FULL,
            "requests a second under overload, against sending prompts to where fewest wait",
        ),
        _simulated(
            "ttft_mean",
            "ttft_mean",
            Superior(TTFT_MEAN),
            "homogeneous",
            OWN,
            "mean time to first token, each at 0.95 of its own limit",
        ),
        _simulated(
            "ttft_p90",
            "ttft_p90",
            Superior(TTFT_P90),
            "homogeneous",
            OWN,
            "90th percentile of time to first token, each at 0.95 of its own limit",
        ),
        _simulated(
            "ttft_p90_same_rate",
            "ttft_p90",
            Superior(TTFT_P90),
            "homogeneous",
            SAME,
            "the same, both at 0.95 of the homogeneous limit",
        ),
        _simulated(
            "ttft_p90_light",
            "ttft_p90",
            Superior(TTFT_P90),
            "homogeneous",
            LIGHT,
            "the same with almost no queues, where the published seconds come out",
        ),
        _simulated(
            "ttft_p90_least_loaded",
            "ttft_p90",
            Superior(OVER_LEAST_LOADED),
            "least loaded",
            OWN,
            "90th percentile of time to first token, against sending prompts to where fewest wait",
        ),
        Claim(
            "link_use",
            "deployments",
            "egress_gbps",
            "threshold",
            Bound(13.0),
            better="lower",
            workloads=(OWN.name,),
            unit="Gbps",
            measured="average traffic out of the remote cluster at 0.95 of the limit",
            cannot_show=PROFILED,
            provenance="simulated",
            comparable="value",
        ),
        Claim(
            "fluctuation_ttft",
            "fluctuation",
            "ttft_p99",
            "adaptive",
            Superior(CALMER),
            baseline="fixed",
            effect="ratio",
            better="lower",
            workloads=(FALLS.name,),
            measured="99th percentile of time to first token while a thin link falls to a third for 60 s",
            cannot_show=f"{PROFILED}; losses of a real wide-area link",
            provenance="simulated",
        ),
        Claim(
            "fluctuation_queue",
            "fluctuation",
            "queue_mib",
            "adaptive",
            Superior(SHORTER_QUEUE),
            baseline="fixed",
            effect="ratio",
            better="lower",
            workloads=(FALLS.name,),
            measured="largest send queue in the same run",
            cannot_show=f"{PROFILED}; losses of a real wide-area link",
            provenance="simulated",
        ),
        Claim(
            "kv_rate_hybrid",
            "rates",
            "kv_rate",
            "windowed",
            Superior(LESS_RATE),
            baseline="all layers full",
            effect="ratio",
            better="lower",
            measured="cache bytes a second of prefill at the longest prompt, same weights, one layer in six full",
            cannot_show="linear attention, large models, prompts of 32K on a CPU",
        ),
        Claim(
            "transfer_hidden",
            "hiding",
            "hidden",
            "layer by layer",
            Bound(HIDDEN),
            measured="seconds that sending by layer saves, as a share of the smaller of prefill and transfer",
            cannot_show="links with loss; more than one transfer at a time",
        ),
    ),
    controls=(
        Control(
            "threshold above every length",
            "then every time must be that of the homogeneous cluster",
            "above",
            "same",
            "threshold above all",
            guards=(
                "rates_agree",
                "throughput_gain",
                "throughput_over_naive",
                "throughput_least_loaded",
                "ttft_mean",
                "ttft_p90",
                "ttft_p90_same_rate",
                "ttft_p90_light",
                "ttft_p90_least_loaded",
                "link_use",
            ),
        ),
        Control(
            "solved threshold",
            "with the solved threshold the times must differ from those of the homogeneous cluster",
            "above",
            "notices",
            "threshold above all",
            guards=("throughput_gain",),
        ),
        Control(
            "another profile",
            "with local prompts twice as slow the table must be missed",
            "table",
            "notices",
            "model",
        ),
        Control(
            "stale state",
            "a windowed state older than the prefix must change what follows",
            "prefixes",
            "notices",
            "common length",
        ),
        Control(
            "shifted keys",
            "a cache whose keys are shifted by one token must be told from the right one",
            "answers",
            "notices",
            "handed over",
        ),
        Control(
            "steady link",
            "where bandwidth is plenty and does not change, following it changes nothing",
            "fluctuation",
            "ttft_p99",
            "adaptive",
            "fixed",
            effect="ratio",
            margin=1.1,
            workloads=(STEADY.name,),
        ),
        Control(
            "prompt of one window",
            "a prompt no longer than the window leaves the same bytes in the same time",
            "rates",
            "kv_rate_window",
            "windowed",
            "all layers full",
            effect="ratio",
            margin=1.2,
            guards=("kv_rate_hybrid",),
        ),
        Control(
            "formula without windows",
            "the formula of a model without windows must not give these bytes",
            "rates",
            "notices",
            "windowed",
            guards=("bytes_exact", "kv_rate_hybrid"),
        ),
        Control(
            "same way twice",
            "sending after the prompt hides nothing against itself",
            "hiding",
            "still",
            "layer by layer",
        ),
    ),
    preload=("numpy", "scipy.special", "torch", "msgspec"),
    sources=("heliograph.serving", "heliograph.sim", "heliograph.workload", "heliograph.lm.core"),
    tuning="every deployment at its own best split by the same model, same requests, same profiles",
    stress=(
        StressAxis("deployments", "load", (0.5, 0.8), "share of the limit"),
        StressAxis("fluctuation", "gbps", (15.0, 40.0), "Gbit/s of the link"),
        StressAxis("fluctuation", "lasts_s", (20.0, 120.0), "seconds of the fall"),
    ),
)
