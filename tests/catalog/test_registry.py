"""The built-in catalog is complete, plug-ins join it and cannot break it, and committed results are found."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heliograph.catalog import registry
from heliograph.catalog.card import FAMILIES
from heliograph.catalog.registry import CatalogWarning, check_ref, committed_results, get_card, load_cards
from heliograph.errors import BadInput, UnknownSystem
from tests.catalog.test_card import GOOD

SLUGS = {
    "agents": "agent_primitives cache_to_cache comm_former error_cascade gwa mcp_broker mcp_sec mod_x",
    "serving": "amd_instinct dllm_serve elastic_moe kv_serve pcpp pd_serve prfaas vllm_omni xllm",
    "graphs": "coco_milp floydnet gl_fusion gnn_plus graph_mamba grit grover mesh_transformer pc_darts ppgt sinc_gcn "
    "spen surface_predecoder todyformer",
    "lm": "bmojo diffusion_vl duo_llm moe_survey multi_stream p_adapter",
    "ranks": "amd_fullstack co2 comet dadao dist_zo2 elaswave hpc_paradigms mpirigen pccl t3 token_weave",
    "chips": "bolt elmoe_3d pim_gpt skip_opu sn40l tempus victima",
}


@pytest.fixture(autouse=True)
def fresh_catalog() -> Iterator[None]:
    load_cards.cache_clear()
    yield
    load_cards.cache_clear()


# --- the built-in cards ---


def test_every_system_has_a_card_in_the_fixed_order(no_plugins: None) -> None:
    expected = [slug for family in FAMILIES for slug in SLUGS[family].split()]
    assert len(expected) >= 55
    assert list(load_cards()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_system_has_its_family(no_plugins: None, family: str) -> None:
    assert {slug for slug, card in load_cards().items() if card.family == family} == set(SLUGS[family].split())


def test_cards_are_read_once_a_process(no_plugins: None) -> None:
    assert load_cards() is load_cards()


def test_a_built_in_check_lies_in_its_family(no_plugins: None) -> None:
    assert check_ref(get_card("gnn_plus")) == "heliograph.checks.graphs.gnn_plus:CHECK"


# --- names that do not exist ---


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gnn-plus", "gnn_plus"),
        ("GNN_Plus", "gnn_plus"),
        ("gnn+", "gnn_plus"),
        ("commet", "comet"),
        ("tokenweave", "token_weave"),
        ("token-weave", "token_weave"),
        ("todyfromer", "todyformer"),
        ("vllm", "vllm_omni"),
        ("theater", "gwa"),
        ("MPIrigan", "mpirigen"),
        ("p/d-serve", "pd_serve"),
    ],
)
def test_an_unknown_system_is_answered_with_the_nearest(no_plugins: None, typed: str, meant: str) -> None:
    with pytest.raises(UnknownSystem, match=f"did you mean {meant}"):
        get_card(typed)


@pytest.mark.parametrize("typed", ["", "zzzzqqqq", "-", "\ud800", "../../etc/passwd", "x" * 100_000])
def test_a_hopeless_name_is_answered_with_the_way_to_the_list(no_plugins: None, typed: str) -> None:
    with pytest.raises(BadInput, match="heliograph systems") as caught:
        get_card(typed)
    assert len(str(caught.value)) < 200


# --- plug-ins ---


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints(()))


MakePlugin = Callable[..., None]


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakePlugin:
    """Makes an importable plug-in with these cards, and announces it."""
    announced: list[importlib.metadata.EntryPoint] = []
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: importlib.metadata.EntryPoints(e for e in announced if e.group == group),
    )
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, cards: dict[str, str] | None = None, source: str | None = "", value: str = "") -> None:
        folder = tmp_path / f"plugin_{name}"
        if source is not None:
            folder.mkdir()
            (folder / "__init__.py").write_text(source)
        for slug, text in (cards or {}).items():
            (folder / "cards").mkdir(exist_ok=True)
            (folder / "cards" / f"{slug}.toml").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, folder.name, raising=False)
        importlib.invalidate_caches()
        announced.append(importlib.metadata.EntryPoint(name, value or folder.name, registry.PLUGIN_GROUP))

    return make


PLUGIN_CARD = GOOD.replace("year = 2024", 'year = 2024\ncheck_package = "plugin_loud.checks.shout"')


def only_warning(expected: str) -> str:
    with pytest.warns(CatalogWarning) as caught:
        assert set(expected.split()) == set(load_cards()) - {s for family in SLUGS.values() for s in family.split()}
    assert len(load_cards()) == sum(len(v.split()) for v in SLUGS.values()) + len(expected.split())
    assert len(caught) == 1
    return str(caught[0].message)


def test_a_plugins_card_joins_the_catalog_behind_the_built_in_ones(plug_in: MakePlugin) -> None:
    plug_in("loud", {"shout": PLUGIN_CARD})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cards = load_cards()
    assert list(cards)[-1] == "shout"
    assert len(cards) == 56
    assert check_ref(get_card("shout")) == "plugin_loud.checks.shout:CHECK"


def test_a_plugin_may_name_a_plain_module(plug_in: MakePlugin) -> None:
    plug_in("loud", {"shout": PLUGIN_CARD})
    plug_in("again", {"yell": PLUGIN_CARD.replace('"shout"', '"yell"')}, "", "plugin_again.systems")
    Path(str(__import__("plugin_again").__path__[0]), "systems.py").write_text("")
    assert list(load_cards())[-2:] == ["yell", "shout"]  # by the entry points' names


@pytest.mark.parametrize(
    "source",
    ["raise RuntimeError('no licence')", "import a_package_that_is_absent", "import sys; sys.exit(3)", "def ("],
)
def test_a_plugin_that_fails_to_load_is_named_and_left_out(plug_in: MakePlugin, source: str) -> None:
    plug_in("broken", {"shout": PLUGIN_CARD}, source)
    assert "'broken' of heliograph.systems (plugin_broken)" in only_warning("")


def test_a_plugin_whose_module_is_absent_is_named(plug_in: MakePlugin) -> None:
    plug_in("absent", source=None)
    assert "'absent'" in only_warning("")


def test_a_plugin_that_points_at_no_module_is_named(plug_in: MakePlugin) -> None:
    plug_in("number", {"shout": PLUGIN_CARD}, "answer = 42", "plugin_number:answer")
    assert "not a module" in only_warning("")


def test_a_plugin_without_cards_is_named(plug_in: MakePlugin) -> None:
    plug_in("empty")
    assert "holds no card" in only_warning("")


def test_a_bad_card_is_named_and_the_plugins_good_card_stays(plug_in: MakePlugin) -> None:
    bad = PLUGIN_CARD.replace('"shout"', '"yell"').replace('"ranks"', '"opera"')
    plug_in("loud", {"shout": PLUGIN_CARD, "yell": bad})
    message = only_warning("shout")
    assert "'loud'" in message
    assert "yell.toml: field family" in message


def test_a_plugins_card_must_name_its_check(plug_in: MakePlugin) -> None:
    plug_in("loud", {"shout": GOOD})
    assert "shout.toml: field check_package" in only_warning("")


def test_a_slug_of_a_built_in_system_is_refused(plug_in: MakePlugin) -> None:
    built_in = get_card("comet").title
    load_cards.cache_clear()
    plug_in("loud", {"comet": PLUGIN_CARD.replace('"shout"', '"comet"')})
    message = only_warning("")
    assert "comet.toml: field slug: 'comet' exists already" in message
    assert get_card("comet").title == built_in


def test_of_two_plugins_with_one_slug_the_first_name_wins(plug_in: MakePlugin) -> None:
    plug_in("zebra", {"shout": PLUGIN_CARD.replace("year = 2024", "year = 2020")})
    plug_in("ant", {"shout": PLUGIN_CARD})
    assert "'zebra'" in only_warning("shout")
    assert get_card("shout").year == 2024


def test_a_card_nested_too_deeply_does_not_break_the_catalog(plug_in: MakePlugin) -> None:
    plug_in("deep", {"shout": "a = " + "[" * 100_000})
    assert "'deep'" in only_warning("")


# --- committed results ---

RESULT: dict[str, Any] = {
    "header": {"preset": "laptop", "machine": {"label": "2 cores"}, "started_at": "2026-01-01T00:00:00Z", "run": "r1"},
    "findings": [{"claim": "layer_speedup", "verdict": "holds"}],
    "controls": [{"name": "overlap off", "passed": True}],
    "trials": [{"trial": "t1", "metrics": {}}],
}


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """A source checkout elsewhere: its docs/results, and the results inside the package."""
    package = tmp_path / "src" / "heliograph" / "catalog"
    in_docs, in_package = tmp_path / "docs" / "results", package / "results"
    in_docs.mkdir(parents=True)
    in_package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(registry, "_HERE", package)
    return in_docs, in_package


def write(path: Path, result: Any) -> None:
    path.write_text(json.dumps(result), encoding="utf-8")


def test_committed_results_come_without_their_trials(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "comet-laptop.json", RESULT)
    (result,) = committed_results("comet")
    assert result == {key: RESULT[key] for key in ("header", "findings", "controls")}


def test_committed_results_of_both_folders_are_read_once_and_in_order_of_name(folders: tuple[Path, Path]) -> None:
    for name, place in (("comet-laptop", 0), ("comet-laptop", 1), ("comet-gpu", 1), ("comet-h200", 0)):
        write(folders[place] / f"{name}.json", RESULT | {"header": RESULT["header"] | {"run": f"{name} {place}"}})
    runs = [result["header"]["run"] for result in committed_results("comet")]
    assert runs == ["comet-gpu 1", "comet-h200 0", "comet-laptop 0"]


def test_results_of_an_installed_package_are_read_outside_a_checkout(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "comet-gpu.json", RESULT)
    write(folders[0] / "comet-laptop.json", RESULT)
    (folders[0].parents[1] / "pyproject.toml").unlink()
    assert len(committed_results("comet")) == 1


def test_results_of_another_system_are_not_taken(folders: tuple[Path, Path]) -> None:
    for name in ("comet2-laptop.json", "t3-laptop.json", "comet.json", "comet-laptop.txt", "kv_serve-comet-x.json"):
        write(folders[0] / name, RESULT)
    assert committed_results("comet") == []
    assert committed_results("*") == []
    assert committed_results("../results/comet2") == []


def test_no_folder_of_results_is_no_error(folders: tuple[Path, Path]) -> None:
    folders[0].rmdir()
    folders[1].rmdir()
    assert committed_results("comet") == []


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(RESULT | {"header": 3}).encode(),
        json.dumps(RESULT | {"findings": {}}).encode(),
        json.dumps({key: RESULT[key] for key in ("header", "findings")}).encode(),
        json.dumps(RESULT | {"header": {"preset": "laptop", "started_at": "now"}}).encode(),
        json.dumps(RESULT | {"header": {"preset": "laptop", "started_at": "now", "machine": {}}}).encode(),
        json.dumps(RESULT | {"header": {"started_at": "now", "machine": {"label": "x"}}}).encode(),
        json.dumps(RESULT).encode()[:-20],
    ],
    ids=range(13),
)
def test_a_damaged_result_is_named_and_skipped(folders: tuple[Path, Path], damaged: bytes) -> None:
    (folders[0] / "comet-bad.json").write_bytes(damaged)
    write(folders[0] / "comet-good.json", RESULT)
    with pytest.warns(CatalogWarning, match=r"comet-bad\.json was skipped"):
        assert len(committed_results("comet")) == 1


def test_the_committed_results_of_this_repository_are_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CatalogWarning)
        for slug in load_cards():
            committed_results(slug)
