"""Does choosing the compression of keys and values for each transfer pay? (arXiv:2605.13734)

Bits, bounds, the envelope and damaged frames exactly; transfers, whole jobs and a pool over paced links with the caches
of a real model; a search against trying everything; quality on samples that no search has seen; drift, simulated.
"""

from __future__ import annotations

from heliograph.checks.serving.kv_serve_parts import drift, exact, gpu, links, searches
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
EVERYWHERE = ("smoke", "laptop", "gpu")
MEASURED = ("laptop", "gpu")

# all of them ours, and fixed before the first run
SLOW_GAIN, JOB_GAIN, POOL_GAIN, NEAR_STATIC, NEVER_SLOWER = 2.0, 1.3, 2.0, 1.05, 1.03
RATIO_GAIN, KEPT, NEAR_BEST, FEWER, FOLLOWS, DECISION_MS, MODEL_ERROR = 1.2, 0.97, 0.99, 2.0, 1.05, 1.0, 0.15
FUSED_GAIN = 3.0

MBIT, GBIT = 1e6 / 8, 1e9 / 8
SWEEP = [50 * MBIT, 300 * MBIT, 10 * GBIT, 0]
SEARCH = {
    "model": "smollm2-135m",
    "tasks": ["kv-lookup", "copy"],
    "samples": 2,
    "tokens": 96,
    "sample_seed": 1,
    "search_seed": 0,
    "min_quality": 0.97,
    "max_evals": 24,
    "space": {
        "transform": ["none", "hadamard"],
        "hybrid_ratio": [0.4, 0.8],
        "levels_high": [20, 16, 12],
        "levels_low": [16, 10],
        "codec": ["bitpack", "huffman", "zstd"],
    },
}
LINK = {**SEARCH, "sweep": SWEEP, "learning": 4}
ARMS = ["KVServe", "none", "KIVI", "CacheGen", "best static"]


def _at(name: str, bytes_per_s: float, tokens: int = 128) -> Workload:
    # the calibration's prompts have their own length
    arms = [*ARMS, "none, again"] if bytes_per_s in SWEEP[2:] else ARMS
    return Workload(
        f"{name}, {tokens} tokens", {**LINK, "bytes_per_s": bytes_per_s, "link_tokens": tokens, "arms": arms}
    )


SLOW = _at("50 Mbit/s", SWEEP[0])
MIDDLE = _at("300 Mbit/s", SWEEP[1])
FAST = _at("10 Gbit/s", SWEEP[2])
UNLIMITED = _at("unlimited", 0)
POOL = _at("100 Mbit/s", 100 * MBIT)
JOBS = Workload("10 Mbit/s, 96 tokens, 4 of answer", {**LINK, "bytes_per_s": 10 * MBIT, "link_tokens": 96, "answer": 4})
PREDICTED = Workload(
    "50, 100 and 300 Mbit/s, 128 tokens", {**LINK, "sweep": [50 * MBIT, 100 * MBIT, 300 * MBIT], "link_tokens": 128}
)
DECIDED = Workload("16 profiles, 1,000 requests", {"profiles": 16})

# on a GPU: points that it packs by itself, at an 8B model's shape
GPU_LINK = {
    **SEARCH,
    "space": {
        "transform": ["none", "hadamard"],
        "hybrid_ratio": [0.0],
        "levels_high": [20, 16, 12, 10, 8],
        "levels_low": [2],
        "codec": ["bitpack"],
    },
    "sweep": [5 * GBIT, 25 * GBIT, 100 * GBIT, 0],
    "learning": 3,
}


def _gpu(name: str, bytes_per_s: float, tokens: int) -> Workload:
    arms = [*ARMS, "none, again"] if bytes_per_s == 0 else ARMS
    return Workload(
        f"{name}, {tokens:,} tokens of an 8B shape",
        {**GPU_LINK, "bytes_per_s": bytes_per_s, "link_tokens": tokens, "arms": arms},
    )


