"""Do flags follow architecture, and can the load benchmark be trusted? (arXiv:2603.10031)

The advisor against the study's flags and a table; the client against planted faults and its own limit; the ablation
against drawn measurements; saturation, a thousand streams and page sizes on heliograph's engine.
"""

from __future__ import annotations

from heliograph.checks.serving.amd_instinct_parts import advice, loads, method, pages
from heliograph.trials.check import (
    Bound,
    Check,
    Claim,
    Contender,
    Control,
    Exact,
    Experiment,
    Size,
    StressAxis,
    Superior,
    Workload,
)

__all__ = ["CHECK"]

MINUTE = 60.0
EVERYWHERE = ("smoke", "laptop", "gpu")
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LATENT = {
    **SMOLLM2,
    "model_type": "deepseek_v3",
    "num_hidden_layers": 12,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
CUT_LAYERS = 2
ENGINE = {"server": "smollm2-135m", "vocabulary": 49152, "least_requests": 4}

# all of them ours, and fixed before the first run
EARLIER, FACTOR, HEADROOM, NEAR_BEST, GAIN, AGREE, POWER = 1.25, 2.0, 10.0, 1.03, 1.03, 0.95, 0.8

PLAIN = Workload("four models and twelve more")
FAULTS = {
    preset: Workload(f"{rounds} rounds of every fault", {"server": "echo", "flags": [], "rounds": rounds})
    for preset, rounds in (("smoke", 2), ("laptop", 10), ("gpu", 10))
}
DRAWN = Workload(
    "drawn throughputs, 0.5 % spread",
    {"repeats": 40, "runs": 5, "gain": 0.04, "variance_ratio": 3.0, "variation": 0.005, "drift": 0.001},
)
SWEEP = Workload(
    f"SmolLM2, first {CUT_LAYERS} layers, 64/8 and 256/8 tokens",
    {
        **ENGINE,
        "flags": ["--layers", CUT_LAYERS, "--max-sequences", 64],
        "config": {**SMOLLM2, "num_hidden_layers": CUT_LAYERS},
        "levels": [1, 2, 4, 8, 16],
        "short": [64, 8],
        "long": [256, 8],
        "warm_levels": False,
        "twin_margin": 1.5,
    },
)
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "torch_dtype": "bfloat16",
}
GPU_ENGINE = {
    "server": "random",
    "vocabulary": 128256,
    "least_requests": 4,
    "config": LLAMA_8B,
    "flags": [
        *("--cache-gib", 60, "--max-sequences", 256, "--max-tokens-per-step", 8192),
        *("--max-waiting", 2048, "--max-requests", 2048),
    ],
}
GPU_SWEEP = Workload(
    "8B shape, random weights, 128/32 and 1,024/32 tokens",
    {
        **GPU_ENGINE,
        "levels": [1, 4, 16, 64, 256],
        "short": [128, 32],
        "long": [1024, 32],
        "warm_levels": True,
        "twin_margin": 1.5,
    },
)
GPU_FLOOD = Workload(
    "1,000 streams of 128/16 tokens, 8B shape",
    {**GPU_ENGINE, "streams": 1000, "prompt": 128, "output": 16, "ramp_s": 1.0, "limit_s": 60.0},
)
FLOOD = Workload(
    "1,000 streams of 8/4 tokens",
    {
        **ENGINE,
        "flags": ["--layers", CUT_LAYERS, "--max-sequences", 64, "--max-waiting", 1024, "--max-requests", 1024],
        "streams": 1000,
        "prompt": 8,
        "output": 4,
        "ramp_s": 1.0,
        "limit_s": 60.0,
    },
)
SMALL_FLOOD = Workload(
    "50 streams, echo", {**FLOOD.params, "server": "echo", "flags": [], "streams": 50, "ramp_s": 0.1}
)
SHARED_PAGES = {"block_sizes": [1, 8, 16, 32, 64], "fixed": 16, "rows": 16, "context": 512, "steps": 4}
GROUPED_PAGES = Workload(
    "grouped queries, 16 sequences of 512 tokens",
    {
        **SHARED_PAGES,
        "heads": 9,
        "kv_heads": 3,
        "head_dim": 64,
        "config": {**SMOLLM2, "num_hidden_layers": 30},
        "warmup": 2,
        "repeats": 9,
    },
)
LATENT_PAGES = Workload(
    "one latent for 9 heads, 16 sequences of 512 tokens",
    {**GROUPED_PAGES.params, "kv_heads": 1, "head_dim": 160, "config": LATENT},
)

