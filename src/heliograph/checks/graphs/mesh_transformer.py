"""Does the mesh transformer do what its paper says? (arXiv:2508.18051)

Attention, supports and roll-outs exact; size and time of a step against MeshGraphNet; errors after equal seconds on
solved flows past a cylinder. On a GPU also roll-outs, the larger model, and a mesh of 300,000 vertices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from heliograph.checks.graphs.mesh_transformer_parts import exact, learning, steps
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

MINUTE, GIB = 60.0, 2**30
MT = Contender("mt", "system", "attention along the mesh, no edge features")
MGN = Contender("mgn", "baseline", "MeshGraphNet: states of vertices and edges, published depth and width")
LARGE = Contender("mt large", "system", "15 blocks of 256 channels")
PERSISTENCE = Contender("persistence", "baseline", "the field stays as it is")

# fixed before the first run: how much smaller and faster, what error may cost, and what the larger model must gain
SMALLER, FASTER_CPU, FASTER_GPU = 4.0, 2.5, 3.0
ONE_STEP, ROLLOUT, LARGE_GAIN, LARGE_TIME = 1.10, 1.05, 1 / 0.8, 1.25
MEMORY_GIB = 24.0

PUBLISHED = {"mt": [10, 64], "mt, again": [10, 64], "mt large": [15, 256], "mgn": [15, 128]}
SHARED = {"heads": 4, "noise": 0.02, "warmup": 40}
TINY = Workload(
    "tiny flows",
    {
        **SHARED,
        "sizes": {"mt": [2, 16], "mt large": [3, 16], "mgn": [2, 16]},
        "vertices": 100,
        "frames": 6,
        "train": 2,
        "test": 2,
        "seconds": 0.4,
    },
)
SMALL = Workload(
    "4 flows of 250 vertices and 30 frames",
    {
        **SHARED,
        "sizes": {"mt": [8, 48], "mgn": [8, 64]},
        "vertices": 250,
        "frames": 30,
        "train": 4,
        "test": 2,
        "seconds": 4.0,
    },
)
FLOWS = Workload(
    "8 flows of 700 vertices and 100 frames",
    {**SHARED, "sizes": PUBLISHED, "vertices": 700, "frames": 100, "train": 8, "test": 4, "seconds": 6.0},
)
STEP = {"sizes": PUBLISHED, "heads": 4, "noise": 0.0, "arms": ["mt", "mgn", "mt, again"]}
ON_GPU = {"time_limit_s": 4 * MINUTE, "memory_limit_bytes": 16 * GIB}

EQUALITY = Experiment(
    "equality",
    "attention against PyG, masks and equations; supports against searches; roll-outs bit by bit",
    (MT,),
    exact.measure,
    {
        preset: Size(
            (Workload("random graphs and flows", {"graphs": graphs, "flows": flows}),),
            1,
            time_limit_s=MINUTE,
            estimate_s=estimate,
        )
        for preset, graphs, flows, estimate in (("smoke", 10, 1, 1), ("laptop", 40, 5, 6), ("gpu", 40, 5, 8))
    },
)
FLOW = Experiment(
    "flows",
    "the flows of each block, solved once and kept for the trials after these",
    (Contender("solver", "baseline", "finite elements"),),
    learning.measure_flow,
    {
        "laptop": Size((SMALL.with_params(part=[0, 6]),), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size(
            tuple(
                Workload(f"{FLOWS.name}, {a} to {b - 1}", {**FLOWS.params, "part": [a, b]})
                for a, b in ((0, 6), (6, 12))
            ),
            8,
            time_limit_s=3 * MINUTE,
            estimate_s=25,
        ),
    },
)
SIZES = Experiment(
    "sizes",
    "trainable numbers at the published depths and widths",
    (MT, MGN, Contender("mt, again", "control")),
    steps.measure_size,
    {
        preset: Size((Workload("10 x 64 and 15 x 128", STEP),), blocks, time_limit_s=MINUTE, estimate_s=0.3)
        for preset, blocks in (("smoke", 1), ("laptop", 5), ("gpu", 5))
    },
)
STEPS = Experiment(
    "step time",
    "training steps on one mesh: forward, backward and update, interleaved",
    (MT, MGN, LARGE, Contender("mt, again", "control")),
    steps.measure_steps,
    {
        "smoke": Size(
            (Workload("120 vertices", {**STEP, "vertices": 120, "steps": 1}),),
            1,
            repeats=1,
            warmup=0,
            time_limit_s=MINUTE,
            estimate_s=1,
        ),
        "laptop": Size(
            (Workload("1,700 vertices", {**STEP, "vertices": 1700, "steps": 1}),),
            5,
            repeats=2,
            warmup=1,
            time_limit_s=MINUTE,
            estimate_s=8,
        ),
        "gpu": Size(
            tuple(
                Workload(
                    f"{vertices:,} vertices",
                    {**STEP, "arms": ["mt", "mgn", "mt large", "mt, again"], "vertices": vertices, "steps": 5},
                )
                for vertices in (1700, 27_000)
            ),
            5,
            repeats=5,
            warmup=1,
            estimate_s=6,
            **ON_GPU,  # type: ignore[arg-type]
        ),
    },
    kind="interleaved",
)
TRAINED = Experiment(
    "equal seconds",
    "both trained for the same seconds: errors on flows not seen",
    (MT, MGN, PERSISTENCE),
    learning.measure_trained,
    {
        "smoke": Size((TINY,), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((SMALL,), 5, time_limit_s=MINUTE, estimate_s=6),
    },
    alone=True,
)
ROLLOUTS = Experiment(
    "roll-outs",
    "all trained for the same seconds at their published sizes: errors of roll-outs on flows not seen",
    (MT, LARGE, MGN, PERSISTENCE),
    learning.measure_trained,
    {"gpu": Size((FLOWS,), 8, estimate_s=8, **ON_GPU)},  # type: ignore[arg-type]
    alone=True,
)
PERMUTED = Experiment(
    "other flows' changes",
    "the same training, each frame's change taken from another flow, no noise",
    (Contender("mt", "control"), Contender("mgn", "control")),
    learning.measure_permuted,
    {
        "laptop": Size((SMALL.with_params(noise=0.0, steps=40, pairs=40),), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size(
            (FLOWS.with_params(noise=0.0, steps=200, pairs=200),),
            8,
            estimate_s=15,
            **ON_GPU,  # type: ignore[arg-type]
        ),
    },
)
LARGE_MESH = Experiment(
    "large mesh",
    "one forward and backward pass, 10 blocks of 64 channels, two hops on a random triangulation",
    (MT,),
    steps.measure_large_mesh,
    {
        "gpu": Size(
            (Workload("300,000 vertices", {"vertices": 300_000, "hops": 2}),),
            5,
            estimate_s=12,
            **ON_GPU,  # type: ignore[arg-type]
        )
    },
    alone=True,
)


def adopt(path: Path, preset: str) -> Mapping[str, Workload]:
    """Trajectories of the user's own in place of the solved flows."""
    own = learning.adopt_flows(path, FLOWS if preset == "gpu" else TINY if preset == "smoke" else SMALL)
    trained = "roll-outs" if preset == "gpu" else "equal seconds"
    if preset == "smoke":
        return {trained: own}
    control = PERMUTED.sizes[preset].workloads[0].params
    changed = {name: control[name] for name in ("noise", "steps", "pairs")}
    return {trained: own, PERMUTED.name: own.with_params(**changed)}