GPU_SLOW = _gpu("5 Gbit/s", 5 * GBIT, 4_096)
GPU_MIDDLE = _gpu("25 Gbit/s", 25 * GBIT, 16_384)
GPU_UNLIMITED = _gpu("unlimited", 0, 16_384)
GPU_POOL = _gpu("10 Gbit/s", 10 * GBIT, 16_384)
GPU_PREDICTED = Workload(
    "5, 25 and 100 Gbit/s, 4,096 tokens of an 8B shape",
    {**GPU_LINK, "sweep": [5 * GBIT, 25 * GBIT, 100 * GBIT], "link_tokens": 4_096},
)
GPU_HELD_OUT = Workload("4 other samples of 2 tasks, 512 tokens", {**GPU_LINK, "held_tokens": 96, "ratio_tokens": 512})
GPU_CODECS = tuple(
    Workload(f"{tokens:,} tokens of an 8B shape, {axis} statistics", {"tokens": tokens, "axis": axis})
    for tokens, axis in ((4_096, "channel"), (32_768, "token"))
)
GPU_FRAMES = Workload("8B shape, four layers of 100 and 513 tokens", {"lengths": [100, 513], "layers": 4, "recent": 32})
SMALL_FRAMES = Workload("8B shape, one layer of 70 tokens", {"lengths": [70], "layers": 1, "recent": 16})

FACTS = Workload(
    "caches of 1 to 40 tokens, two random layers",
    {
        "model": "tiny",
        "lengths": [1, 19, 40],
        "dims": [8, 12, 64],
        "codecs": ["bitpack", "huffman", "zlib", "none"],
        "envelopes": 60,
        "damages": 12,
        "prompts": 4,
    },
)
REAL_FACTS = Workload("the same with SmolLM2", {**FACTS.params, "model": "smollm2-135m", "prompts": 2})
CANDIDATES = Workload("294 candidates, 4 samples of 2 tasks", SEARCH)
HELD_OUT = Workload("4 other samples of 2 tasks, 512 tokens", {**SEARCH, "held_tokens": 96, "ratio_tokens": 512})

DRIFT = {
    # name, ratio, bytes a second of compressing and restoring: of the order of one core
    "profiles": [["lossless", 1.35, 9e7, 3e8], ["light", 3.9, 1.6e8, 4e8], ["heavy", 4.8, 1e8, 2.5e8]],
    # at 6e7 bytes a second "light" pays at full speed and does not at half, by the closed form
    "phases": [[2e7, 1.0], [6e7, 1.0], [6e7, 2.0], [6e6, 2.0], [6e7, 1.0], [5e8, 1.0]],
    "requests": 20,
    "cycles": 3,
    "octaves": [8, 11],
    "bytes_per_token": 23040,
    "noise": 0.1,
    "epsilon": 0.05,
}
SWINGS = Workload("bandwidth swings, codecs at full and half speed", DRIFT)
STEADY = Workload("nothing changes", {**DRIFT, "phases": [[2e7, 1.0]], "requests": 120})


def _sizes(
    estimate_s: float, *laptop: Workload, blocks: int = 5, repeats: int = 3, gpu: tuple[Workload, ...] = ()
) -> dict[str, Size]:
    sizes = {"laptop": Size(laptop, blocks, repeats=repeats, time_limit_s=3 * MINUTE, estimate_s=estimate_s)}
    if gpu:
        sizes["gpu"] = Size(
            gpu, blocks, repeats=repeats, time_limit_s=3 * MINUTE, memory_limit_bytes=2**35, estimate_s=10
        )
    return sizes


