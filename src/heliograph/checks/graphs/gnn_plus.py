"""Does GNN+ do what its paper says? (arXiv:2502.09263)

Layers exact; GCN+ against GCN at equal epochs and at equal seconds, and against GPS; time of an epoch. On a GPU also
the other two layers, the ablation and peptides.
"""

from __future__ import annotations

from heliograph.checks.graphs.gnn_plus_parts import exact, learning
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
PLUS = Contender("gcn+", "system", "GCN with all six techniques")
PLAIN = Contender("gcn", "baseline", "all six techniques off, widened to the same parameters")
GPS = Contender(
    "gps", "baseline", "PyG's GPSConv: GINE and attention, same encoding and edge features, same parameters"
)

# 0.75 and 0.85 of the plain error, half the transformer's time: fixed before the first run
GCN_GAIN, GIN_GAIN, SPEED = 1 / 0.75, 1 / 0.85, 2.0

SHARED = {"walk_steps": 16, "walk_dim": 16, "dropout": 0.0, "wrong_labels": 0.0, "rate": 2e-3, "seconds": 0.0}
TINY = Workload(
    "minesweeper, tiny",
    {**SHARED, "task": "minesweeper", "train": 8, "test": 4, "batch": 4, "layers": 2, "hidden": 52, "epochs": 2},
)
ZINC = Workload(
    "600 ZINC molecules",
    {
        **SHARED,
        "task": "molecules.zinc",
        "train": 600,
        "test": 300,
        "batch": 32,
        "layers": 4,
        "hidden": 50,
        "epochs": 11,
    },
)
LARGE = Workload(
    "3,000 ZINC molecules",
    {
        **SHARED,
        "task": "molecules.zinc",
        "train": 3000,
        "test": 500,
        "batch": 128,
        "layers": 8,
        "hidden": 64,
        "epochs": 10,
    },
)
AMINO = Workload(
    "1,500 AMP and UniProt peptides",
    {
        **SHARED,
        "task": "peptides",
        "train": 1000,
        "test": 500,
        "batch": 32,
        "layers": 4,
        "hidden": 64,
        "epochs": 6,
        "dropout": 0.1,
        "rate": 1e-3,
    },
)
SMOKE = Size((TINY,), 1, time_limit_s=MINUTE, estimate_s=1)


def _on_gpu(workload: Workload, estimate_s: float) -> Size:
    return Size((workload,), 8, time_limit_s=4 * MINUTE, memory_limit_bytes=16 * 2**30, estimate_s=estimate_s)


