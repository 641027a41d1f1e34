"""Does FloydNet do what its paper says? (arXiv:2601.19094)

A expressive power against exact refinements, B counting, C algorithms on larger graphs, D tours (GPU), E the kernel.
"""

from __future__ import annotations

from heliograph.checks.graphs.floydnet_parts import expressiveness, kernel, learning, tours
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

FLOYD = Contender("floydnet", "system")
GIN = Contender("gin", "baseline", "GINE layers, same parameters, about the same seconds")
MPNN = Contender(
    "mpnn", "baseline", "CLRS-style max aggregation over all vertices, same parameters, about the same seconds"
)
MINUTE = 60.0

NAMED, ATLAS = (
    Workload("named pairs", {"pairs": "named", "order": 2}),
    Workload("atlas pairs", {"pairs": "atlas", "order": 2}),
)
HARD = Workload("beyond 2-FWL", {"pairs": "beyond", "order": 3})
HARD_LAPTOP = HARD.with_params(leave_out=["T(8)/Chang 2", "T(8)/Chang 3"])

EXPRESSIVENESS = Experiment(
    "expressiveness",
    "untrained networks against exact refinement, pair by pair, in float64",
    (FLOYD, Contender("gin", "control", "untrained message passing: bounded by 1-WL")),
    expressiveness.measure,
    {
        "smoke": Size((NAMED.with_params(largest=16),), 1, time_limit_s=MINUTE, estimate_s=1.5),
        "laptop": Size((NAMED, ATLAS, HARD_LAPTOP), 1, time_limit_s=20 * MINUTE, estimate_s=3),
        "gpu": Size((NAMED, ATLAS, HARD), 1, time_limit_s=20 * MINUTE, estimate_s=4),
    },
)

TWO_CYCLES = {"patterns": ["cycle3", "cycle4"], "label_noise": 0.0, "rate": 1e-3}
SIX = {"patterns": ["cycle3", "cycle4", "cycle5", "cycle6", "chordal4", "chordal5"], "label_noise": 0.0, "rate": 1e-3}
COUNTS = Workload(
    "triangles and 4-cycles",
    {
        **TWO_CYCLES,
        "graphs": 400,
        "vertices": 12,
        "batch": 20,
        "width": 32,
        "depth": 6,
        "steps": 20,
        "gin_steps": 120,
        "shuffled_steps": 16,
    },
)
TINY_COUNTS = COUNTS.with_params(
    graphs=40, vertices=8, batch=10, width=8, depth=2, steps=3, gin_steps=6, shuffled_steps=1
)
LARGE_COUNTS = Workload(
    "six patterns",
    {
        **SIX,
        "graphs": 800,
        "vertices": 20,
        "batch": 64,
        "width": 96,
        "depth": 24,
        "steps": 120,
        "gin_steps": 720,
        "shuffled_steps": 40,
    },
)

COUNTING = Experiment(
    "counting",
    "substructure counts per edge on held-out graphs: mean absolute error / standard deviation",
    (FLOYD, GIN, Contender("floydnet, shuffled", "control"), Contender("gin, shuffled", "control")),
    learning.measure_counting,
    {
        "smoke": Size((TINY_COUNTS,), 1, time_limit_s=MINUTE, estimate_s=0.5),
        "laptop": Size((COUNTS,), 5, time_limit_s=3 * MINUTE, estimate_s=9),
        "gpu": Size((LARGE_COUNTS,), 8, time_limit_s=3 * MINUTE, memory_limit_bytes=16 * 2**30, estimate_s=8),
    },
)

LEARN = {
    "train": [4, 8],
    "test": 16,
    "batch": 16,
    "width": 32,
    "depth": 6,
    "steps": 24,
    "mpnn_steps": 39,
    "rate": 1e-3,
    "wrong_labels": 0.0,
}
FLOYD_WARSHALL, BFS, MST = (Workload(t, {**LEARN, "task": t}) for t in ("floyd_warshall", "bfs", "mst_prim"))
FAR = {**LEARN, "train": [4, 16], "test": 64, "batch": 32, "width": 96, "depth": 16, "steps": 150, "mpnn_steps": 240}
EIGHT_TASKS = (
    "bfs",
    "bellman_ford",
    "dijkstra",
    "floyd_warshall",
    "mst_prim",
    "topological_sort",
    "insertion_sort",
    "lcs_length",
)

