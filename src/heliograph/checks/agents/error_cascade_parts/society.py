"""Scripted agents that work on an order together while one of them believes something false.

Each agent owns an item with a price and a count; all need the order's discount, a constraint of the task. In each round
an agent tells its neighbours what it believes. At the end the aggregator sends the total. How easily agents are
persuaded, obey a refusal, or err is an input; what is measured is whether the messages' path stops what is false. The
arms are interceptors that get the same judge and the same trusted statements.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Chain, Interceptor, Rejected
from heliograph.agents.error_cascade.claims import FREE_TEXT, Atom, Claim, Split, StructuredClaims, parse_sentence
from heliograph.agents.error_cascade.dynamics import FRAMEWORKS, topology
from heliograph.agents.error_cascade.governor import Governor
from heliograph.agents.error_cascade.judges import ExactJudge, Judge, NoisyJudge, Relation

__all__ = ["ARMS", "JUDGES", "PACKAGING", "Outcome", "Setting", "chance_judge", "confusion", "make_arm", "play"]

ARMS = (
    "none", "reflection", "message guard", "control flow", "speed", "balanced", "strict",
    "without atoms", "without detection", "without blocking", "without rollback",
)  # fmt: skip
PACKAGING: Mapping[str, float] = {"none": 0.0, "raw": 0.05, "compliance": 1.0, "security": 0.9}
"""By how much a wording changes the persuasion; inputs."""

AGENTS, ROUNDS = 4, 6
CHANCE = dict.fromkeys(("entails", "contradicts", "neutral"), (1 / 3, 1 / 3, 1 / 3))


def confusion(false_green: float, recall: float, right: float) -> Mapping[Relation, tuple[float, float, float]]:
    """Rows of a judge: of what follows ``recall`` is seen, of the rest ``right`` is called rightly."""
    rest = max(0.0, 1 - false_green - right)
    right = 1 - false_green - rest
    return {
        "entails": (recall, 0.0, 1 - recall),
        "contradicts": (false_green, right, rest),
        "neutral": (false_green, rest, right),
    }


JUDGES: Mapping[str, Mapping[Relation, tuple[float, float, float]]] = {
    "exact": confusion(0.0, 1.0, 1.0),
    "v3-small": confusion(0.023, 0.434, 0.771),
    "v3-large": confusion(0.0, 0.827, 0.827),
    "GPT-4o-mini": confusion(0.205, 0.753, 0.795),
}
"""Confusions that give the paper's accuracy, false-green rate and green precision, if 17.5 % of the pairs follow: the
share at which the figures of GPT-4o-mini fit together. The paper prints no confusion table."""


@dataclass(frozen=True)
class Setting:
    """A world.

    Attributes:
        framework: topology, persuasion and forgetting.
        packaging: of the false claim.
        judge: name in JUDGES, or "chance".
        false_green: instead of the judge's own, if not negative.
        anchored: chance that the task states the discount where the trusted set has it.
        verifier_knows: chance that a look-up finds what is asked.
        notes: chance that an agent noted the discount for itself.
        obey: chance that an agent does what a refusal or correction says.
        slips: chance of a wrong figure in a message.
        late: round after which an operator confirms the true discount, which nothing states before; -1 for never.
    """

    framework: str = "LangGraph"
    packaging: str = "compliance"
    judge: str = "v3-small"
    false_green: float = -1.0
    anchored: float = 0.9
    verifier_knows: float = 0.8
    notes: float = 0.5
    obey: float = 0.9
    slips: float = 0.02
    late: int = -1


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        infected: the delivered result holds the false claim, or a total made with it.
        usable: it holds all facts and the right total.
        adoption: who believed the false claim in which round, [T, N].
        messages, judged, verified: cost.
        withheld: true claims that were kept from their receivers, and true claims sent.
    """

    infected: bool
    usable: bool
    adoption: NDArray[np.bool_]
    messages: int
    judged: int
    verified: int
    withheld: tuple[int, int]


@lru_cache(maxsize=4096)
def _claim(subject: str, predicate: str, value: float) -> Claim:
    return Claim(subject, predicate, value, kind="faithfulness")


Key = tuple[str, str]
DISCOUNT: Key = ("order", "discount")
TOTAL: Key = ("order", "total")


