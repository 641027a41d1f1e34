"""Does screening of claims with rollback stop a falsehood, and do the equations fit its spread? (arXiv:2603.04474)

Rules against references; cascades drawn from the exact process under fits and early-warning indicators; scripted agents
that work on an order while one believes something false, under governors, baselines and ablations with one judge.
"""

from __future__ import annotations

from heliograph.checks.agents.error_cascade_parts import exact, governance, spread
from heliograph.checks.agents.error_cascade_parts.society import ARMS
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

# All are ours, fixed before the first run.
MSE, IMPACT, DEFENCE, SAFE, ABLATED = 2e-3, 3.0, 0.3, 0.05, 0.3
FRAMEWORKS_FULL, INERTIA, BETA_ERROR, WARNING, BETA_DROP, SAME = 5.0, 1.0, 0.02, 0.05, 0.1, 0.05

GOVERNOR = Contender("governor", "system")
RULES = {p: Workload(f"{n} random graphs", {"cases": n}) for p, n in (("smoke", 20), ("laptop", 200), ("gpu", 1000))}
CASCADES = Workload("four topologies, six rates, 5 agents, 5 rounds", {"cascades": 200})
GRAPHS = Workload("random directed graphs, half without cycles", {"graphs": 400, "cascades": 200})
TRACES = Workload("six frameworks at the paper's fitted rates", {"cascades": 2000})
ORDERS = Workload(
    "orders of four agents, three topologies, three wordings",
    {
        "frameworks": ["LangChain", "LangGraph", "AutoGen"],
        "packaging": ["raw", "compliance", "security"],
        "judge": "v3-small",
        "false_green": -1.0,
        "anchored": 0.9,
        "runs": 12,
        "sweep": 12,
    },
)
LATE_ORDERS = Workload(
    "orders of four agents, three topologies",
    {"frameworks": ["LangChain", "LangGraph", "AutoGen"], "packaging": "compliance", "late": 2, "runs": 10},
)
ROLES = {
    "none": ("baseline", "nothing on the path"),
    "reflection": ("baseline", "the sender compares its message with its own notes"),
    "message guard": ("baseline", "judges whole messages, and replaces refuted ones by a placeholder"),
    "control flow": ("baseline", "checks who talks to whom only"),
    "speed": ("system", "no look-ups"),
    "balanced": ("system", "look-ups for hubs"),
    "strict": ("system", "look-ups for all"),
}
ARMS_OF = tuple(
    Contender(arm, *ROLES[arm]) if arm in ROLES else Contender(arm, "ablation", f"strict {arm}")  # type: ignore[arg-type]
    for arm in ARMS
)

