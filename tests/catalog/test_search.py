"""Search finds what a reader means, ranks it first, and takes any text."""

from __future__ import annotations

import sqlite3
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heliograph.catalog import search as search_module
from heliograph.catalog.card import Card
from heliograph.catalog.registry import load_cards
from heliograph.catalog.search import Hit, search

CARDS = [card for card in load_cards().values() if not card.check_package]


def slugs(query: str, cards: list[Card] = CARDS) -> list[str]:
    return [hit.card.slug for hit in search(query, cards)]


QUERIES = {  # query: what must come first, in any order
    "overlap communication": {"comet", "t3", "token_weave", "co2"},
    "hide communication behind computation": {"co2", "comet", "t3", "token_weave"},
    "speculative decoding": {"elmoe_3d", "xllm"},
    "mixture of experts": {"moe_survey", "elastic_moe", "comet"},
    "prefill-decode separation": {"pd_serve", "kv_serve", "prfaas", "xllm", "vllm_omni"},
    "travelling salesman": {"floydnet"},
    "GNN baseline": {"gnn_plus"},
    "MCP security": {"mcp_sec"},
    "processing in memory": {"pim_gpt"},
    "all-reduce over the internet": {"pccl", "co2"},
    "quantum error correction": {"surface_predecoder"},
    "temporal graph link prediction": {"todyformer"},
    "neural architecture search": {"pc_darts"},
    "elastic training fault tolerance": {"elaswave", "pccl"},
    "fluid simulation on a mesh": {"mesh_transformer"},
    "pretraining on molecules": {"grover"},
    "image generation on several GPUs": {"pcpp"},
    "agents share a KV cache": {"agent_primitives", "cache_to_cache"},
    "AMD GPUs": {"amd_fullstack", "amd_instinct"},
    "diffusion language model serving": {"dllm_serve"},
    "hallucination spreads between agents": {"error_cascade"},
    "page table walks": {"victima"},
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_readers_query_finds_the_system_first(query: str) -> None:
    assert set(slugs(query)[: len(QUERIES[query])]) == QUERIES[query]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.slug)
def test_a_slug_or_title_finds_its_own_card_first(card: Card) -> None:
    assert slugs(card.slug)[0] == card.slug
    assert slugs(card.title)[0] == card.slug


@pytest.mark.parametrize(
    ("query", "slug"),
    [("2502.19811", "comet"), ("CometMoE", "comet"), ("LUOyk1999/GNNPlus", "gnn_plus"), ("tokenweave", "token_weave")],
)
def test_identifiers_are_found(query: str, slug: str) -> None:
    assert slugs(query)[0] == slug


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MoE", "mixture of experts"),
        ("KV cache", "key-value cache"),
        ("allreduce", "all-reduce"),
        ("quantisation", "quantization"),
        ("TSP", "traveling salesman"),
        ("PIM", "process-in-memory"),
        ("GNN", "graph neural networks"),
        ("MCP", "tool protocol"),
        ("SSM", "state space models"),
        ("MILP", "integer programming"),
        ("decentralised", "decentralized"),
        ("optimisation", "optimization"),
        ("HPC", "high performance computing"),
        ("disaggregated", "prefill-decode separation"),
        ("draft model", "speculative decoding"),
    ],
)
def test_synonyms_find_the_same_cards(one: str, other: str) -> None:
    # A stop word behind the term: the last word would also find the words that it begins.
    assert set(slugs(f"{one} of")) == set(slugs(f"{other} of")) != set()


def test_the_typed_term_ranks_above_its_synonym() -> None:
    typed, spelled = slugs("MoE"), slugs("mixture of experts")
    assert typed.index("elastic_moe") < typed.index("duo_llm")
    assert set(typed) == set(spelled)


def test_the_synonym_file_has_no_idle_group() -> None:
    path = Path(search_module.__file__).with_name("synonyms.toml")
    groups = tomllib.loads(path.read_text(encoding="utf-8"))["groups"]
    assert len(groups) >= 60
    for group in groups:
        assert len({search_module._stems(term) for term in group}) >= 2, group
        assert all(search_module._stems(term) for term in group), group


@pytest.mark.parametrize("typed", ["oblivio", "obliviou", "oblivious", "OBLIVIOUS M"])
def test_the_last_word_may_be_unfinished(typed: str) -> None:
    assert slugs(typed)[0] == "bolt"