EXACT = Experiment(
    "facts",
    "bits, bounds, envelope, damaged frames, answers through two engines",
    (Contender("KVServe", "system"),),
    exact.measure,
    {
        **_sizes(8, REAL_FACTS, blocks=1, gpu=(REAL_FACTS,)),
        "smoke": Size((FACTS,), 1, time_limit_s=MINUTE, estimate_s=5),
    },
)
DEVICE_FRAMES = Experiment(
    "device frames",
    "frames made on a device and read on the host, and the other way round",
    (Contender("KVServe", "system"),),
    gpu.measure_frames,
    {
        "smoke": Size((SMALL_FRAMES,), 1, time_limit_s=MINUTE, estimate_s=3),
        "laptop": Size((SMALL_FRAMES,), 1, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((GPU_FRAMES,), 1, time_limit_s=MINUTE, memory_limit_bytes=2**35, estimate_s=10),
    },
)
FUSED = Experiment(
    "device codec",
    "rotating, quantising and packing keys and values of an 8B shape on a GPU",
    (
        Contender("fused", "system", "one kernel for the ranges, one for the rest"),
        Contender("step by step", "baseline", "the same by plain tensor operations on the same GPU"),
        Contender("step by step, again", "control"),
    ),
    gpu.measure_codec,
    {"gpu": Size(GPU_CODECS, 5, warmup=2, time_limit_s=MINUTE, memory_limit_bytes=2**35, estimate_s=8)},
    kind="interleaved",
)
FOUND = Experiment(
    "search",
    "the best of about 265 candidates (nine tenths of 294, other ones in each block) with 24 evaluations",
    (
        Contender("KVServe", "system"),
        Contender("random", "baseline", "the same budget, points drawn at random"),
        Contender("no pruning", "ablation"),
        Contender("no model", "ablation", "the largest ratio that is left"),
    ),
    searches.measure_search,
    # the first one takes longer: it measures what all others look up
    {"laptop": Size((CANDIDATES,), 5, time_limit_s=6 * MINUTE, estimate_s=4)},
)
QUALITY = Experiment(
    "quality",
    "answers from compressed caches, on samples that the search has not seen",
    (
        Contender("KVServe", "system", "what the search found, unified over two tasks"),
        Contender("KIVI", "baseline", "2 bits, groups of 32, 32 recent tokens as they are"),
        Contender("CacheGen", "baseline", "differences to anchors, levels by layer"),
        Contender("QuaRot", "baseline", "rotation, 4 bits"),
    ),
    searches.measure_quality,
    _sizes(3, HELD_OUT, gpu=(GPU_HELD_OUT,)),
)
SENDERS = (
    Contender("KVServe", "system", "chosen for each transfer, bandwidth measured"),
    Contender("none", "baseline", "bfloat16 as it is"),
    Contender("KIVI", "baseline"),
    Contender("CacheGen", "baseline"),
    Contender("best static", "baseline", "the best one profile over the sweep, with hindsight"),
)
TRANSFER = Experiment(
    "transfer",
    "the keys and values of a prompt over a paced socket: compressing, sending, restoring",
    SENDERS,
    links.measure_transfer,
    _sizes(4, SLOW, MIDDLE, repeats=2, gpu=(GPU_SLOW, GPU_MIDDLE)),
    kind="interleaved",
)
QUICK = Experiment(
    "quick transfer",
    "the same over links that are faster than the codecs",
    (*SENDERS, Contender("none, again", "control")),
    links.measure_transfer,
    _sizes(3, FAST, UNLIMITED, repeats=7, gpu=(GPU_UNLIMITED,)),
    kind="interleaved",
)
POOLED = Experiment(
    "pool",
    "time to the first token of a prompt whose prefix lies in a pool",
    (
        Contender("compressed", "system"),
        Contender("uncompressed", "baseline"),
        Contender("recomputed", "baseline", "the prefix is computed again"),
    ),
    links.measure_pool,
    _sizes(7, POOL, repeats=2, gpu=(GPU_POOL,)),
    kind="interleaved",
)
WHOLE_JOBS = Experiment(
    "jobs",
    "a prompt computed by one engine and answered by another: all of it",
    (Contender("KVServe", "system"), Contender("none", "baseline", "bfloat16 as it is")),
    links.measure_jobs,
    _sizes(8, JOBS, repeats=1),
    kind="interleaved",
)
MODEL = Experiment(
    "formula",
    "measured transfers against the closed form",
    (Contender("KVServe", "system"),),
    links.measure_prediction,
    _sizes(4, PREDICTED, gpu=(GPU_PREDICTED,)),
    alone=True,
)
DECISIONS = Experiment(
    "decisions",
    "choosing and observing",
    (Contender("KVServe", "system"),),
    links.measure_decisions,
    _sizes(1, DECIDED, gpu=(DECIDED,)),
    alone=True,
)
FOLLOWED = Experiment(
    "drift",
    "a trace in simulated time: bandwidth and the codecs' speed change, and nobody is told",
    (
        Contender("KVServe", "system"),
        Contender("no bandit", "ablation", "bandwidth is measured; nothing else is learnt"),
        Contender("no controller", "ablation", "the best one profile for these bandwidths"),
    ),
    drift.measure,
    _sizes(1, SWINGS, STEADY),
)

SCALE = "laptop: one small model, one core, short prompts; gpu: random weights, no entropy coder, both ends on one GPU"
SIMULATED = "simulated times from stated profiles: no contention between transfers"

CHECK = Check(
    slug="kv_serve",
    experiments=(
        *(EXACT, DEVICE_FRAMES, FUSED, FOUND, QUALITY, TRANSFER),
        *(QUICK, POOLED, WHOLE_JOBS, MODEL, DECISIONS, FOLLOWED),
    ),
    claims=(
        Claim(
            "lossless_identical",
            "facts",
            "lossless",
            "KVServe",
            Exact(),
            measured="bits after every codec, three number formats' worth of NaN, infinities and minus zero included",
            cannot_show="other number formats",
            presets=EVERYWHERE,
        ),
        Claim(
            "error_bounded",
            "facts",
            "bounded",
            "KVServe",
            Exact(),
            measured="every number's error against the bound that follows from the frame; all transforms, quantisers",
            cannot_show="what an error does to an answer",
            presets=EVERYWHERE,
        ),
        Claim(
            "envelope_exact",
            "facts",
            "envelope",
            "KVServe",
            Exact(),
            measured="the profile at random bandwidths and beside each break, against trying all profiles",
            cannot_show="profiles whose times are not linear in bytes",
            presets=EVERYWHERE,
        ),
        Claim(
            "damage_refused",
            "facts",
            "refused",
            "KVServe",
            Exact(),
            measured="cut, changed and foreign frames: refused, counted, nothing delivered, the next frame arrives",
            cannot_show="every possible damage",
            presets=EVERYWHERE,
        ),
        Claim(
            "tokens_identical",
            "facts",
            "tokens",
            "KVServe",
            Exact(),
            measured="greedy answers of an engine that fetched losslessly compressed caches, against one engine",
            cannot_show="processes on different machines",
            presets=EVERYWHERE,
        ),
        Claim(
            "recompute_identical",
            "facts",
            "recomputed",
            "KVServe",
            Exact(),
            measured="greedy answers after fetches that failed in three ways",
            cannot_show="a holder that dies half-way through a frame",
            presets=EVERYWHERE,
        ),
        Claim(
            "adaptation_direction",
            "facts",
            "directions",
            "KVServe",
            Exact(),
            measured="choices on a slow and a 150 Gbit/s link, with tighter quality, and after slow transfers",
            cannot_show="how soon",
            presets=EVERYWHERE,
        ),
        Claim(
            "device_frames",
            "device frames",
            "device_frames",
            "KVServe",
            Exact(),
            measured="frames made on a device within their bound on the host, of equal size, and read back the same",
            cannot_show="kernels, where there is no GPU: plain operations take their place",
            presets=EVERYWHERE,
        ),
        Claim(
            "fused_codec",
            "device codec",
            "seconds",
            "fused",
            Superior(FUSED_GAIN),
            baseline="step by step",
            effect="ratio",
            better="lower",
            measured="seconds of rotating, quantising and packing on a GPU, 4,096 and 32,768 tokens",
            cannot_show="entropy coders on a GPU",
            presets=("gpu",),
        ),
        Claim(
            "search_optimum",
            "search",
            "share",
            "KVServe",
            Bound(NEAR_BEST),
            measured="best feasible ratio found with 24 evaluations over the best of the block's candidates",
            cannot_show="spaces of thousands of candidates",
            presets=("laptop",),
        ),
        Claim(
            "search_cost",
            "search",
            "evals",
            "KVServe",
            Superior(FEWER),
            baseline="random",
            effect="ratio",
            better="lower",
            measured="evaluations until the best is found within 1 %; as many as trying all where 24 do not find it",
            cannot_show="spaces of thousands of candidates",
            presets=("laptop",),
        ),
        Claim(
            "quality",
            "quality",
            "relative",
            "KVServe",
            Bound(KEPT),
            measured="mean probability of the answers relative to the uncompressed cache, samples not searched on",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "compression_ratio",
            "quality",
            "ratio",
            "KVServe",
            Superior(RATIO_GAIN),
            baseline="KIVI",
            effect="ratio",
            measured="uncompressed bytes over bytes of whole frames at 512 tokens, against KIVI with 32 recent ones",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "low_bandwidth_completion_time",
            "transfer",
            "seconds",
            "KVServe",
            Superior(SLOW_GAIN),
            baseline="none",
            effect="ratio",
            better="lower",
            workloads=(SLOW.name, GPU_SLOW.name),
            measured="seconds of a transfer at 50 Mbit/s (5 Gbit/s on a GPU), the prompt and the answer left out",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "never_slower",
            "quick transfer",
            "seconds",
            "KVServe",
            NotWorse(NEVER_SLOWER),
            baseline="none",
            effect="ratio",
            better="lower",
            measured="seconds of a transfer on links that are faster than the codecs",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "near_best_static",
            "transfer",
            "seconds",
            "KVServe",
            NotWorse(NEAR_STATIC),
            baseline="best static",
            effect="ratio",
            better="lower",
            measured="seconds of a transfer, 50 and 300 Mbit/s (5 and 25 Gbit/s), against the sweep's best profile",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "pool_first_token",
            "pool",
            "seconds",
            "compressed",
            Superior(POOL_GAIN),
            baseline="recomputed",
            effect="ratio",
            better="lower",
            measured="time to the first token, a prefix of 128 tokens at 100 Mbit/s (16,384 at 10 Gbit/s, 8B shape)",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "pool_uncompressed",
            "pool",
            "seconds",
            "compressed",
            Superior(1.2),
            baseline="uncompressed",
            effect="ratio",
            better="lower",
            measured="the same against an uncompressed prefix",
            cannot_show=SCALE,
            presets=MEASURED,
        ),
        Claim(
            "disaggregated_completion_time",
            "jobs",
            "seconds",
            "KVServe",
            Superior(JOB_GAIN),
            baseline="none",
            effect="ratio",
            better="lower",
            measured="prompt of 96 tokens, transfer at 10 Mbit/s and answer of 4 tokens, two engines",
            cannot_show=SCALE,
            presets=("laptop",),
        ),
        Claim(
            "latency_model",
            "formula",
            "error",
            "KVServe",
            Bound(MODEL_ERROR),
            better="lower",
            measured="median relative error of the closed form over three bandwidths, with and without compression",
            cannot_show="links that are shared",
            presets=MEASURED,
        ),
        Claim(
            "decision_time",
            "decisions",
            "decision_ms",
            "KVServe",
            Bound(DECISION_MS),
            better="lower",
            unit="ms",
            measured="milliseconds of a choice and its observation, 16 profiles",
            comparable="value",
            cannot_show="many threads at once",
            presets=MEASURED,
        ),
        Claim(
            "drift_followed",
            "drift",
            "latency",
            "KVServe",
            Superior(FOLLOWS),
            baseline="no controller",
            effect="ratio",
            better="lower",
            workloads=(SWINGS.name,),
            measured="mean seconds of a transfer over a trace, against the best one profile",
            cannot_show=SIMULATED,
            presets=("laptop",),
            provenance="simulated",
        ),
        Claim(
            "bandit_pays",
            "drift",
            "latency",
            "KVServe",
            Superior(1.01),
            baseline="no bandit",
            effect="ratio",
            better="lower",
            workloads=(SWINGS.name,),
            measured="the same against the envelope alone, with measured bandwidth",
            cannot_show=SIMULATED,
            presets=("laptop",),
            provenance="simulated",
        ),
    ),
    controls=(
        Control(
            "unlimited bandwidth",
            "with unlimited bandwidth nothing is compressed",
            "facts",
            "unlimited",
            "KVServe",
            guards=(
                "adaptation_direction",
                "envelope_exact",
                "low_bandwidth_completion_time",
                "never_slower",
                "near_best_static",
                "disaggregated_completion_time",
                "pool_first_token",
                "pool_uncompressed",
            ),
        ),
        Control(
            "coarse cache",
            "a cache with four levels must change an answer",
            "facts",
            "notices",
            "KVServe",
            guards=("lossless_identical", "error_bounded", "damage_refused", "tokens_identical", "recompute_identical"),
        ),
        Control(
            "coarse frame",
            "a frame with four levels must be further away than one with sixteen",
            "device frames",
            "notices",
            "KVServe",
        ),
        Control(
            "packed twice",
            "the same operations against themselves",
            "device codec",
            "seconds",
            "step by step",
            "step by step, again",
            effect="ratio",
            margin=1.1,
        ),
        Control(
            "sent twice",
            "the same transfer against itself",
            "quick transfer",
            "seconds",
            "none",
            "none, again",
            effect="ratio",
            margin=1.15,
            guards=(
                "low_bandwidth_completion_time",
                "never_slower",
                "near_best_static",
                "latency_model",
                "decision_time",
                "pool_first_token",
                "pool_uncompressed",
                "disaggregated_completion_time",
            ),
        ),
        Control(
            "nothing changes",
            "where nothing changes, learning brings nothing",
            "drift",
            "latency",
            "KVServe",
            "no bandit",
            effect="ratio",
            margin=1.05,
            workloads=(STEADY.name,),
        ),
        Control(
            "score notices",
            "the score must fall with four levels and stay with 256",
            "search",
            "notices",
            "KVServe",
            guards=("search_optimum", "search_cost", "quality", "compression_ratio"),
        ),
    ),
    preload=("numpy", "scipy.special", "torch", "numba", "msgspec", "sklearn.gaussian_process"),
    sources=("heliograph.serving.kv_serve", "heliograph.serving.core", "heliograph.lm.core"),
    tuning="same caches, same link, same codecs for every contender; published settings of the baselines",
    stress=(
        StressAxis("transfer", "bytes_per_s", (20 * MBIT, 2 * GBIT), "bytes a second of the link"),
        StressAxis("drift", "noise", (0.3, 0.6), "spread of the times"),
        StressAxis("drift", "requests", (5,), "requests between changes"),
    ),
)