EXACT = Experiment(
    "rules",
    "processes, rollbacks, interleavings and replays against references",
    (GOVERNOR,),
    exact.measure,
    {p: Size((load,), 1, time_limit_s=2 * MINUTE, estimate_s=4) for p, load in RULES.items()},
)
FITS = Experiment(
    "fits",
    "rates of drawn cascades, fitted by three equations and three starts",
    (Contender("product", "system", "the other equations and starts are in the same trial"),),
    spread.measure_fits,
    {
        "smoke": Size((CASCADES.with_params(cascades=20),), 1, time_limit_s=MINUTE, estimate_s=2),
        "laptop": Size((CASCADES,), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((CASCADES.with_params(cascades=1000),), 8, time_limit_s=2 * MINUTE, estimate_s=5),
    },
)
WARNINGS = Experiment(
    "early warning",
    "which indicator foretells a majority after 20 rounds",
    (Contender("finite-horizon gain", "system"), Contender("spectral margin", "baseline", "the paper's")),
    spread.measure_warning,
    {
        "laptop": Size((GRAPHS,), 5, time_limit_s=MINUTE, estimate_s=4),
        "gpu": Size((GRAPHS.with_params(graphs=4000),), 8, time_limit_s=4 * MINUTE, estimate_s=40),
    },
)
FRAMEWORKS = Experiment(
    "frameworks",
    "final coverage, hub against leaf, polluted rounds",
    (Contender("product", "system"),),
    spread.measure_frameworks,
    {p: Size((TRACES,), blocks, time_limit_s=MINUTE, estimate_s=1) for p, blocks in (("laptop", 5), ("gpu", 8))},
)
ALIKE = Experiment(
    "agents that are alike",
    "the same seed at two places of a mesh",
    (Contender("first agent", "control"), Contender("last agent", "control")),
    spread.measure_mesh,
    {
        p: Size((TRACES.with_params(cascades=20_000),), blocks, time_limit_s=MINUTE, estimate_s=1)
        for p, blocks in (("laptop", 5), ("gpu", 8))
    },
)
SOCIETY = Experiment(
    "governance",
    "scripted agents, every arm on the same worlds with the same judge and trusted statements",
    ARMS_OF,
    governance.measure,
    {
        "smoke": Size(
            (ORDERS.with_params(frameworks=["LangGraph"], packaging=["compliance"], runs=3, sweep=0),),
            1,
            time_limit_s=MINUTE,
            estimate_s=0.3,
        ),
        "laptop": Size((ORDERS,), 5, time_limit_s=2 * MINUTE, estimate_s=4),
        "gpu": Size((ORDERS.with_params(runs=60, sweep=60),), 8, time_limit_s=4 * MINUTE, estimate_s=20),
    },
)
LATE = Experiment(
    "late truth",
    "an operator confirms the truth after the third round; the judge is exact",
    (Contender("speed", "system"), Contender("speed without rollback", "ablation", "blocks, and takes nothing back")),
    governance.measure_late,
    {
        p: Size((LATE_ORDERS.with_params(runs=runs),), blocks, time_limit_s=MINUTE, estimate_s=1)
        for p, runs, blocks in (("laptop", 10, 5), ("gpu", 60, 8))
    },
)
UNHEARD = Experiment(
    "late truth, nobody persuaded",
    "the same where the wording persuades nobody",
    (Contender("speed", "control"), Contender("speed without rollback", "control")),
    governance.measure_late,
    {
        p: Size((LATE_ORDERS.with_params(runs=runs, packaging="none"),), blocks, time_limit_s=MINUTE, estimate_s=1)
        for p, runs, blocks in (("laptop", 10, 5), ("gpu", 60, 8))
    },
)
CHANCE = Experiment(
    "judge at chance level",
    "claims with a trusted counterpart, judged at random",
    (Contender("false claims", "control"), Contender("true claims", "control")),
    governance.measure_chance,
    {
        p: Size((Workload("2000 claims", {"claims": 2000}),), blocks, time_limit_s=MINUTE, estimate_s=1)
        for p, blocks in (("laptop", 5), ("gpu", 8))
    },
)

SCRIPTED = "how easily real models are persuaded, obey and err: inputs here, as are trusted statements and look-ups"
DRAWN = "whether real agents follow this process at all: the cascades are drawn from it"
GOVERNED = ("defence_rate", "safe_completion", "stage_ablation", "transmission_reduction", "defence_over_guard")

CHECK = Check(
    slug="error_cascade",
    experiments=(EXACT, FITS, WARNINGS, FRAMEWORKS, ALIKE, SOCIETY, LATE, UNHEARD, CHANCE),
    claims=(
        Claim(
            "process_equals_reference",
            "rules",
            "equal",
            "governor",
            Exact(),
            measured="coverage by the exact chain and by drawing against a second implementation",
            cannot_show=DRAWN,
            presets=EVERYWHERE,
            provenance="simulated",
        ),
        Claim(
            "rollback_complete",
            "rules",
            "rolled_back",
            "governor",
            Exact(),
            measured="random lineage graphs in which nothing below a rejected claim stays live",
            cannot_show="derivations that no message names",
            presets=EVERYWHERE,
        ),
        Claim(
            "no_late_delivery",
            "rules",
            "never_late",
            "governor",
            Exact(),
            measured="random interleavings without a delivery of a claim after its rejection",
            cannot_show="buses of several processes, where copies are on their way",
            presets=EVERYWHERE,
        ),
        Claim(
            "replay_identical",
            "rules",
            "replayed",
            "governor",
            Exact(),
            measured="records whose replay gives the same lineage byte for byte",
            cannot_show="judges that answer differently the second time",
            presets=EVERYWHERE,
        ),
        Claim(
            "dynamics_fit",
            "fits",
            "product_mse",
            "product",
            Bound(MSE),
            better="lower",
            measured="median error of the coverage curve by the paper's fit, 24 pairs of topology and rates",
            cannot_show=DRAWN,
            provenance="simulated",
        ),
        Claim(
            "rates_recovered",
            "fits",
            "likelihood_error",
            "product",
            Bound(BETA_ERROR),
            better="lower",
            measured="mean absolute error of the transmission rate by likelihood, 200 cascades each",
            cannot_show=DRAWN,
            provenance="simulated",
        ),
        Claim(
            "early_warning",
            "early warning",
            "auc",
            "finite-horizon gain",
            Superior(WARNING),
            baseline="spectral margin",
            measured="area under the curve for a majority after 20 rounds",
            cannot_show="graphs of real workflows, whose mix decides the size of the effect",
            provenance="simulated",
        ),
        Claim(
            "cascade_amplification",
            "frameworks",
            "amplified",
            "product",
            Bound(FRAMEWORKS_FULL),
            better="higher",
            unit=" of 6",
            measured="frameworks in which a hub's claim reaches 90 % in 10 rounds at the paper's rates",
            cannot_show="rates of other models and tasks",
            provenance="simulated",
        ),
        Claim(
            "topological_sensitivity",
            "frameworks",
            "impact",
            "product",
            Bound(IMPACT),
            better="higher",
            unit="x",
            measured="coverage after 5 rounds from the hub over that from a leaf, the smaller of two stars",
            cannot_show="leaves that keep a claim to themselves: the fitted process lets them talk to the hub",
            provenance="simulated",
            comparable="value",
        ),
        Claim(
            "consensus_inertia",
            "frameworks",
            "inertia",
            "product",
            Bound(INERTIA),
            better="higher",
            unit=" rounds",
            measured="rounds times coverage before an intervention at 6 less those before one at 2, smallest framework",
            cannot_show="what an intervention costs agents that have built on the claim",
            provenance="simulated",
        ),
        Claim(
            "defence_rate",
            "governance",
            "bicr",
            "speed",
            Superior(DEFENCE),
            baseline="reflection",
            measured="share of runs whose result is free of the injected claim",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
        Claim(
            "safe_completion",
            "governance",
            "safe",
            "strict",
            Superior(SAFE),
            baseline="reflection",
            measured="share of runs whose result is free of it, with all facts and the right total",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
        Claim(
            "defence_over_guard",
            "governance",
            "bicr",
            "speed",
            Superior(SAFE),
            baseline="message guard",
            measured="share of runs whose result is free of the injected claim, against judging whole messages",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
        Claim(
            "rollback_corrects",
            "late truth",
            "believed",
            "speed",
            Superior(SAFE),
            baseline="speed without rollback",
            better="lower",
            measured="share of agents that believe the false claim in the end; the truth is confirmed after 3 rounds",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
        Claim(
            "stage_ablation",
            "governance",
            "bicr",
            "strict",
            Superior(ABLATED),
            baseline="without atoms",
            measured="share of runs whose result is free of it, against whole messages as claims",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
        Claim(
            "transmission_reduction",
            "governance",
            "beta",
            "speed",
            Superior(BETA_DROP),
            baseline="none",
            better="lower",
            measured="transmission rate fitted to who believes the claim, star, policy wording",
            cannot_show=SCRIPTED,
            provenance="simulated",
        ),
    ),
    controls=(
        Control(
            "planted mistakes",
            "a rollback left out and a record cut short are noticed",
            "rules",
            "notices",
            "governor",
        ),
        Control(
            "no transmission",
            "at rate zero nobody adopts, and the fit says zero",
            "fits",
            "still",
            "product",
            guards=("dynamics_fit", "rates_recovered", "early_warning"),
        ),
        Control(
            "agents that are alike",
            "on a mesh the place of the seed is no matter",
            "agents that are alike",
            "final",
            "first agent",
            "last agent",
            margin=SAME,
            guards=("topological_sensitivity", "cascade_amplification", "consensus_inertia"),
        ),
        Control(
            "nobody persuaded",
            "where nobody takes the claim over, there is nothing to take back",
            "late truth, nobody persuaded",
            "believed",
            "speed",
            "speed without rollback",
            margin=SAME,
            guards=("rollback_corrects",),
        ),
        Control(
            "judge at chance level",
            "a judge that guesses holds back as much of what is true as of what is false",
            "judge at chance level",
            "withheld",
            "false claims",
            "true claims",
            margin=SAME,
            guards=GOVERNED,
        ),
    ),
    preload=("numpy", "scipy.optimize", "rfc8785", "heliograph.agents.error_cascade.governor"),
    sources=("heliograph.agents",),
    tuning="one try at the stated settings for every arm; all arms get the same judge, look-ups and trusted statements",
    stress=(
        StressAxis("governance", "false_green", (0.0, 0.05, 0.1, 0.15, 0.2, 0.25), "rate of false greens"),
        StressAxis("governance", "anchored", (0.0, 0.5, 1.0), "chance that the truth is among the trusted statements"),
        StressAxis("fits", "cascades", (10, 20, 1000), "cascades to fit"),
    ),
)