class _Task:
    """The truth of one run, made from its seed."""

    def __init__(self, noise: random.Random) -> None:
        self.facts: dict[Key, float] = {}
        for item in range(AGENTS):
            self.facts[f"item{item}", "price"] = float(noise.randrange(5, 95))
            self.facts[f"item{item}", "count"] = float(noise.randrange(2, 30))
        self.discount = noise.randrange(1, 9) / 20
        self.false = self.discount + noise.choice((0.05, 0.1))
        self.truth: dict[Key, float] = {**self.facts, DISCOUNT: self.discount, TOTAL: total(self.facts, self.discount)}


def total(facts: Mapping[Key, float], discount: float) -> float:
    """What the order costs, to the cent."""
    whole = sum(facts[f"item{item}", "price"] * facts[f"item{item}", "count"] for item in range(AGENTS))
    return round(whole * (1 - discount), 2)


@dataclass
class _Agent:
    name: str
    beliefs: dict[Key, float]
    notes: dict[Key, float]
    heard: list[str] = field(default_factory=list)


class _WholeMessage:
    """No atoms: the message is one sentence."""

    def split(self, payload: Any, scope: str = "") -> Split:
        parts = [f"{item['subject']} {item['predicate']} {item['object']}" for item in payload.get("claims", ())]
        if not parts:
            return Split()
        return Split((Atom(Claim("; ".join(parts), FREE_TEXT, True, scope=scope), ("claims",)),))

    def join(self, payload: Any, dropped: Any, marked: Any) -> Any:
        return {**payload, "claims": []} if dropped else {**payload, "marked": sorted(marked.values())}


class _Reflection:
    """Before a message leaves, its sender compares it with its own notes."""

    name = "reflection"

    def __init__(self, agents: Mapping[str, _Agent], judge: Judge) -> None:
        self._agents, self._judge = agents, judge
        self.judged = 0

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        agent = self._agents[env.sender]
        kept = []
        for item in env.payload["claims"]:
            key, value = (item["subject"], item["predicate"]), item["object"]
            if key in agent.notes:
                self.judged += 1
                if self._judge(_claim(*key, agent.notes[key]), _claim(*key, value)) == "contradicts":
                    agent.beliefs[key] = agent.notes[key]
                    item = {**item, "object": agent.notes[key]}
            kept.append(item)
        return await call_next(env.replace(payload={"claims": kept}))


class _MessageGuard:
    """Judges a message as a whole, and replaces it by a placeholder if anything in it is refuted."""

    name = "message guard"

    def __init__(self, trusted: Mapping[Key, float], judge: Judge) -> None:
        self._trusted, self._judge = trusted, judge
        self.judged = 0

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        for item in env.payload["claims"]:
            key = (item["subject"], item["predicate"])
            if key in self._trusted:
                self.judged += 1
                if self._judge(_claim(*key, self._trusted[key]), _claim(*key, item["object"])) == "contradicts":
                    return await call_next(env.replace(payload={"claims": []}))
        return await call_next(env)


class _ControlFlow:
    """Lets messages pass along the workflow's edges only."""

    name = "control flow"
    judged = 0

    def __init__(self, edges: set[tuple[str, str]]) -> None:
        self._edges = edges

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        wrong = [to for to in env.meta.labels.get("to", "").split() if (env.sender, to) not in self._edges]
        if wrong:
            raise Rejected(f"{env.sender} does not talk to {wrong[0]}")
        return await call_next(env)


def chance_judge(seed: int) -> Judge:
    """Answers at random."""
    return NoisyJudge(ExactJudge(), CHANCE, seed)  # type: ignore[arg-type]


def _judge(setting: Setting, seed: int) -> Judge:
    if setting.judge == "chance":
        return chance_judge(seed)
    rows = JUDGES[setting.judge]
    if setting.false_green >= 0:
        rows = confusion(setting.false_green, rows["entails"][0], rows["contradicts"][1])
    return NoisyJudge(ExactJudge(), rows, seed)


