"""Wishes in words and the tools that they need: the queries of AgentDojo, or a few of ours where it is not installed.

The corpus brings who needs what: 97 user tasks of four suites with the calls of their ground truth, over the tools of
all suites together. The control keeps queries and tools and shuffles which tools each query is said to need.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from heliograph.agents.mod_x.discovery import (
    Capability,
    CapabilityIndex,
    Embedder,
    HashedNgrams,
    Weights,
    default_embedder,
)
from heliograph.errors import MissingExtra
from heliograph.trials.check import Context

__all__ = ["measure", "queries"]

TOP = 10
GRID = tuple(
    Weights(embedding=1.0, lexical=lexical, ontology=0.0, trust=0.0, cost=0.0) for lexical in (0.0, 0.05, 0.1, 0.2, 0.5)
)

OURS_TOOLS = {
    "find_hotels": "Hotels of a city with their prices.",
    "book_hotel": "Reserves a room in a hotel.",
    "search_flights": "Flights between two cities on a day.",
    "rent_car": "Reserves a car at a rental company.",
    "send_money": "Transfers an amount to a bank account.",
    "get_balance": "The amount left on a bank account.",
    "send_email": "Writes a mail to somebody.",
    "read_inbox": "Mails that came in.",
    "add_event": "Puts an appointment into the calendar.",
    "list_events": "Appointments of a day.",
    "get_weather": "Forecast of temperature and rain for a place.",
    "convert_currency": "An amount in another currency.",
    "translate_text": "A text in another language.",
    "create_file": "Makes a new document with some content.",
    "search_files": "Documents that contain some words.",
}
OURS_QUERIES = (
    ("Which hotels are there in Rome, and what do they cost?", ("find_hotels",)),
    ("Reserve a room for two nights", ("book_hotel",)),
    ("I have to be in Oslo on Friday, which flights are there?", ("search_flights",)),
    ("Pay the rent to my landlord's account", ("send_money",)),
    ("How much money is left on my account?", ("get_balance",)),
    ("Tell Anna by mail that I am late, and put the meeting into my calendar", ("send_email", "add_event")),
    ("Will it rain in Bern tomorrow?", ("get_weather",)),
    ("What are 40 dollars in euro?", ("convert_currency",)),
    ("Find the documents about the budget", ("search_files",)),
    ("What appointments do I have on Monday?", ("list_events",)),
)


@cache
def queries(source: str) -> tuple[dict[str, str], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Descriptions by tool, and (query, tools that it needs) pairs.

    Raises:
        MissingExtra: AgentDojo is asked for and not installed.
    """
    if source == "ours":
        return OURS_TOOLS, OURS_QUERIES
    try:
        from agentdojo.task_suite.load_suites import get_suites
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "agentdojo").split(".")[0], "mcpbench") from error
    tools: dict[str, str] = {}
    pairs = []
    for suite in get_suites("v1").values():
        tools.update({tool.name: str(tool.description) for tool in suite.tools})
        environment = suite.load_and_inject_default_environment({})
        for task in suite.user_tasks.values():
            needed = tuple(sorted({call.function for call in task.ground_truth(environment)}))
            if needed:
                pairs.append((str(task.PROMPT), needed))
    return tools, tuple(pairs)


class _Memory:
    """Embeds each text once, since every weight asks for the same."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def _index(tools: Mapping[str, str], *, words_only: bool) -> CapabilityIndex:
    index = CapabilityIndex(_Memory(HashedNgrams() if words_only else default_embedder()))
    for name, description in tools.items():
        index.add(Capability(name=name, agent="suite", description=description))
    return index


Places = dict[str, int]


def _places(index: CapabilityIndex, query: str, method: Any, weights: Weights | None) -> Places:
    hits = index.search(query, top=len(index), method=method, weights=weights)
    return {hit.capability.name: place for place, hit in enumerate(hits, 1)}


def _scores(ranks: np.ndarray) -> tuple[float, float, float]:
    return float((ranks <= TOP).mean()), float(1 / ranks.min()), float(ranks.min() == 1)


def measure(context: Context) -> Mapping[str, Any]:
    """Recall of the needed tools among the first ten, mean reciprocal rank of the first, and how often it is first.

    A block is a sample of the queries with replacement, the same for all contenders; the weight of the hybrid is chosen
    on the other folds.
    """
    params = context.workload.params
    tools, pairs = queries(str(params["source"]))
    noise = random.Random(context.seed)
    method = context.contender if context.contender in ("keyword", "bm25", "embedding") else "hybrid"
    grid: tuple[Weights | None, ...] = GRID if method == "hybrid" else (None,)
    found: dict[Weights | None, list[Places]]
    if context.contender == "random":
        grid = (None,)
        orders = [noise.sample(sorted(tools), len(tools)) for _ in pairs]
        found = {None: [{name: place for place, name in enumerate(order, 1)} for order in orders]}
    else:
        index = _index(tools, words_only=bool(params.get("letters")))
        found = {weights: [_places(index, query, method, weights) for query, _ in pairs] for weights in grid}
    labels = [needed for _, needed in pairs]
    rounds = []
    for _ in range(int(params.get("shuffles", 1))):
        given = _exchanged(labels, sorted(tools), noise) if params.get("shuffled") else labels
        rounds.append(_chosen(found, grid, given, noise))
    context.keep("sizes", {"queries": len(pairs), "tools": len(tools), "recall by chance": TOP / len(tools)})
    sample = [noise.randrange(len(pairs)) for _ in pairs]
    return _means([scores[place] for scores in rounds for place in sample])


def _exchanged(labels: Sequence[tuple[str, ...]], names: Sequence[str], noise: random.Random) -> list[tuple[str, ...]]:
    """Names are exchanged as a whole, so that each query keeps the number of tools that it needs."""
    other = dict(zip(names, noise.sample(names, len(names)), strict=True))
    return [tuple(other[name] for name in needed) for needed in labels]


def _chosen(
    found: Mapping[Weights | None, Sequence[Places]],
    grid: Sequence[Weights | None],
    labels: Sequence[tuple[str, ...]],
    noise: random.Random,
) -> list[tuple[float, float, float]]:
    """Each query's scores under the weights that are best on the other four of five folds."""
    table = {
        weights: [
            _scores(np.array([places[name] for name in needed]))
            for places, needed in zip(found[weights], labels, strict=True)
        ]
        for weights in grid
    }
    folds = [place % 5 for place in range(len(labels))]
    noise.shuffle(folds)
    best = [
        max(grid, key=lambda weights: sum(table[weights][i][0] for i, other in enumerate(folds) if other != fold))
        for fold in range(5)
    ]
    return [table[best[fold]][place] for place, fold in enumerate(folds)]


def _means(scores: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    recall, rank, first = np.mean(scores, axis=0)
    return {"recall": float(recall), "mrr": float(rank), "first": float(first)}