EQUALITY = Experiment(
    "equality",
    "layers, encodings and batches against PyG, equations and float64",
    (Contender("gnn_plus", "system"),),
    exact.measure,
    {
        p: Size((Workload("random graphs with every oddity", {"graphs": n}),), 1, time_limit_s=MINUTE, estimate_s=2)
        for p, n in (("smoke", 10), ("laptop", 60), ("gpu", 60))
    },
)
EPOCHS = Experiment(
    "equal epochs",
    "GCN and GCN+ trained for the same epochs: mean absolute error on molecules not seen",
    (PLUS, PLAIN),
    learning.measure_trained,
    {
        "smoke": SMOKE,
        "laptop": Size((ZINC,), 5, time_limit_s=2 * MINUTE, estimate_s=6),
        "gpu": _on_gpu(LARGE, estimate_s=19),
    },
)
SHUFFLED = Experiment(
    "shuffled targets",
    "the same training on targets that changed places among the molecules",
    (Contender("gcn+", "control"), Contender("gcn", "control"), Contender("gps", "control")),
    learning.measure_trained,
    {
        "laptop": Size((ZINC.with_params(wrong_labels=1.0, epochs=3),), 5, time_limit_s=2 * MINUTE, estimate_s=2),
        "gpu": _on_gpu(LARGE.with_params(wrong_labels=1.0, epochs=3), estimate_s=11),
    },
)
SECONDS = Experiment(
    "equal seconds",
    "all trained for the same seconds: mean absolute error on molecules not seen",
    (PLUS, PLAIN, GPS),
    learning.measure_trained,
    {
        "smoke": Size((TINY.with_params(seconds=0.3),), 1, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((ZINC.with_params(seconds=3.0),), 5, time_limit_s=2 * MINUTE, estimate_s=4),
        "gpu": _on_gpu(LARGE.with_params(seconds=3.0), estimate_s=7),
    },
    alone=True,
)
TIME = Experiment(
    "epoch time",
    "one pass over the same batches: forward, backward and update, interleaved",
    (PLUS, GPS, Contender("gcn+, again", "control")),
    learning.measure_steps,
    {
        "smoke": Size((TINY,), 1, repeats=2, time_limit_s=MINUTE, estimate_s=1),
        "laptop": Size((ZINC.with_params(train=160, test=10),), 5, repeats=7, time_limit_s=MINUTE, estimate_s=4),
        "gpu": _on_gpu(LARGE.with_params(train=640, test=10), estimate_s=6),
    },
    kind="interleaved",
)
OTHER_LAYERS = Experiment(
    "other layers",
    "GIN and GatedGCN with and without the six techniques, same epochs",
    tuple(
        Contender(name, "system" if name.endswith("+") else "baseline")
        for name in ("gin+", "gin", "gatedgcn+", "gatedgcn")
    ),
    learning.measure_trained,
    {"gpu": _on_gpu(LARGE, estimate_s=22)},
)
ABLATION = Experiment(
    "ablation",
    "GCN+ without one technique at a time: how many removals raise the error",
    (PLUS,),
    learning.measure_ablation,
    # dropout must be on to be removed
    {"gpu": _on_gpu(LARGE.with_params(epochs=5, dropout=0.05), estimate_s=50)},
)
PEPTIDES = Experiment(
    "peptides",
    "antimicrobial or not, from the heavy-atom graph: average precision",
    (PLUS, GPS),
    learning.measure_trained,
    {"gpu": _on_gpu(AMINO, estimate_s=27)},
)
PEPTIDES_SHUFFLED = Experiment(
    "peptides, shuffled",
    "the same training on labels that changed places",
    (Contender("gcn+", "control"), Contender("gps", "control")),
    learning.measure_trained,
    {"gpu": _on_gpu(AMINO.with_params(wrong_labels=1.0, epochs=2), estimate_s=15)},
)

SMALL = "errors near 0.07, which took 10,000 molecules, 2,000 epochs and searched settings"
LEARNED = ("zinc_gcn", "plain_equal_seconds", "zinc_gin", "zinc_gatedgcn", "ablation")

CHECK = Check(
    slug="gnn_plus",
    experiments=(EQUALITY, EPOCHS, SHUFFLED, SECONDS, TIME, OTHER_LAYERS, ABLATION, PEPTIDES, PEPTIDES_SHUFFLED),
    claims=(
        Claim(
            "layer_equality",
            "equality",
            "equal",
            "gnn_plus",
            Exact(),
            measured="layers equal to PyG's, walks to float64 powers, answers alone to answers in a batch",
            cannot_show="equality in 16-bit arithmetic, where both forms round",
            presets=("smoke", "laptop", "gpu"),
        ),
        Claim(
            "zinc_gcn",
            "equal epochs",
            "mae",
            "gcn+",
            Superior(GCN_GAIN),
            baseline="gcn",
            effect="ratio",
            better="lower",
            measured="mean absolute error on unseen molecules after the same epochs",
            cannot_show=SMALL,
        ),
        Claim(
            "plain_equal_seconds",
            "equal seconds",
            "mae",
            "gcn+",
            Superior(GCN_GAIN),
            baseline="gcn",
            effect="ratio",
            better="lower",
            measured="mean absolute error on unseen molecules after the same seconds",
            cannot_show=SMALL,
        ),
        Claim(
            "transformer_equal_seconds",
            "equal seconds",
            "mae",
            "gcn+",
            NotWorse(1.0),
            baseline="gps",
            effect="ratio",
            better="lower",
            measured="mean absolute error on unseen molecules after the same seconds",
            cannot_show="a ranking on 14 data sets, nor what GPS reaches when it is trained for days",
        ),
        Claim(
            "epoch_speed",
            "epoch time",
            "seconds",
            "gcn+",
            Superior(SPEED),
            baseline="gps",
            effect="ratio",
            better="lower",
            measured="time of one pass over the same batches",
            cannot_show="graphs of hundreds of vertices, where attention over all pairs costs most",
        ),
        Claim(
            "zinc_gin",
            "other layers",
            "mae",
            "gin+",
            Superior(GIN_GAIN),
            baseline="gin",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            measured="mean absolute error on unseen molecules after the same epochs",
            cannot_show=SMALL,
        ),
        Claim(
            "zinc_gatedgcn",
            "other layers",
            "mae",
            "gatedgcn+",
            Superior(GIN_GAIN),
            baseline="gatedgcn",
            effect="ratio",
            better="lower",
            presets=("gpu",),
            measured="mean absolute error on unseen molecules after the same epochs",
            cannot_show=SMALL,
        ),
        Claim(
            "ablation",
            "ablation",
            "parts",
            "gcn+",
            Bound(4.0),
            better="higher",
            presets=("gpu",),
            unit=" parts",
            measured="techniques whose removal raises the error on molecules",
            cannot_show="what each part is worth on other kinds of graphs",
        ),
        Claim(
            "peptides_func",
            "peptides",
            "average_precision",
            "gcn+",
            NotWorse(0.0),
            baseline="gps",
            effect="difference",
            better="higher",
            presets=("gpu",),
            measured="average precision on unseen peptides after the same epochs",
            cannot_show="Peptides-func, which has ten labels and is not packaged",
        ),
    ),
    controls=(
        Control(
            "switches and labels",
            "another edge label and each switch must change the answer",
            "equality",
            "notices",
            "gnn_plus",
        ),
        Control(
            "shuffled targets, plain",
            "with targets shuffled among molecules the techniques are no advantage",
            "shuffled targets",
            "mae",
            "gcn+",
            "gcn",
            effect="ratio",
            margin=1.15,
            guards=LEARNED,
        ),
        Control(
            "shuffled targets, transformer",
            "with targets shuffled among molecules neither is better",
            "shuffled targets",
            "mae",
            "gcn+",
            "gps",
            effect="ratio",
            margin=1.15,
            guards=("transformer_equal_seconds",),
        ),
        Control(
            "time twins",
            "the same network against itself",
            "epoch time",
            "seconds",
            "gcn+",
            "gcn+, again",
            effect="ratio",
            margin=1.15,
        ),
        Control(
            "shuffled peptides",
            "with labels shuffled neither is better",
            "peptides, shuffled",
            "average_precision",
            "gcn+",
            "gps",
            margin=0.1,
            guards=("peptides_func",),
        ),
    ),
    preload=("torch", "torch_geometric.nn", "torch_geometric.typing", "torchmetrics.functional"),
    sources=("heliograph.graphs", "heliograph.checks.graphs", "heliograph.data"),
    tuning="equal parameters within 5 %, AdamW with one peak rate and one schedule for all, one try",
    stress=(
        StressAxis("equal epochs", "train", (250, 2000), "training molecules"),
        StressAxis("equal epochs", "layers", (2, 8), "layers"),
        StressAxis("equal epochs", "wrong_labels", (0.3,), "share of training targets that changed places"),
        StressAxis("equal seconds", "seconds", (1.5, 12.0), "training seconds"),
        StressAxis("epoch time", "batch", (8, 80), "molecules a batch"),
    ),
)
