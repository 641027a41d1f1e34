import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import ExactJudge, LineageGraph, plot_coverage
from heliograph.agents.error_cascade import Claim
from heliograph.errors import BadInput

JUDGE = ExactJudge()


def grown(seed, steps=60, max_nodes=10_000):
    """A graph after random messages, links (cycles included) and confirmations."""
    noise = random.Random(seed)
    graph = LineageGraph(max_nodes)
    for step in range(steps):
        claim = Claim(f"s{noise.randrange(6)}", "p", noise.randrange(4), scope=noise.choice(["", "x"]))
        graph.add(claim, message=f"m{step}", agent=f"a{noise.randrange(4)}", round=step // 8)
        ids = list(graph.nodes)
        for _ in range(noise.randrange(3)):
            kind = noise.choice(["derived-from", "derived-from", "restates", "supports"])
            graph.link(noise.choice(ids), noise.choice(ids), kind, f"m{step}")
        what = noise.choice(ids)
        if noise.random() < 0.15:
            graph.confirm(what, "known", round=step // 8)
        elif noise.random() < 0.15:
            graph.reject(what, "false", judge=JUDGE, round=step // 8)
        elif noise.random() < 0.15:
            noise.choice([graph.demote, graph.release])(what)
    return graph


def reachable(graph, start):
    """Claims below one, by plain search, that pass no grounded claim."""
    found, again = set(), True
    while again:
        again = False
        for edge in graph.edges:
            above = edge.source == start or edge.source in found
            new = edge.target not in found and edge.target != start and not graph.nodes[edge.target].grounded
            if above and new and edge.kind in ("derived-from", "restates"):
                found.add(edge.target)
                again = True
    return found


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_a_claim_that_was_rolled_back_leaves_no_live_descendant(seed):
    graph = grown(seed)
    victim = random.Random(seed + 1).choice(list(graph.nodes))
    below = reachable(graph, victim)
    before = {id_: node.live for id_, node in graph.nodes.items()}
    done = graph.reject(victim, "false", judge=JUDGE, round=9)
    assert not graph.nodes[victim].live
    assert not any(graph.nodes[id_].live for id_ in below)
    assert {*done.rejected, *done.suspects} == below | {victim}
    untouched = set(graph.nodes) - below - {victim}
    assert all(graph.nodes[id_].live == before[id_] for id_ in untouched)
    told = {id_ for ids in done.carriers.values() for id_ in ids}
    assert told == {id_ for id_ in (*done.rejected, *done.suspects) if graph.nodes[id_].carriers}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_graph_is_sound_at_any_time_and_written_and_read_without_a_change(seed):
    graph = grown(seed)
    assert graph.faults() == []
    data = graph.to_jsonl()
    again = LineageGraph.from_jsonl(data)
    assert again.to_jsonl() == data
    assert again.faults() == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 12))
def test_the_graph_stays_small_and_forgets_no_rejection(seed, most):
    noise, graph = random.Random(seed), LineageGraph(most)
    rejected = set()
    for step in range(80):
        claim = Claim(f"s{step}", "p", 1)
        graph.add(claim, message=f"m{step}", agent="a", round=step)
        for _ in range(2):
            graph.link(noise.choice(list(graph.nodes)), claim.id, "derived-from")
        if len(rejected) < most - 2 and noise.random() < 0.1:
            graph.reject(claim.id, "false")
            rejected.add(claim.id)
        assert len(graph) <= most
        assert rejected <= set(graph.nodes)
    assert graph.forgotten == 80 - len(graph)
    assert graph.faults() == []
    assert set(graph._messages) <= {m for sent in graph._sent.values() for m in sent}


def test_what_says_the_same_is_rejected_and_what_follows_becomes_suspect():
    graph = LineageGraph()
    a, same, follows = Claim("a", "b", 9), Claim("a", "b", 9, scope="x"), Claim("bill", "total", 90)
    for claim in (a, same, follows):
        graph.add(claim, message=claim.id, agent="n")
    graph.link(a.id, same.id, "restates")
    graph.link(same.id, follows.id, "derived-from")
    done = graph.reject(a.id, "why", judge=lambda known, new: "entails" if known.key[1:] == new.key[1:] else "neutral")
    assert (set(done.rejected), done.suspects) == ({a.id, same.id}, (follows.id,))
    assert graph.nodes[follows.id].status == "unverified"
    graph.confirm(follows.id, "checked")
    assert graph.nodes[follows.id].live


def test_what_was_confirmed_on_its_own_survives():
    graph = LineageGraph()
    first, second, third = (Claim(name, "p", 1) for name in "abc")
    for claim in (first, second, third):
        graph.add(claim)
    graph.link(first.id, second.id, "derived-from")
    graph.link(second.id, third.id, "derived-from")
    graph.confirm(second.id, "verified")
    graph.reject(first.id, "false")
    assert graph.nodes[second.id].live
    assert graph.nodes[third.id].live


def test_what_is_derived_later_from_something_taken_back_is_not_live():
    graph = LineageGraph()
    a, b, c = (Claim(name, "p", 1) for name in "abc")
    for claim in (a, b, c):
        graph.add(claim)
    graph.link(b.id, c.id, "derived-from")
    graph.reject(a.id, "false")
    graph.link(a.id, b.id, "derived-from")
    assert not graph.nodes[b.id].live
    assert not graph.nodes[c.id].live
    with pytest.raises(BadInput, match="taken back"):
        graph.confirm(c.id, grounded=False)


def test_roots_say_where_a_claim_entered_and_whom_it_reached():
    graph = LineageGraph()
    claims = [Claim("pandas", "version", "v2"), Claim("plan", "uses", "pandas-v2"), Claim("report", "built with", "v2")]
    for n, claim in enumerate(claims):
        graph.add(claim, message=f"m{n}", agent=f"a{n}", round=n)
    graph.link(claims[0].id, claims[1].id, "derived-from")
    graph.link(claims[1].id, claims[2].id, "derived-from")
    (root,) = graph.roots("report")
    assert (root.agent, root.message, root.claims_reached, root.agents_reached) == ("a0", "m0", 2, ("a0", "a1", "a2"))
    assert graph.coverage(claims[0].id, ["a0", "a1", "a2", "a3"], 4) == [0.25, 0.5, 0.75, 0.75]


def test_roots_of_a_cycle_are_found():
    graph = LineageGraph()
    a, b = Claim("a", "p", 1), Claim("b", "p", 1)
    graph.add(a)
    graph.add(b)
    graph.link(a.id, b.id, "derived-from")
    graph.link(b.id, a.id, "derived-from")
    assert len(graph.roots(a.id)) == 1


def test_screening_looks_only_at_claims_about_the_same_thing():
    graph = LineageGraph()
    for n in range(3000):
        graph.add(Claim(f"s{n}", "p", 1))
    assert [node.claim.subject for node in graph.at_key(Claim("s7", "p", 2))] == ["s7"]


def test_lines_that_are_none_are_named():
    good = grown(3).to_jsonl()
    for bad in (b"{}\n", b"nonsense\n", b'{"edge": [1]}\n', b'{"edge": ["x", "y", "restates", ""]}\n'):
        with pytest.raises(BadInput, match="line"):
            LineageGraph.from_jsonl(good + bad)
    with pytest.raises(BadInput, match="cannot read"):
        LineageGraph.from_jsonl("/nowhere/at/all")


def test_networkx_has_the_same_claims_and_edges():
    graph = grown(5)
    made = graph.to_networkx()
    assert (made.number_of_nodes(), made.number_of_edges()) == (len(graph), len(graph.edges))


def test_a_lineage_is_drawn():
    rows = plot_coverage(grown(2)).data.values
    assert rows[0].keys() == {"line", "round", "share"}
    with pytest.raises(BadInput, match="nothing to draw"):
        plot_coverage(LineageGraph())
