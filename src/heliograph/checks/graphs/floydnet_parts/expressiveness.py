"""Part A: what untrained networks separate, beside what exact refinement separates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from heliograph.checks.graphs.contenders import GinProbe
from heliograph.data.wl_pairs import GraphPair, atlas_pairs, named_pairs, read_brec
from heliograph.errors import BadInput
from heliograph.graphs.core.expressivity import folklore2_separates, folklore3_separates, refinement_separates
from heliograph.graphs.floydnet.separate import PivotalProbe, measure_separation
from heliograph.trials.check import Context, Workload

__all__ = ["adopt", "measure"]

RELABELLINGS, RELABELLINGS_TRIPLES = 8, 4
LARGEST_TRIPLES = 30
DRAWN = ("rook/Shrikhande", "decalin/bicyclopentyl", "K33/prism", "CFI(C4)")


def measure(context: Context) -> Mapping[str, Any]:
    """One row of booleans, one a pair; says each named pair in words.

    ``agrees``: the network separates exactly what the folklore test of its order separates. ``keeps_equal``: it does
    not separate what its own bound (that test; 1-WL for the message-passing arm) cannot.
    """
    load = context.workload
    order, floyd = load["order"], context.contender == "floydnet"
    probes = [_probe(o, context) for o in ((2, 3) if order == 3 else (2,))] if floyd else [GinProbe(seed=context.seed)]
    agrees, kept, drawings = [], [], []
    pairs = _pairs(load)
    for number, pair in enumerate(pairs):
        found = [
            measure_separation(
                p, pair.first, pair.second, RELABELLINGS if order == 2 else RELABELLINGS_TRIPLES, seed=context.seed
            ).separated
            for p in probes
        ]
        truth = _truth(pair, order) if floyd else [refinement_separates(pair.first, pair.second)]
        agrees.append(found == truth)
        kept += [not f for f, t in zip(found, truth, strict=True) if not t]
        if floyd and load["pairs"] != "atlas":
            context.say(_in_words(pair, found, truth))
        if floyd and pair.name in DRAWN:
            drawings.append(_drawing(pair))
        context.progress((number + 1) / len(pairs), f"{sum(agrees)} of {len(agrees)} pairs agree")
    if floyd and load["pairs"] == "atlas":
        context.say(f"{sum(agrees)} of {len(agrees)} pairs of the atlas that 1-WL confuses: level 2 and 2-FWL agree")
    context.keep("drawings", drawings)
    return {"agrees": agrees, "keeps_equal": kept or [True]}


def adopt(path: Path, preset: str) -> Mapping[str, Workload]:
    """The user's pairs as the workload of this part."""
    del preset
    count = len(_read_pairs(path))
    return {"expressiveness": Workload(path.name.replace("/", " "), {"pairs": str(path), "order": 2, "count": count})}


def _probe(order: int, context: Context) -> PivotalProbe:
    dim, depth = (16, 16) if order == 2 else (2, 16)
    return PivotalProbe(order, dim, 2, depth, seed=context.seed, chunk=16 if order == 2 else None)


def _pairs(load: Workload) -> Sequence[GraphPair]:
    if load["pairs"] == "atlas":
        return atlas_pairs()
    if load["pairs"] in ("named", "beyond"):
        pairs = named_pairs()
        largest = load.params.get("largest", 10**6)
        if load["pairs"] == "beyond":
            pairs = tuple(p for p in pairs if not folklore2_separates(p.first, p.second))
        left_out = load.params.get("leave_out", ())
        return tuple(p for p in pairs if len(p.first) <= largest and p.name not in left_out)
    return _read_pairs(Path(load["pairs"]))


def _read_pairs(path: Path) -> Sequence[GraphPair]:
    if path.suffix == ".npy":
        return read_brec(path)
    try:
        graphs = nx.read_graph6(path)
    except (OSError, nx.NetworkXError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path} as graph6: {error}") from None
    graphs = graphs if isinstance(graphs, list) else [graphs]
    if not graphs or len(graphs) % 2:
        raise BadInput(f"{path} holds {len(graphs)} graphs; an even number is needed, two a pair")
    return tuple(GraphPair(f"pair {i // 2 + 1}", graphs[i], graphs[i + 1]) for i in range(0, len(graphs), 2))


def _truth(pair: GraphPair, order: int) -> list[bool]:
    truth = [folklore2_separates(pair.first, pair.second)]
    if order == 3:
        if max(len(pair.first), len(pair.second)) > LARGEST_TRIPLES:
            raise BadInput(f"3-FWL of {pair.name} needs at most {LARGEST_TRIPLES} vertices")
        truth.append(folklore3_separates(pair.first, pair.second))
    return truth


def _in_words(pair: GraphPair, found: Sequence[bool], truth: Sequence[bool]) -> str:
    names = pair.name.replace("/", " and ") if "/" in pair.name else f"{pair.name}, even and odd twist"
    can = {True: "can", False: "cannot"}
    text = f"{names}: 2-FWL {can[truth[0]]} tell them apart, level 2 {can[found[0]]}"
    if len(found) > 1:
        text += f"; 3-FWL {can[truth[1]]}, level 3 {can[found[1]]}"
    return text


def _drawing(pair: GraphPair) -> list[dict[str, Any]]:
    names = pair.name.split("/") if "/" in pair.name else [f"{pair.name} even", f"{pair.name} odd"]
    sides = []
    for name, graph in zip(names, (pair.first, pair.second), strict=True):
        place = nx.circular_layout(graph) if len(graph) >= 16 else nx.kamada_kawai_layout(graph)
        index = {vertex: i for i, vertex in enumerate(graph)}
        sides.append(
            {
                "caption": name,
                "positions": [[round(float(c), 3) for c in place[v]] for v in graph],
                "edges": [[index[a], index[b]] for a, b in graph.edges],
            }
        )
    return sides
