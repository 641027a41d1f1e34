"""Do unlike agents exchange work without a hub, find each other, and leave evidence? (arXiv:2507.04376)

Messages between six kinds of agents; wishes in words against the tools they need; peers of whom one is killed,
without a hub and through one; changed ledgers and their cost; trips whose providers fail; runs that are killed.
The paper reports no experiment, so every threshold is ours, fixed before the first run.

The claim on new plans is decided on the paper's own example, trips over AgentDojo's travel suite, where that package is
installed. It was decided on goals of synthetic capabilities before; these still run, and decide it elsewhere. The
threshold is the same.
"""

from __future__ import annotations

from importlib.util import find_spec

from heliograph.checks.agents.mod_x_parts import discovery, failures, interop, ledger, members, travel, workflow
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

TWIN_MS = 0.5
UNDERSTOOD, AVAILABLE, ADDED_MS, ADDED_BYTES, MORE_GOALS, RECALL, CHANCE, SAME = (
    0.99,
    0.95,
    1.0,
    300.0,
    0.2,
    0.05,
    0.08,
    0.02,
)

PEERS = Contender("peers", "system", "each its own index, bus and membership")


def _sizes(smoke: Workload, laptop: Workload, gpu: Workload, seconds: float, blocks: int = 5) -> dict[str, Size]:
    return {
        "smoke": Size((smoke,), 1, time_limit_s=MINUTE, estimate_s=max(1, seconds / 3)),
        "laptop": Size((laptop,), blocks, time_limit_s=2 * MINUTE, estimate_s=seconds),
        "gpu": Size((gpu,), 8, time_limit_s=8 * MINUTE, estimate_s=4 * seconds),
    }


TALK = Workload("messages between six kinds of agents in five forms", {"messages": 1000})
WISHES = Workload("97 queries of AgentDojo over the tools of its four suites", {"source": "agentdojo"})
OUR_WISHES = Workload("ten queries over fifteen tools", {"source": "ours", "letters": True})
KILLS = Workload("8 peers, the first or another killed, 2 calls/s each", {"peers": 8, "kill": True})
QUIET = Workload("8 peers, nobody killed", {"peers": 8, "kill": False})
CHAINS = Workload("60 entries in blocks of ten, changed", {"entries": 60, "trials": 120})
ENTRIES = Workload("300 entries, anchored by the hundred", {"entries": 300})
GOALS = Workload("travel goals, one provider of all fails", {"goals": 40, "failures": 1})
NO_FAILURES = GOALS.with_params(failures=0)
TRIPS = Workload("trips over AgentDojo's travel suite, one peer of twelve fails", {"goals": 40, "failures": 1})
ALL_WELL = TRIPS.with_params(failures=0)
TWO_FAIL = TRIPS.with_params(failures=2)
RUNS = Workload("runs killed once or twice", {"runs": 40})
SWARMS = Workload("swarms with a death, a return and a partition", {"swarms": 3, "members": 12})