GPU_PAGES = {**SHARED_PAGES, "rows": 64, "context": 2048, "steps": 8, "warmup": 2, "repeats": 9}
GPU_GROUPED = Workload(
    "grouped queries of an 8B shape, 64 sequences of 2,048 tokens",
    {**GPU_PAGES, "heads": 32, "kv_heads": 8, "head_dim": 128, "config": LLAMA_8B},
)
GPU_LATENT = Workload(
    "one latent of 512 for 16 heads, 64 sequences of 2,048 tokens",  # DeepSeek's on one of eight ranks, without RoPE
    {
        **GPU_PAGES,
        "heads": 16,
        "kv_heads": 1,
        "head_dim": 512,
        "config": {**LATENT, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    },
)

ADVICE = Experiment(
    "advice",
    "flags for the study's four models and for twelve further configurations",
    (Contender("advisor", "system"),),
    advice.measure,
    {preset: Size((PLAIN,), 1, time_limit_s=MINUTE, estimate_s=1) for preset in EVERYWHERE},
)
TOLD = Experiment(
    "planted faults",
    "what the client says of requests that a server breaks in nine ways",
    (Contender("client", "system"),),
    loads.measure_faults,
    {preset: Size((load,), 1, time_limit_s=MINUTE, estimate_s=2) for preset, load in FAULTS.items()},
)
METHOD = Experiment(
    "ablation method",
    "drawn measurements with drift: 40 ablations of five repeats a block",
    (
        Contender("planted", "system", "4 % gain and threefold variance"),
        Contender("same flag twice", "control", "no difference, interleaved"),
        Contender("blocked order", "baseline", "no difference, one value after the other"),
        Contender("nothing", "control", "an effect of exactly 0"),
    ),
    method.measure,
    {
        "smoke": Size((DRAWN.with_params(repeats=4),), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((DRAWN,), 8, time_limit_s=MINUTE, estimate_s=1),
        "gpu": Size((DRAWN,), 8, time_limit_s=MINUTE, estimate_s=1),
    },
)
SATURATION = Experiment(
    "saturation",
    "closed loop at rising concurrency, two lengths, and the client alone",
    (Contender("server", "system"),),
    loads.measure_saturation,
    {
        "laptop": Size((SWEEP,), 5, time_limit_s=2 * MINUTE, estimate_s=22),
        "gpu": Size((GPU_SWEEP,), 5, time_limit_s=3 * MINUTE, memory_limit_bytes=2**35, estimate_s=35),
    },
    alone=True,
)
ROBUSTNESS = Experiment(
    "robustness",
    "many streams at once, opened within a second",
    (Contender("server", "system"),),
    loads.measure_robustness,
    {
        "smoke": Size((SMALL_FLOOD,), 1, time_limit_s=MINUTE, estimate_s=2),
        "laptop": Size((FLOOD,), 1, time_limit_s=1.5 * MINUTE, estimate_s=25),
        "gpu": Size((GPU_FLOOD,), 1, time_limit_s=2 * MINUTE, memory_limit_bytes=2**35, estimate_s=25),
    },
    alone=True,
)
SMALL_PAGES = GROUPED_PAGES.with_params(rows=2, context=64, warmup=1, repeats=2)
PAGE_SWEEP = Experiment(
    "page sweep",
    "decoding attention over pages of 1 to 64 tokens, interleaved: the recommended size against the best",
    (Contender("advisor", "system"),),
    pages.measure_sweep,
    {
        "smoke": Size((SMALL_PAGES,), 1, time_limit_s=MINUTE, estimate_s=2),
        "laptop": Size((GROUPED_PAGES, LATENT_PAGES), 5, time_limit_s=MINUTE, estimate_s=1.5),
        "gpu": Size((GPU_GROUPED, GPU_LATENT), 5, time_limit_s=MINUTE, memory_limit_bytes=2**35, estimate_s=4),
    },
    alone=True,
)
PAGE_TIME = Experiment(
    "page time",
    "decoding attention at the recommended and at a fixed page size, interleaved",
    (
        Contender("recommended", "system"),
        Contender("fixed", "baseline", "16 tokens for every model"),
        Contender("recommended, again", "control"),
    ),
    pages.measure_times,
    {
        "smoke": Size((SMALL_PAGES,), 1, repeats=2, time_limit_s=MINUTE, estimate_s=2),
        "laptop": Size((GROUPED_PAGES, LATENT_PAGES), 5, repeats=15, warmup=2, time_limit_s=MINUTE, estimate_s=1.5),
        "gpu": Size(
            (GPU_GROUPED, GPU_LATENT),
            5,
            repeats=15,
            warmup=2,
            time_limit_s=MINUTE,
            memory_limit_bytes=2**35,
            estimate_s=4,
        ),
    },
    kind="interleaved",
)

TOY = "eight MI325X, models of 405B to 1T parameters, and the vendor's kernels"
DRAWS = "whether real noise is as normal and as independent as drawn noise"

CHECK = Check(
    slug="amd_instinct",
    experiments=(ADVICE, TOLD, METHOD, SATURATION, ROBUSTNESS, PAGE_SWEEP, PAGE_TIME),
    claims=(
        Claim(
            "study_flags",
            "advice",
            "study",
            "advisor",
            Exact(),
            measured="page size, offloading, vendor kernels and tensor parallelism where the sources state them",
            cannot_show="whether these flags are the fastest: nothing runs on that hardware",
            presets=EVERYWHERE,
        ),
        Claim(
            "table_flags",
            "advice",
            "table",
            "advisor",
            Exact(),
            measured="decisions for twelve configurations, written by hand from the rules' wording",
            cannot_show="whether these flags are the fastest on those devices",
            presets=EVERYWHERE,
        ),
        Claim(
            "failures_told_apart",
            "planted faults",
            "told",
            "client",
            Exact(),
            measured="kinds of failure of requests that were broken in nine ways, between healthy ones",
            cannot_show="faults of networks between machines",
            presets=EVERYWHERE,
        ),
        Claim(
            "reliability",
            "robustness",
            "succeeded",
            "server",
            Exact(),
            measured="streams that succeeded, with a queue that is long enough for all",
            cannot_show=f"a thousand users of long requests for hours; {TOY}",
        ),
        Claim(
            "nothing_dropped",
            "robustness",
            "handled",
            "server",
            Exact(),
            measured="streams that succeeded, or were refused with the time to come back",
            cannot_show="networks between machines, which drop connections by themselves",
        ),
        Claim(
            "saturation",
            "saturation",
            "short_over_long",
            "server",
            Bound(EARLIER),
            effect="ratio",
            better="higher",
            unit="x",
            measured="measured saturation of 64-token prompts over that of 256-token ones (128 and 1,024 on a GPU)",
            cannot_show=f"500 and 100-200 requests, and bandwidth as the cause: a processor computes; {TOY}",
        ),
        Claim(
            "saturation_predicted",
            "saturation",
            "factor",
            "server",
            Bound(FACTOR),
            effect="ratio",
            better="lower",
            unit="x",
            measured="the larger of measured over predicted saturation and its inverse, worse of two lengths",
            cannot_show=f"points above 32 (512 on a GPU), which count as that; {TOY}",
        ),
        Claim(
            "client_headroom",
            "saturation",
            "headroom",
            "server",
            Bound(HEADROOM),
            effect="ratio",
            better="higher",
            unit="x",
            measured="the client's rate against a server that answers at once, over the engine's peak",
            cannot_show="headroom over servers that are faster than this one",
        ),
        Claim(
            "aa_quiet",
            "ablation method",
            "no_difference",
            "same flag twice",
            Bound(AGREE),
            better="higher",
            measured="ablations of one flag against itself that report no difference",
            cannot_show=DRAWS,
            provenance="simulated",
        ),
        Claim(
            "planted_gain_found",
            "ablation method",
            "found",
            "planted",
            Bound(POWER),
            better="higher",
            measured="ablations that find a gain of 4 % with threefold variance in five repeats",
            cannot_show="the same at a spread of several percent, where five repeats do not suffice",
            provenance="simulated",
        ),
        Claim(
            "recommended_page",
            "page sweep",
            "share_of_best",
            "advisor",
            Bound(1 / NEAR_BEST),
            effect="ratio",
            better="higher",
            unit="x",
            measured="time at the best page size over that at the recommended one",
            cannot_show=f"page sizes of GPU kernels; {TOY}",
        ),
        Claim(
            "page_gain",
            "page time",
            "seconds",
            "recommended",
            Superior(GAIN),
            baseline="fixed",
            effect="ratio",
            better="lower",
            measured="time of decoding attention at pages of 16 tokens over that at the recommended size",
            cannot_show=f"a difference that other kernels make; {TOY}",
        ),
    ),
    controls=(
        Control(
            "other facts",
            "other attention, heads, vendor or version must change the plan, and fixed flags must not match the study",
            "advice",
            "notices",
            "advisor",
        ),
        Control(
            "healthy requests",
            "between broken requests healthy ones must count as such, token by token",
            "planted faults",
            "counted",
            "client",
            guards=("failures_told_apart", "reliability", "nothing_dropped"),
        ),
        Control(
            "same length twice",
            "the same length measured twice must saturate at the same concurrency, within a factor of 1.5",
            "saturation",
            "same",
            "server",
        ),
        Control(
            "same flag twice",
            "one flag against itself must show no effect on average",
            "ablation method",
            "mean_effect",
            "same flag twice",
            "nothing",
            margin=0.005,
        ),
        Control(
            "same page twice",
            "the recommended page against itself",
            "page time",
            "seconds",
            "recommended",
            "recommended, again",
            effect="ratio",
            margin=1.03,
            guards=("page_gain", "recommended_page"),
        ),
    ),
    preload=("numpy", "scipy.special", "httpx", "torch", "numba"),
    sources=("heliograph.serving", "heliograph.workload", "heliograph.lm.core", "heliograph.checks.serving"),
    tuning="one server, one thread, the same client and one wave of requests a level for every contender",
    stress=(
        StressAxis("ablation method", "variation", (0.01, 0.02, 0.05), "spread of the measurements"),
        StressAxis("ablation method", "drift", (0.01,), "drift a measurement"),
        StressAxis("page time", "context", (2048,), "tokens of a sequence"),
    ),
)