SHORT = "a model trained for hours: here all are trained for seconds, on flows of Reynolds numbers up to 150"
PARTS = "heliograph.checks.graphs.mesh_transformer_parts"

CHECK = Check(
    slug="mesh_transformer",
    experiments=(EQUALITY, FLOW, SIZES, STEPS, TRAINED, ROLLOUTS, PERMUTED, LARGE_MESH),
    claims=(
        Claim(
            "attention_equality",
            "equality",
            "attention",
            "mt",
            Exact(),
            measured="every back end and its gradients equal to a dense mask, and to PyG's TransformerConv",
            cannot_show="equality in 16-bit arithmetic, where all forms round",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "support_equality",
            "equality",
            "supports",
            "mt",
            Exact(),
            measured="hops, shells, random and global edges against breadth-first searches",
            cannot_show="that the official code chooses dilated and global edges so; the paper only names them",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "rollout_exactness",
            "equality",
            "rollout",
            "mt",
            Exact(),
            measured="boundary true at every step, the same bits twice and after saving, statistics frozen",
            cannot_show="how good the predicted vertices are",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "small_model_size",
            "sizes",
            "parameters",
            "mt",
            Superior(SMALLER),
            baseline="mgn",
            effect="ratio",
            better="lower",
            comparable="effect",
            measured="trainable numbers, 10 blocks of 64 channels against 15 rounds of 128",
            cannot_show="whether accuracy is equal at these sizes: see the errors",
        ),
        Claim(
            "step_speed_cpu",
            "step time",
            "seconds",
            "mt",
            Superior(FASTER_CPU),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("laptop",),
            measured="time of a training step on a mesh of 1,700 vertices, one processor core",
            cannot_show="a GPU, where small meshes are bound by the number of kernels",
        ),
        Claim(
            "small_model_speed",
            "step time",
            "seconds",
            "mt",
            Superior(FASTER_GPU),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            comparable="effect",
            measured="time of a training step on meshes of 1,700 and 27,000 vertices, mean of the two log-ratios",
            cannot_show="the paper's own meshes and batch sizes, which its abstract does not name",
        ),
        Claim(
            "training_speed",
            "step time",
            "seconds",
            "mt large",
            NotWorse(LARGE_TIME),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            measured="time of a training step of 15 blocks of 256 channels, on 1,700 and 27,000 vertices",
            cannot_show="the paper's largest model, whose size was not found",
        ),
        Claim(
            "one_step_parity",
            "equal seconds",
            "one_step_mse",
            "mt",
            NotWorse(ONE_STEP),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("laptop",),
            measured="mean square error of one step on unseen flows after the same seconds, 8 x 48 against 8 x 64",
            cannot_show=f"roll-outs, which are printed and not decided at this scale; nor {SHORT}",
        ),
        Claim(
            "small_model_accuracy",
            "roll-outs",
            "rollout_rmse",
            "mt",
            NotWorse(ROLLOUT),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            measured="roll-out error on unseen flows after the same seconds, 10 x 64 against 15 x 128",
            cannot_show=SHORT,
        ),
        Claim(
            "rollout_error_meshgraphnet",
            "roll-outs",
            "rollout_rmse",
            "mt large",
            Superior(LARGE_GAIN),
            baseline="mgn",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            measured="roll-out error on unseen flows after the same seconds, 15 x 256 against 15 x 128",
            cannot_show=f"the average over five data sets, three-dimensional flow among them; nor {SHORT}",
        ),
        Claim(
            "mesh_scale",
            "large mesh",
            "peak_gib",
            "mt",
            Bound(MEMORY_GIB),
            better="lower",
            presets=("gpu",),
            unit=" GiB",
            measured="peak memory of a forward and backward pass, 300,000 vertices and over 3 million edges",
            cannot_show="training to an answer on such a mesh, and fields in three dimensions",
        ),
    ),
    controls=(
        Control(
            "reach",
            "a neighbour must be heard and a vertex out of reach must not; predictions must move",
            "equality",
            "notices",
            "mt",
        ),
        Control("size twins", "the same network twice", "sizes", "parameters", "mt", "mt, again", "ratio", margin=1.01),
        Control(
            "time twins",
            "the same network against itself",
            "step time",
            "seconds",
            "mt",
            "mt, again",
            effect="ratio",
            margin=1.15,
        ),
        Control(
            "other flows' changes",
            "with each frame's change taken from another flow neither is better",
            "other flows' changes",
            "one_step_mse",
            "mt",
            "mgn",
            effect="ratio",
            margin=1.15,
            guards=("one_step_parity", "small_model_accuracy", "rollout_error_meshgraphnet"),
        ),
        Control(
            "no edges",
            "without edges no vertex may depend on another one; with them it must",
            "large mesh",
            "hears",
            "mt",
        ),
    ),
    preload=("torch", "torch._dynamo", "scipy.spatial", "networkx"),
    sources=("heliograph.graphs.mesh_transformer", "heliograph.graphs.core", PARTS, "heliograph.data"),
    tuning="published depth, width, optimiser and noise for each, one try; equal seconds on the same flows",
    stress=(
        StressAxis("equal seconds", "seconds", (2.0, 20.0), "training seconds"),
        StressAxis("equal seconds", "noise", (0.0, 0.005), "noise added in training, m/s"),
        StressAxis("equal seconds", "train", (2, 12), "training flows"),
        StressAxis("step time", "vertices", (300, 5000), "vertices"),
    ),
    adopt=adopt,
    accepts="an HDF5 file in MeshGraphNet's layout with a field 'velocity' and four trajectories or more",
)