INTEROP = Experiment(
    "interop", "calls translated in form and record, and back", (PEERS,), interop.measure,
    _sizes(TALK.with_params(messages=100), TALK, TALK.with_params(messages=5000), 3),
)  # fmt: skip
SEARCH = (
    Contender("hybrid", "system", "vectors and BM25, the weight chosen on other folds"),
    Contender("embedding", "ablation", "vectors alone"),
    Contender("bm25", "baseline"),
    Contender("keyword", "baseline", "words of the query in the name"),
)
DISCOVERY = Experiment(
    "discovery", "needed tools among the first ten", SEARCH, discovery.measure,
    _sizes(OUR_WISHES, WISHES, WISHES, 5),
)  # fmt: skip
SHUFFLED = Experiment(
    "discovery, labels shuffled", "the same search where the tools that a query needs were exchanged",
    (Contender("hybrid", "control"), Contender("random", "control")), discovery.measure,
    {
        "laptop": Size((WISHES.with_params(shuffled=True, shuffles=20),), 5, time_limit_s=MINUTE, estimate_s=5),
        "gpu": Size((WISHES.with_params(shuffled=True, shuffles=20),), 8, time_limit_s=MINUTE, estimate_s=5),
    },
)  # fmt: skip
ARMS = (
    Contender("mesh", "system", "calls go from peer to peer"),
    Contender("hub", "baseline", "calls go through a hub that is not restarted"),
)
FAILURES = Experiment(
    "failures", "share of calls answered in the ten seconds after a kill, the worst of two victims", ARMS,
    failures.measure,
    _sizes(KILLS.with_params(peers=5), KILLS, KILLS.with_params(peers=24), 6),
)  # fmt: skip
CALM = Experiment(
    "no failures", "the same load where nobody is killed",
    (Contender("mesh", "control"), Contender("hub", "control")), failures.measure,
    {
        "laptop": Size((QUIET,), 5, time_limit_s=MINUTE, estimate_s=3),
        "gpu": Size((QUIET,), 8, time_limit_s=MINUTE, estimate_s=3),
    },
)  # fmt: skip
TAMPER = Experiment(
    "tamper", "bytes changed, entries removed, repeated, exchanged; proofs changed", (PEERS,), ledger.tamper,
    _sizes(CHAINS.with_params(entries=30, trials=40), CHAINS, CHAINS.with_params(trials=5000), 3),
)  # fmt: skip
COST = Experiment(
    "ledger cost", "one entry after the other, four notaries in the same process",
    (
        Contender("routine", "system", "a leaf of an anchor of a hundred"),
        Contender("routine again", "control"),
        Contender("all on the ledger", "baseline", "each entry in a block of its own"),
    ),
    ledger.cost,
    _sizes(ENTRIES.with_params(entries=100), ENTRIES, ENTRIES.with_params(entries=5000), 4),
    alone=True,
)  # fmt: skip
PLANNERS = (
    Contender("replan", "system"),
    Contender("one spare", "baseline", "one new plan a goal"),
    Contender("fixed", "baseline", "the first plan only"),
)
WORKFLOW = Experiment(
    "workflow", "goals reached over synthetic capabilities", PLANNERS, workflow.measure,
    _sizes(GOALS.with_params(goals=10), GOALS, GOALS.with_params(goals=400), 1),
)  # fmt: skip
WELL = Experiment(
    "workflow without failures", "the same goals where all providers answer",
    (Contender("replan", "control"), Contender("fixed", "control")), workflow.measure,
    {
        "laptop": Size((NO_FAILURES,), 5, time_limit_s=MINUTE, estimate_s=1),
        "gpu": Size((NO_FAILURES,), 8, time_limit_s=MINUTE, estimate_s=1),
    },
)  # fmt: skip


def _trips(trips: Workload) -> dict[str, Size]:
    return {
        "laptop": Size((trips,), 5, time_limit_s=2 * MINUTE, estimate_s=5),
        "gpu": Size((trips.with_params(goals=100),), 8, time_limit_s=8 * MINUTE, estimate_s=12),
    }


TRAVEL = Experiment(
    "travel", "trips reached that keep all wishes, each of six specialists offered by two peers", PLANNERS,
    travel.measure, _trips(TRIPS),
)  # fmt: skip
TRAVEL_TWO = Experiment(
    "travel, two peers fail", "the same where two of the twelve fail; decides nothing", PLANNERS[::2],
    travel.measure, _trips(TWO_FAIL),
)  # fmt: skip
TRAVEL_WELL = Experiment(
    "travel without failures", "the same where all peers work",
    (Contender("replan", "control"), Contender("fixed", "control")), travel.measure, _trips(ALL_WELL),
)  # fmt: skip
HAS_TRIPS = find_spec("agentdojo") is not None
RESUME = Experiment(
    "resume", "runs continued from their journal", (PEERS,), workflow.resume,
    _sizes(RUNS.with_params(runs=10), RUNS, RUNS.with_params(runs=400), 1),
)  # fmt: skip
MEMBERS = Experiment(
    "membership", "who is thought alive, on virtual time", (PEERS,), members.measure,
    _sizes(SWARMS.with_params(swarms=1), SWARMS, SWARMS.with_params(swarms=20, members=40), 2),
)  # fmt: skip