def make_arm(
    arm: str,
    judge: Judge,
    trusted: Mapping[Key, float],
    verifier: Callable[[Claim], bool | None],
    agents: Mapping[str, _Agent],
    edges: set[tuple[str, str]],
    hubs: set[str],
) -> Interceptor | None:
    """The interceptor of an arm; None for the arm without one."""
    if arm == "none":
        return None
    if arm == "reflection":
        return _Reflection(agents, judge)
    if arm == "message guard":
        return _MessageGuard(trusted, judge)
    if arm == "control flow":
        return _ControlFlow(edges)
    kind, _, without = arm.rpartition("without ")
    policy: Any = (kind.strip() or "strict") if without != arm else arm
    without = without if without != arm else ""
    blind = without == "detection"
    governor = Governor(
        policy,
        hubs=hubs,
        claims=_WholeMessage() if without == "atoms" else StructuredClaims(),
        judge=(lambda _known, _new: "neutral") if blind else judge,
        verifier=None if blind else verifier,
        block=without != "blocking",
        rollback=without != "rollback",
        hold=0,
    )
    for key, value in trusted.items():
        governor.trust(_claim(*key, value))
    return governor


async def play(arm: str, setting: Setting, seed: int) -> Outcome:
    """One run: the same world for every arm with the same seed."""
    worlds, noise = random.Random(f"world {seed}"), random.Random(f"acts {seed}")
    task = _Task(worlds)
    graph, beta, delta = FRAMEWORKS[setting.framework]
    a = topology(graph, AGENTS)
    names = [f"n{i}" for i in range(AGENTS)]
    edges = {(names[j], names[i]) for i in range(AGENTS) for j in range(AGENTS) if a[i, j]}
    aggregator = {"star": 0, "chain": AGENTS - 1, "mesh": AGENTS - 1}[graph]
    agents: dict[str, _Agent] = {}
    for number, name in enumerate(names):
        own = {key: value for key, value in task.facts.items() if key[0] == f"item{number}"}
        noted = {DISCOUNT: task.discount} if worlds.random() < setting.notes else {}
        agents[name] = _Agent(name, {**own, **noted}, {**own, **noted})
    agents[names[0]].beliefs[DISCOUNT] = task.false
    agents[names[0]].notes.pop(DISCOUNT, None)
    trusted = {DISCOUNT: task.discount} if worlds.random() < setting.anchored and setting.late < 0 else {}
    known = {key: worlds.random() < setting.verifier_knows for key in task.truth}
    looked = 0

    def verifier(claim: Claim) -> bool | None:
        nonlocal looked
        looked += 1
        key = (claim.subject, claim.predicate)
        return claim.object == task.truth[key] if known.get(key) else None

    stage = make_arm(arm, _judge(setting, seed), trusted, verifier, agents, edges, {names[aggregator], names[0]})
    chain = Chain([stage] if stage is not None else [])
    persuasion = beta * PACKAGING[setting.packaging]
    adoption = np.zeros((ROUNDS + 1, AGENTS), dtype=bool)
    adoption[0, 0] = True
    world = _World(chain, stage, agents, task, setting, noise)
    for round_ in range(ROUNDS):
        inbox: dict[str, list[Envelope]] = {name: [] for name in names}
        for name in names:
            to = [other for other in names if (name, other) in edges]
            if not to:
                continue
            sent = await world.send(agents[name], to)
            for other in to if sent is not None else ():
                inbox[other].append(sent)  # type: ignore[arg-type]
        for name in names:
            _listen(agents[name], inbox[name], task, persuasion, delta, noise)
        if isinstance(stage, Governor) and round_ == setting.late:
            await stage.confirm(_claim(*DISCOUNT, task.discount))
        world.correct()
        if isinstance(stage, Governor):
            stage.next_round()
        adoption[round_ + 1] = [agents[name].beliefs.get(DISCOUNT) == task.false for name in names]
    final = await world.send(agents[names[aggregator]], [], last=True)
    said = (
        {} if final is None else {(i["subject"], i["predicate"]): i["object"] for i in final.payload.get("claims", ())}
    )
    infected = said.get(DISCOUNT) == task.false or said.get(TOTAL) == total(task.facts, task.false)
    usable = all(said.get(key) == value for key, value in task.truth.items())
    judged = stage.counts.judged if isinstance(stage, Governor) else getattr(stage, "judged", 0)
    return Outcome(infected, usable, adoption, world.messages, judged, looked, (world.withheld, world.true))