ALGORITHMS = Experiment(
    "algorithms",
    "classical algorithms, trained small and tested large, outputs only: the benchmark's score",
    (FLOYD, MPNN),
    learning.measure_algorithm,
    {
        "smoke": Size(
            (BFS.with_params(steps=3, mpnn_steps=3, width=8, depth=2, batch=4),), 1, time_limit_s=MINUTE, estimate_s=0.5
        ),
        "laptop": Size((FLOYD_WARSHALL, BFS, MST), 5, time_limit_s=3 * MINUTE, estimate_s=4.5),
        "gpu": Size(
            tuple(Workload(t, {**FAR, "task": t}) for t in EIGHT_TASKS),
            8,
            time_limit_s=3 * MINUTE,
            memory_limit_bytes=16 * 2**30,
            estimate_s=8,
        ),
    },
)
SHUFFLED_ALGORITHM = Experiment(
    "random pointers",
    "the same training on targets that carry no information",
    (Contender("floydnet", "control"), Contender("mpnn", "control")),
    learning.measure_algorithm,
    {
        "laptop": Size(
            (MST.with_params(wrong_labels=1.0, steps=12, mpnn_steps=12),), 5, time_limit_s=3 * MINUTE, estimate_s=2.5
        ),
        "gpu": Size(
            (
                Workload(
                    "mst_prim",
                    {**FAR, "task": "mst_prim", "wrong_labels": 1.0, "test": 32, "steps": 60, "mpnn_steps": 60},
                ),
            ),
            8,
            time_limit_s=3 * MINUTE,
            memory_limit_bytes=16 * 2**30,
            estimate_s=5,
        ),
    },
)

TOURS = Experiment(
    "tours",
    "random symmetric integer distances, unseen sizes: tours found optimal",
    (
        FLOYD,
        Contender(
            "local search", "baseline", "nearest neighbour, 2-opt and Or-opt with restarts, same seconds an instance"
        ),
        Contender("local search, again", "control", "the same with other starts"),
    ),
    tours.measure,
    {
        "gpu": Size(
            (
                Workload(
                    "15 to 18 cities",
                    {
                        "train": [10, 14],
                        "test": [15, 18],
                        "instances": 32,
                        "width": 128,
                        "depth": 16,
                        "batch": 64,
                        "train_s": 150.0,
                        "samples": 10,
                        "rate": 1e-3,
                    },
                ),
            ),
            1,
            time_limit_s=9 * MINUTE,
            memory_limit_bytes=16 * 2**30,
            estimate_s=110,
        ),
    },
    alone=True,
)

STATE = {"batch": 1, "heads": 4, "channels": 16}
EQUALITY = Experiment(
    "equality",
    "chunked pivotal attention against the equation as it stands",
    (FLOYD,),
    kernel.measure_equality,
    {
        p: Size((Workload("random states", {"sizes": [1, 5, 12]}),), 1, time_limit_s=MINUTE)
        for p in ("smoke", "laptop", "gpu")
    },
)
MEMORY_ARMS = (
    Contender("chunked", "system"),
    Contender("five-index", "baseline", "the broadcast form, weights kept by autograd"),
    Contender("five-index, again", "control"),
)
MEMORY = Experiment(
    "memory",
    "peak memory of one forward and backward pass",
    MEMORY_ARMS,
    kernel.measure_memory,
    {
        "smoke": Size((Workload("N=24", {**STATE, "vertices": 24, "chunk": 4}),), 1, time_limit_s=MINUTE),
        "laptop": Size(
            tuple(Workload(f"N={n}", {**STATE, "vertices": n, "chunk": 8}) for n in (64, 128)),
            5,
            time_limit_s=MINUTE,
            estimate_s=0.6,
        ),
        "gpu": Size(
            tuple(Workload(f"N={n}", {**STATE, "vertices": n, "chunk": 16}) for n in (128, 256)),
            8,
            time_limit_s=MINUTE,
            memory_limit_bytes=16 * 2**30,
            estimate_s=4,
        ),
    },
)
TIME = Experiment(
    "time",
    "seconds of one forward and backward pass, interleaved",
    MEMORY_ARMS,
    kernel.measure_time,
    {
        "smoke": Size((Workload("N=24", {**STATE, "vertices": 24, "chunk": 4}),), 1, repeats=2, time_limit_s=MINUTE),
        "laptop": Size(
            tuple(Workload(f"N={n}", {**STATE, "vertices": n, "chunk": 8}) for n in (32, 96)),
            5,
            repeats=3,
            time_limit_s=MINUTE,
            estimate_s=2,
        ),
        "gpu": Size(
            tuple(Workload(f"N={n}", {**STATE, "vertices": n, "chunk": 64}) for n in (128, 256)),
            8,
            repeats=9,
            time_limit_s=MINUTE,
            memory_limit_bytes=16 * 2**30,
            estimate_s=4,
        ),
    },
    kind="interleaved",
)