INVENTED = "agents and formats that others made; these were made for the check"
ONE_PROCESS = "real networks, hosts that are slow instead of dead, and more than some dozen peers"

CHECK = Check(
    slug="mod_x",
    experiments=(
        INTEROP,
        DISCOVERY,
        SHUFFLED,
        FAILURES,
        CALM,
        TAMPER,
        COST,
        WORKFLOW,
        WELL,
        *((TRAVEL, TRAVEL_TWO, TRAVEL_WELL) if HAS_TRIPS else ()),
        RESUME,
        MEMBERS,
    ),
    claims=(
        Claim(
            "translation_returns",
            "interop",
            "returns",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="messages that come back as they were after a translation there and back, or whose loss is named",
            cannot_show=INVENTED,
        ),
        Claim(
            "losses_named",
            "interop",
            "loss_named",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="fields that the receiver has no place for, named in the report",
            cannot_show=INVENTED,
        ),
        Claim(
            "tamper_evidence",
            "tamper",
            "all_found",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="changed chains and proofs that are refused",
            cannot_show="ends cut off before they were anchored, and a quorum of notaries that lies together",
        ),
        Claim(
            "genuine_accepted",
            "tamper",
            "untouched_pass",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="unchanged chains and proofs that pass",
            cannot_show="other implementations of the format",
        ),
        Claim(
            "resume_once",
            "resume",
            "once",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="steps of killed and continued runs that were done once",
            cannot_show="providers that die between an effect and its record",
            provenance="simulated",
        ),
        Claim(
            "membership_agrees",
            "membership",
            "agreed",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="swarms that agree on the living after a death, a return and a partition",
            cannot_show=ONE_PROCESS,
            provenance="simulated",
        ),
        Claim(
            "membership_repeats",
            "membership",
            "alike",
            "peers",
            Exact(),
            presets=EVERYWHERE,
            measured="runs of one seed with the same messages at the same times",
            cannot_show="real time",
            provenance="simulated",
        ),
        Claim(
            "heterogeneous_integration",
            "interop",
            "understood",
            "peers",
            Bound(UNDERSTOOD),
            better="higher",
            measured="share of calls whose every field the receiver reads as it was meant",
            cannot_show=INVENTED,
        ),
        Claim(
            "semantic_discovery",
            "discovery",
            "recall",
            "hybrid",
            Superior(RECALL),
            baseline="bm25",
            measured="share of needed tools among the first ten, a bootstrap sample of the queries a block",
            cannot_show="catalogues of thousands of tools, and queries in other languages",
        ),
        Claim(
            "beyond_keywords",
            "discovery",
            "recall",
            "hybrid",
            Superior(RECALL),
            baseline="keyword",
            measured="the same, against the words of the tool's name",
            cannot_show="catalogues of thousands of tools, and queries in other languages",
        ),
        Claim(
            "no_single_point_of_failure",
            "failures",
            "available",
            "mesh",
            Bound(AVAILABLE),
            better="higher",
            measured="share of calls answered within 2 s in the ten seconds after a kill, worse of two victims",
            cannot_show=ONE_PROCESS,
            provenance="simulated",
        ),
        Claim(
            "ledger_cost",
            "ledger cost",
            "median_ms",
            "routine",
            Bound(ADDED_MS),
            better="lower",
            unit=" ms",
            measured="median of an append; the appends that anchor are not in a median, see mean_ms",
            cannot_show="notaries on other machines",
        ),
        Claim(
            "ledger_bytes",
            "ledger cost",
            "block_bytes",
            "routine",
            Bound(ADDED_BYTES),
            better="lower",
            unit=" B",
            measured="bytes of blocks an entry",
            cannot_show="the bytes of the peer's own chain",
        ),
        Claim(
            "dynamic_replanning",
            "travel" if HAS_TRIPS else "workflow",
            "reached",
            "replan",
            Superior(MORE_GOALS),
            baseline="fixed",
            measured="share of trips reached, all wishes kept, when one of all providers fails"
            if HAS_TRIPS
            else "share of synthetic goals reached when one of all providers fails; trips need agentdojo",
            cannot_show="the mix of failures of real providers, which decides the size of the effect",
            provenance="simulated",
        ),
    ),
    controls=(
        Control(
            "nothing translated",
            "without translation nothing is understood",
            "interop",
            "notices",
            "peers",
            guards=("heterogeneous_integration", "translation_returns", "losses_named"),
        ),
        Control(
            "plain log",
            "a log without hashes and signatures accepts changed entries",
            "tamper",
            "plain_misses",
            "peers",
            guards=("tamper_evidence", "genuine_accepted"),
        ),
        Control(
            "routine twice",
            f"the same appends again take the same within {TWIN_MS:g} ms",
            "ledger cost",
            "median_ms",
            "routine again",
            "routine",
            margin=TWIN_MS,
            guards=("ledger_cost", "ledger_bytes"),
        ),
        Control(
            "labels shuffled",
            "with exchanged labels the recall is that of a random order",
            "discovery, labels shuffled",
            "recall",
            "hybrid",
            "random",
            margin=CHANCE,
            guards=("semantic_discovery", "beyond_keywords"),
        ),
        Control(
            "nobody killed",
            "without a kill the hub answers as well",
            "no failures",
            "available",
            "mesh",
            "hub",
            margin=SAME,
            guards=("no_single_point_of_failure",),
        ),
        Control(
            "all providers answer",
            "without failures the fixed plan is as good",
            "workflow without failures",
            "reached",
            "replan",
            "fixed",
            margin=SAME,
            guards=("dynamic_replanning",),
        ),
        *(
            (
                Control(
                    "all peers work",
                    "without failures the fixed plan reaches the same trips",
                    "travel without failures",
                    "reached",
                    "replan",
                    "fixed",
                    margin=SAME,
                    guards=("dynamic_replanning",),
                ),
                Control(
                    "spoiled trips",
                    "a trip with another city, another day or too small a budget is noticed",
                    "travel",
                    "notices",
                    "replan",
                    guards=("dynamic_replanning",),
                ),
                Control(
                    "trips kept and proven",
                    "each trip that is reached keeps all wishes, and its proofs hold offline",
                    "travel",
                    "sound",
                    "replan",
                    guards=("dynamic_replanning",),
                ),
            )
            if HAS_TRIPS
            else ()
        ),
        Control(
            "no journal",
            "without journal and keys a run done again does its steps again",
            "resume",
            "notices",
            "peers",
            guards=("resume_once",),
        ),
        Control(
            "another seed",
            "another seed gives other messages",
            "membership",
            "notices",
            "peers",
            guards=("membership_agrees", "membership_repeats"),
        ),
    ),
    preload=(
        "mcp",
        "cryptography.hazmat.primitives.asymmetric.ed25519",
        # What is not installed is left to the trial that needs it.
        "wordllama",
        "agentdojo.task_suite.load_suites",
    ),
    sources=("heliograph.agents", "heliograph.clock", "heliograph.sim"),
    tuning="the hybrid's one weight is chosen of five on the other folds; nothing else is tuned",
    stress=(
        StressAxis("travel" if HAS_TRIPS else "workflow", "failures", (2, 4), "providers that fail"),
        StressAxis("failures", "peers", (6, 20), "peers"),
    ),
)