class _World:
    """Sends messages through the arm, and counts."""

    def __init__(
        self, chain: Chain, stage: Interceptor | None, agents: Mapping[str, _Agent], task: _Task, setting: Setting,
        noise: random.Random,
    ) -> None:  # fmt: skip
        self._chain, self._stage, self._agents, self._task, self._setting = chain, stage, agents, task, setting
        self._noise = noise
        self.messages = self.withheld = self.true = 0
        self._number = 0

    async def send(self, agent: _Agent, to: list[str], *, last: bool = False) -> Envelope | None:
        """One message, sent again after a refusal; what arrived, or None."""
        slip = self._noise.random() < self._setting.slips
        while True:
            told = dict(agent.beliefs)
            if slip:
                key = self._noise.choice([key for key in agent.notes if key != DISCOUNT])
                told[key] += 1
            items: list[dict[str, Any]] = [
                {"subject": s, "predicate": p, "object": value, "kind": "faithfulness"}
                for (s, p), value in told.items()
            ]
            if last and DISCOUNT in told and all(key in told for key in self._task.facts):
                sources = [_claim(*key, told[key]).id for key in (*self._task.facts, DISCOUNT)]
                whole = total(told, told[DISCOUNT])
                items.append({"subject": "order", "predicate": "total", "object": whole, "sources": sources})
            self._number += 1
            env = Envelope(
                id=f"m{self._number}", topic="final" if last else "talk", sender=agent.name,
                payload={"claims": items}, parents=tuple(agent.heard[-8:]),
            )  # fmt: skip
            if to:
                env = env.replace(meta=replace_labels(env, " ".join(to)))
            self.messages += 1
            arrived: list[Envelope] = []

            async def deliver(got: Envelope, arrived: list[Envelope] = arrived) -> Envelope:
                arrived.append(got)
                return got

            right = sum(self._task.truth.get((i["subject"], i["predicate"])) == i["object"] for i in items)
            try:
                await self._chain(env, deliver)
            except Rejected as refusal:
                if "atoms" not in refusal.data:
                    return None
                if self._noise.random() < self._setting.obey:
                    self._obey(agent, refusal.data["atoms"])
                    slip = False
                continue
            got = arrived[0].payload.get("claims", ())
            kept = sum(self._task.truth.get((i["subject"], i["predicate"])) == i["object"] for i in got)
            self.true += right
            self.withheld += max(0, right - kept)
            return arrived[0]

    def _obey(self, agent: _Agent, atoms: list[dict[str, Any]]) -> None:
        """Gives up what was refuted, for what the evidence says, or else the own notes."""
        refused = {atom["id"]: atom["evidence"] for atom in atoms}
        for key, value in list(agent.beliefs.items()):
            why = refused.get(_claim(*key, value).id)
            if why is None:
                continue
            del agent.beliefs[key]
            if key in agent.notes:
                agent.beliefs[key] = agent.notes[key]
            _, stated, text = why.partition("confirmed: ")
            evidence = parse_sentence(text) if stated else None
            if evidence is not None and isinstance(evidence.object, float) and evidence.key[1:] == key:
                agent.beliefs[key] = evidence.object

    def correct(self) -> None:
        """What a governor tells those who passed on what it took back."""
        if not isinstance(self._stage, Governor):
            return
        while self._stage.corrections:
            note = self._stage.corrections.popleft()
            told = [self._agents[note.agent]] if note.agent else self._agents.values()
            for agent in told:
                if not note.agent and not set(note.messages) & set(agent.heard):
                    continue
                if self._noise.random() >= self._setting.obey:
                    continue
                self._obey(agent, [{"id": claim.id, "evidence": note.evidence} for claim in note.claims])


def replace_labels(env: Envelope, to: str) -> Any:
    """The envelope's meta with its receivers."""
    import msgspec

    return msgspec.structs.replace(env.meta, labels={"to": to})


def _listen(
    agent: _Agent, mail: list[Envelope], task: _Task, persuasion: float, delta: float, noise: random.Random
) -> None:
    """Own facts stay, others' are believed; the false claim may persuade; the true one is taken where none is held."""
    if agent.beliefs.get(DISCOUNT) == task.false and noise.random() < delta:
        del agent.beliefs[DISCOUNT]
    for env in mail:
        agent.heard.append(env.id)
        for item in env.payload.get("claims", ()):
            key, value = (item["subject"], item["predicate"]), item["object"]
            if key == DISCOUNT:
                if value == task.false:
                    if agent.beliefs.get(key) != value and noise.random() < persuasion:
                        agent.beliefs[key] = value
                else:
                    agent.beliefs.setdefault(key, value)
            elif key not in agent.notes and key != TOTAL:
                agent.beliefs[key] = value


def with_false_green(setting: Setting, rate: float) -> Setting:
    """The same world with another rate of false greens."""
    return replace(setting, false_green=rate)