def test_only_the_last_word_may_be_unfinished() -> None:
    assert slugs("oblivio") == ["bolt"]
    assert "bolt" not in slugs("oblivio graph")


def test_inflections_accents_case_and_punctuation_do_not_matter() -> None:
    expected = slugs("overlap communication")
    for query in ("OVERLAPPING communications", "«överläp», communication!", '"overlap" AND (communication)'):
        assert slugs(query)[:4] == expected[:4]


def test_hits_say_what_matched_and_come_best_first() -> None:
    hits = search("overlap allreduce", CARDS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best = next(hit for hit in hits if hit.card.slug == "co2")
    assert best.matched == ("overlap", "all-reduce")


def test_a_mapping_of_cards_may_be_searched() -> None:
    assert [hit.card.slug for hit in search("gossip", {card.slug: card for card in CARDS})] == ["dadao"]


def test_no_cards_give_no_hits() -> None:
    assert search("overlap", []) == []


@pytest.mark.parametrize("query", ["", " ", "\n\t", "---", '"', "*", "()", "\x00", "\ud800", "…", "🙂"])
def test_a_query_without_words_finds_nothing(query: str) -> None:
    assert search(query, CARDS) == []


HOSTILE = [
    '"',
    'overlap"',
    "overlap*",
    "NEAR(overlap communication, 2)",
    "slug:comet",
    "{title summary}: overlap",
    "^overlap",
    "overlap NOT communication",
    "AND OR NOT",
    "-overlap",
    "+overlap + communication",
    "'; DROP TABLE cards; --",
    "overlap\x00communication",
    "%s %d {0} \\",
    "the of and",
]


@pytest.mark.parametrize("query", HOSTILE)
def test_syntax_of_the_engine_is_plain_text(query: str) -> None:
    assert all(isinstance(hit, Hit) for hit in search(query, CARDS))


@pytest.mark.parametrize(
    "query",
    [
        "x" * 10_000,
        "overlap " * 1250,
        "a-" * 5000,
        '"' * 10_000,
        "ﷺ" * 10_000,
        "é́" * 5000,
        "mixture of " * 900,
        "9.9" * 3333,
    ],
    ids=range(8),
)
def test_ten_thousand_characters_are_no_error(query: str) -> None:
    search(query, CARDS)


# --- the scan that stands in for FTS5 ---


def without_fts5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_open_fts5", lambda: None)


def assert_same(query: str) -> None:
    ours = {hit.card.slug: hit for hit in search(query, CARDS)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_fts5(monkeypatch)
        scanned = {hit.card.slug: hit for hit in search(query, CARDS)}
    assert ours.keys() == scanned.keys()
    for slug, hit in ours.items():
        assert scanned[slug].score == pytest.approx(hit.score, rel=1e-9)


@pytest.mark.parametrize("query", [*QUERIES, *HOSTILE, "graph transf", "kv", "MoE", "b'mojo", "a-b c/d"])
def test_the_scan_finds_and_scores_as_fts5_does(query: str) -> None:
    assert_same(query)


@pytest.mark.parametrize("query", QUERIES)
def test_the_scan_ranks_as_a_reader_expects(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_fts5(monkeypatch)
    assert set(slugs(query)[: len(QUERIES[query])]) == QUERIES[query]


def test_a_python_without_sqlite_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    assert slugs("quantum error correction") == ["surface_predecoder"]


def test_an_sqlite_without_fts5_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poor(sqlite3.Connection):
        def execute(self, *args: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("no such module: fts5")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, factory=Poor))
    assert slugs("quantum error correction") == ["surface_predecoder"]


def test_threads_may_search_at_once() -> None:
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(slugs("gossip"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["dadao"]] * 4


# --- any text ---

WORDS = sorted({word for card in CARDS for word in search_module._document(card).words})
queries = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.one_of(st.sampled_from(WORDS), st.sampled_from(['"', "*", "AND", "NOT", "NEAR(", ")", ":", "-", "^", "+"])),
        max_size=12,
    ).map(" ".join),
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=12).map("-".join),
    st.lists(st.text("aαé-'\".*𞤀ß\u0301İ²Ⅷ_ ", max_size=8), max_size=6).map(" ".join),
)


@settings(max_examples=150, deadline=None)
@given(queries)
@example("a-𞤀 comet-𞤀")
def test_any_text_is_searched_without_error_and_alike_by_both_ways(query: str) -> None:
    assert_same(query)