CHECK = Check(
    slug="floydnet",
    experiments=(EXPRESSIVENESS, EQUALITY, COUNTING, ALGORITHMS, SHUFFLED_ALGORITHM, TOURS, MEMORY, TIME),
    claims=(
        Claim(
            "expressive_power",
            "expressiveness",
            "agrees",
            "floydnet",
            Exact(),
            measured="pairs on which the untrained level-k network and k-FWL agree",
            cannot_show="the 400 pairs of BREC, unless your copy is given with --workload",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "pivotal_equality",
            "equality",
            "equal",
            "floydnet",
            Exact(),
            measured="outputs and gradients equal to the five-index form",
            cannot_show="equality in 16-bit arithmetic, where both forms round",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "substructure_counting",
            "counting",
            "error",
            "floydnet",
            Superior(5.0),
            baseline="gin",
            effect="ratio",
            better="lower",
            comparable="value",
            measured="error of counts per edge, in standard deviations",
            cannot_show="errors near 0.001, which took 8,000 epochs at depth 64",
        ),
        Claim(
            "algorithmic_reasoning",
            "algorithms",
            "score",
            "floydnet",
            Superior(0.02),
            baseline="mpnn",
            effect="difference",
            better="higher",
            measured="score on graphs of at least twice the trained size, mean of the tasks",
            cannot_show="the average of 96.64 % over all thirty tasks",
        ),
        Claim(
            "tour_optimality",
            "tours",
            "optimal",
            "floydnet",
            Superior(0.05),
            baseline="local search",
            effect="outcomes",
            better="higher",
            presets=("gpu",),
            measured="instances solved to optimality with 10 samples, unseen sizes",
            cannot_show="N = 200, which took 64 GPUs of training, nor the Linkern heuristic, which is not packaged",
        ),
        Claim(
            "pivotal_memory",
            "memory",
            "memory_bytes",
            "chunked",
            Superior(2.0),
            baseline="five-index",
            effect="ratio",
            better="lower",
            measured="peak memory of forward and backward, geometric mean over the sizes",
            cannot_show="a whole training run, where parameters and other layers take memory too",
        ),
        Claim(
            "pivotal_time",
            "time",
            "seconds",
            "chunked",
            NotWorse(1.5),
            baseline="five-index",
            effect="ratio",
            better="lower",
            measured="time of forward and backward, geometric mean over the sizes",
            cannot_show="a fused kernel: both forms are plain torch",
        ),
    ),
    controls=(
        Control(
            "inseparable pairs",
            "level 2 must not separate what 2-FWL cannot (rook and Shrikhande, CFI(K4) and CFI(K3,3), T(8) and Chang)",
            "expressiveness",
            "keeps_equal",
            "floydnet",
        ),
        Control(
            "message passing",
            "an untrained message-passing network must separate no pair that 1-WL confuses",
            "expressiveness",
            "keeps_equal",
            "gin",
        ),
        Control(
            "perturbed input",
            "a state changed in one entry must be seen as different",
            "equality",
            "notices",
            "floydnet",
        ),
        Control(
            "shuffled counts",
            "with counts shuffled among edges nobody has an advantage",
            "counting",
            "error",
            "floydnet, shuffled",
            "gin, shuffled",
            effect="ratio",
            margin=1.15,
            guards=("substructure_counting",),
        ),
        Control(
            "random pointers",
            "with random targets nobody has an advantage",
            "random pointers",
            "score",
            "floydnet",
            "mpnn",
            margin=0.05,
            guards=("algorithmic_reasoning",),
        ),
        Control(
            "same search twice",
            "local search against itself with other starts",
            "tours",
            "optimal",
            "local search",
            "local search, again",
            effect="outcomes",
            margin=0.15,
        ),
        Control(
            "memory twins",
            "the five-index form against itself",
            "memory",
            "memory_bytes",
            "five-index",
            "five-index, again",
            effect="ratio",
            margin=1.1,
        ),
        Control(
            "time twins",
            "the five-index form against itself",
            "time",
            "seconds",
            "five-index",
            "five-index, again",
            effect="ratio",
            margin=1.15,
        ),
    ),
    preload=("torch", "networkx", "torch_geometric.nn", "torch_geometric.typing"),
    sources=(
        "heliograph.graphs.floydnet",
        "heliograph.graphs.core.expressivity",
        "heliograph.graphs.core.fit",
        "heliograph.graphs.core.message_passing",
        "heliograph.checks.graphs.contenders",
        "heliograph.checks.graphs.floydnet_parts",
        "heliograph.data.algorithms",
        "heliograph.data.counting",
        "heliograph.data.wl_pairs",
    ),
    tuning="equal parameters within 5 %, AdamW at one learning rate for all, about equal seconds, one try",
    stress=(
        StressAxis("counting", "vertices", (8, 16), "graphs of at most, vertices"),
        StressAxis("counting", "label_noise", (0.3,), "label noise, standard deviations"),
        StressAxis("algorithms", "test", (12, 24), "test size, vertices"),
        StressAxis("algorithms", "wrong_labels", (0.2,), "share of wrong training targets"),
        StressAxis("memory", "chunk", (1, 64), "rows a chunk"),
        StressAxis("time", "chunk", (1, 64), "rows a chunk"),
    ),
    adopt=expressiveness.adopt,
    accepts="a BREC file (brec_v3.npy) or a graph6 file (.g6) whose lines are pairs, two by two",
)
