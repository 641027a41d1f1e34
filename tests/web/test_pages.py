import functools
import importlib
import re
import shutil
import socket
import sqlite3
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from heliograph.catalog.registry import load_cards
from heliograph.errors import BadInput, MissingExtra
from heliograph.trials.store import Store
from heliograph.web import app as app_module
from heliograph.web import create_app, pages, reader, stream
from heliograph.web import serve as serve_module
from heliograph.web.figures import Figures
from heliograph.web.pages import Pages
from heliograph.web.serve import serve
from heliograph.web.stream import LiveStream, StreamCount
from tests.web import example

LIVE_RUN = "20260302-090000-synthetic-live"
DRAWN = Figures()  # drawing takes most of the time, so the tests share it
HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "runs.sqlite"
    example.fill(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path))


@pytest.fixture(autouse=True)
def known_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "load_cards", example.cards)
    monkeypatch.setattr(reader, "committed_results", lambda slug: [])
    monkeypatch.setattr(reader, "LATEST_KEPT_S", 0.0)
    monkeypatch.setattr(app_module, "Pages", functools.partial(Pages, figures=DRAWN))


@pytest.fixture
def client(database: Path) -> Iterator[TestClient]:
    with browse(f"sqlite:///{database}", database.parent) as client:
        yield client


def browse(url: str, folder: Path, **more: object) -> TestClient:
    app = create_app(url, folder, **more)
    return TestClient(app, base_url="http://127.0.0.1:8765", follow_redirects=False, raise_server_exceptions=False)


def systems_on(text: str) -> list[str]:
    return re.findall(r'class="system" href="/systems/(\w+)"', text)


def damage(database: Path, sql: str, *values: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(sql, values)


# --- catalog ---


def test_catalog_lists_every_system_under_its_family(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert sorted(systems_on(page.text)) == sorted(example.cards())
    assert page.text.index('class="family">agents') < page.text.index('class="family">graphs')


def test_search_shows_what_matches_and_what_was_matched(client: TestClient) -> None:
    page = client.get("/", params={"q": "  zebrafish "})
    assert systems_on(page.text) == ["synthetic"]
    assert "matches zebrafish" in page.text
    assert 'value="zebrafish"' in page.text


def test_search_without_a_match_says_so(client: TestClient) -> None:
    page = client.get("/", params={"q": "xyzzyplugh"})
    assert page.status_code == 200
    assert not systems_on(page.text)
    assert "Nothing matches “xyzzyplugh”" in page.text


def test_an_enormous_query_is_cut(client: TestClient) -> None:
    page = client.get("/", params={"q": "zebrafish " + "y" * 5000})
    assert page.status_code == 200
    assert "y" * 300 not in page.text


def test_family_filter(client: TestClient) -> None:
    shown = systems_on(client.get("/", params={"family": "lm"}).text)
    assert shown == [card.slug for card in load_cards().values() if card.family == "lm"]


@pytest.mark.parametrize(("verdict", "there"), [("holds", True), ("fails", True), ("not run", True), ("void", False)])
def test_verdict_filter_keeps_systems_with_such_a_claim(client: TestClient, verdict: str, there: bool) -> None:
    assert ("synthetic" in systems_on(client.get("/", params={"verdict": verdict}).text)) is there


def test_filters_and_search_add_up(client: TestClient) -> None:
    shown = client.get("/", params={"q": "zebrafish", "family": "graphs", "verdict": "holds"})
    assert systems_on(shown.text) == ["synthetic"]
    assert not systems_on(client.get("/", params={"q": "zebrafish", "family": "lm"}).text)


def test_an_unknown_filter_filters_nothing(client: TestClient) -> None:
    page = client.get("/", params={"family": "birds", "verdict": example.EVIL})
    assert len(systems_on(page.text)) == len(example.cards())


def test_a_later_smoke_run_does_not_hide_what_a_larger_preset_decided(client: TestClient, database: Path) -> None:
    store, run = Store(f"sqlite:///{database}"), "20260401-120000-synthetic-bbbb"
    store.create_run(example.header(run, preset="smoke", started_at="2026-04-01T12:00:00+00:00"))
    empty = {"ours": None, "low": None, "high": None, "note": "declared too small"}
    store.save_judgement(run, "synthetic", example.judgement(verdict="void", declared=True, **empty))
    store.close()
    assert systems_on(client.get("/", params={"verdict": "holds"}).text) == ["synthetic"]
    system = client.get("/systems/synthetic").text
    assert f'/runs/{example.RUN}">run of' in system
    assert f'/runs/{run}">run of' in system  # the exact claim was decided again


def test_shipped_records_stand_beside_and_fill_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judged = example.judgement(verdict="weaker")
    shipped = {
        "header": {"machine": {"label": "1x a far GPU"}, "preset": "gpu", "started_at": "2026-02-01T00:00:00"},
        "findings": [f.to_json() for f in judged.findings] + [{"claim": "broken"}],
        "controls": [],
    }
    monkeypatch.setattr(reader, "committed_results", lambda slug: [shipped] if slug == "synthetic" else [])
    client = browse(f"sqlite:///{tmp_path / 'empty.sqlite'}", tmp_path)
    page = client.get("/", params={"verdict": "weaker"})
    assert systems_on(page.text) == ["synthetic"]
    assert "from a shipped record" in page.text
    system = client.get("/systems/synthetic").text
    assert "Other machines" in system
    assert "1x a far GPU" in system


# --- a system ---


def test_system_page_shows_claims_beside_findings(client: TestClient) -> None:
    page = client.get("/systems/synthetic")
    assert page.status_code == 200
    for text in (
        "Synthetic arms with a known gain",
        "1.9 points",
        "1.9 [1.7, 2.1] against baseline (2 against 0.1)",
        "This scale cannot show anything about the world.",
        "No run on this machine has judged this claim yet.",
        "heliograph check synthetic",
        "from heliograph.graphs import Synthetic",
        "https://arxiv.org/abs/2601.00001",
        f"/runs/{example.RUN}",
    ):
        assert text in page.text
    assert page.text.count("<svg") == 1


def test_every_card_has_a_page(client: TestClient) -> None:
    for slug, card in example.cards().items():
        page = client.get(f"/systems/{slug}")
        assert page.status_code == 200, slug
        assert page.text.count("<h3") == len(card.claims)


@pytest.mark.parametrize("slug", ["floydnt", "%3Cscript%3E", "%2e%2e%2fx", "no-such-thing-at-all"])
def test_an_unknown_system_is_a_page_that_says_so(client: TestClient, slug: str) -> None:
    page = client.get(f"/systems/{slug}")
    assert page.status_code == 404
    assert "<h1>Not here</h1>" in page.text
    assert "<script>" not in page.text
    if slug == "floydnt":
        assert "did you mean floydnet" in page.text


# --- runs ---


def test_runs_are_listed_latest_first_with_their_verdicts(client: TestClient, database: Path) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    text = client.get("/runs").text
    assert text.index(LIVE_RUN) < text.index(example.RUN)
    assert "1 holds" in text
    assert f"/runs/{LIVE_RUN}/live" in text
    end()


def test_runs_of_one_system_and_older_ones(client: TestClient, database: Path) -> None:
    store = Store(f"sqlite:///{database}")
    for day in (1, 2):
        store.create_run(example.header(f"2025010{day}-other", "other", started_at=f"2025-01-0{day}T00:00:00+00:00"))
    store.close()
    assert example.RUN not in client.get("/runs?system=other").text
    page = client.get("/runs?limit=1").text
    assert "20250102-other" not in page
    assert "/runs?limit=4" in page
    assert "20250101-other" in client.get("/runs?limit=4").text
    for odd in ("0", "-3", "x", "²", "9" * 40):
        assert client.get("/runs", params={"limit": odd}).status_code == 200


def test_an_empty_store_says_how_to_begin(tmp_path: Path) -> None:
    client = browse(f"sqlite:///{tmp_path / 'new.sqlite'}", tmp_path)
    assert "heliograph check SLUG" in client.get("/runs").text


def test_run_page_shows_findings_charts_controls_and_how_to_repeat(client: TestClient) -> None:
    page = client.get(f"/runs/{example.RUN}")
    assert page.status_code == 200
    for text in (
        "the whole interval [1.7, 2.1] reaches our threshold 1",
        "two equal arms tie",
        "tuned equally: one try",
        "heliograph check synthetic --preset laptop",
        "a triangle",
        "Learning curves",
        "synthetic/score/plain/block4/baseline",
    ):
        assert text in page.text
    # The interval, each claim's block values (the exact one has none), a drawing and a curve.
    assert page.text.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page.text)) <= set(ids)


def test_charts_are_drawn_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.get(f"/runs/{example.RUN}").text
    monkeypatch.setattr("heliograph.trials.charts._svg", lambda chart: pytest.fail("drawn again"))
    assert client.get(f"/runs/{example.RUN}").text == first


@pytest.mark.parametrize("name", ["last", example.RUN[:12]])
def test_a_short_name_of_a_run_leads_to_its_page(client: TestClient, name: str) -> None:
    answer = client.get(f"/runs/{name}")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/runs/{example.RUN}")


@pytest.mark.parametrize("path", ["/runs/nope", "/runs/nope/live", "/runs/nope/events", "/runs/%2e%2e%2fx", "/nope"])
def test_what_is_not_there_is_a_page_that_says_so(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 404
    assert "<h1>Not here</h1>" in page.text


def test_an_ambiguous_beginning_names_the_runs(client: TestClient, database: Path) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    page = client.get("/runs/202603")
    assert page.status_code == 404
    assert LIVE_RUN in page.text
    end()


@pytest.mark.parametrize("fault", [ImportError("no torch"), SystemExit(3), RuntimeError("broken plug-in")])
def test_a_check_that_cannot_be_imported_leaves_the_findings(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(ref: str) -> None:
        raise fault

    monkeypatch.setattr(pages, "load_check", fail)
    page = client.get(f"/runs/{example.RUN}")
    assert page.status_code == 200
    assert "1.9 [1.7, 2.1] against baseline" in page.text
    assert "Every block's value" not in page.text


def test_a_run_of_an_unknown_system_is_shown(client: TestClient, database: Path) -> None:
    store, run = Store(f"sqlite:///{database}"), "20260101-000000-gone-cccc"
    store.create_run(example.header(run, "gone_system"))
    for record in example.records("gone_system"):
        store.append(run, record)
    store.save_judgement(run, "gone_system", example.judgement("gone_system"))
    store.finish(run, "finished")
    store.close()
    page = client.get(f"/runs/{run}")
    assert page.status_code == 200
    assert "gone_system" in page.text
    assert "/systems/gone_system" not in page.text


def test_an_interrupted_run_says_how_to_go_on(client: TestClient, database: Path) -> None:
    store, run = Store(f"sqlite:///{database}"), "20260101-000000-synthetic-dddd"
    store.create_run(example.header(run))
    failed = replace(example.records()[0], status="crashed", tail="Boom: it broke", metrics={})
    store.append(run, failed)
    store.finish(run, "interrupted")
    store.close()
    text = client.get(f"/runs/{run}").text
    assert "heliograph check synthetic --preset laptop --resume" in text
    assert "Boom: it broke" in text
    assert "1 of them did not end well" in text


# --- damage ---


@pytest.mark.parametrize(
    "findings",
    ['[{"claim": "better_score", "verdict": "holds"}]', '[{"claim": "a", "verdict": "<b>"}]', "[3]", "null", '"x"'],
)
def test_a_damaged_judgement_leaves_the_run_readable(client: TestClient, database: Path, findings: str) -> None:
    damage(database, "UPDATE findings SET findings = ?", findings)
    page = client.get(f"/runs/{example.RUN}")
    assert page.status_code == 200
    assert "cannot be read" in page.text
    assert f"heliograph rejudge {example.RUN}" in page.text
    assert "synthetic/score/plain/block4/baseline" in page.text
    for path in ("/", "/runs", "/systems/synthetic"):
        assert client.get(path).status_code in (200, 503)


def test_charts_survive_damaged_details(client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DRAWN, "_kept", OrderedDict())
    damage(
        database, """UPDATE trials SET record = json_set(record, '$.detail', json('{"drawings": [[{"edges": 3}]]}'))"""
    )
    page = client.get(f"/runs/{example.RUN}")
    assert page.status_code == 200
    assert "1.9 [1.7, 2.1]" in page.text


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("UPDATE trials SET record = ?", '{"trial": "x", "what": 1}'),
        ("UPDATE trials SET record = ?", "not json"),
        ("UPDATE runs SET header = ?", '{"run": "x"}'),
    ],
)
def test_a_damaged_run_is_a_clear_503(client: TestClient, database: Path, sql: str, value: str) -> None:
    damage(database, sql, value)
    page = client.get(f"/runs/{example.RUN}")
    assert page.status_code == 503
    assert "The store cannot be read" in page.text
    assert "Traceback" not in page.text


def test_a_broken_store_is_a_clear_503_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(b"this is no database" * 100)
    client = browse(f"sqlite:///{path}", tmp_path)
    for address in ("/runs", f"/runs/{example.RUN}", f"/runs/{example.RUN}/live", f"/runs/{example.RUN}/events"):
        page = client.get(address)
        assert page.status_code == 503
        assert "cannot be opened" in page.text
        assert "Traceback" not in page.text
    for address in ("/", "/systems/synthetic"):
        page = client.get(address)  # what the cards say is shown all the same
        assert page.status_code == 503
        assert "Findings of this machine are missing." in page.text
        assert "Synthetic arms with a known gain" in page.text
    path.unlink()
    example.fill(f"sqlite:///{path}")
    assert client.get(f"/runs/{example.RUN}").status_code == 200
    assert client.get("/").status_code == 200


def test_a_store_that_is_no_url_is_a_503(tmp_path: Path) -> None:
    assert browse("mysql://nowhere/db", tmp_path).get("/runs").status_code == 503


def test_a_fault_of_ours_is_a_page_without_a_traceback(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pages, "catalog", lambda *_: 1 / 0)
    page = client.get("/")
    assert page.status_code == 500
    assert "This page failed" in page.text
    assert "ZeroDivisionError: " not in page.text
    assert all(name in page.headers for name in HEADERS)


# --- what a page may do ---


def every_page(client: TestClient, database: Path) -> dict[str, str]:
    end = example.begin(f"sqlite:///{database}", database.parent)
    paths = ("/", "/?q=zebrafish", "/systems/synthetic", "/systems/floydnet", "/systems/x", "/runs", "/nope")
    paths += (f"/runs/{example.RUN}", f"/runs/{LIVE_RUN}", f"/runs/{LIVE_RUN}/live")
    found = {path: client.get(path).text for path in paths}
    end()
    return found


def test_no_page_needs_inline_script_or_style(client: TestClient, database: Path) -> None:
    for path, text in every_page(client, database).items():
        tags = re.findall(r"<[a-zA-Z][^>]*>", text)
        assert not re.search(r"<style|<script(?! src=\"/static/)|javascript:", text), path
        assert not [tag for tag in tags if re.search(r"""\s(style|on\w+|hx-on[\w:-]*|hx-vals)\s*=""", tag)], path
        loaded = re.findall(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)="([^"]*)""", text)
        assert all(address.startswith("/static/") for address in loaded), path


def test_text_of_a_run_is_escaped_everywhere(client: TestClient, database: Path) -> None:
    evil, run = example.EVIL, "20260501-000000-evil"
    example.fill_evil(f"sqlite:///{database}", run)
    for path in ("/", "/runs", f"/runs/{run}", "/systems/synthetic", f"/?q={evil}", f"/runs?system={evil}"):
        page = client.get(path)
        assert page.status_code == 200, path
        assert evil not in page.text, path
        assert not re.search(r"<script(?! src=\"/static/)", page.text), path
    assert page.text.count("&lt;script&gt;")


ADDRESSES = [
    "/",
    "/runs",
    "/systems/synthetic",
    "/systems/x",
    "/runs/x",
    "/nope",
    "/static/app.css",
    "/static/x",
    "/docs",
]


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    answers = [
        client.get(path),
        client.head(path),
        client.post(path),
        client.get(path, headers={"host": "evil.example"}),
    ]
    for answer in answers:
        assert all(name in answer.headers for name in HEADERS), answer
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
        }


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_only_reading_is_allowed(client: TestClient, method: str) -> None:
    for path in ("/", "/runs", "/systems/synthetic", "/static/app.css", "/nope"):
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_head_answers_like_get(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    assert client.head("/systems/x").status_code == 404
    assert client.head(f"/runs/{example.RUN}/events").headers["content-type"].startswith("text/event-stream")


def test_a_websocket_is_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/"):
        pass
    assert caught.value.code == 1003


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "", "[::2]"])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765", "[::1]"])
def test_loopback_host_names_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/nope", headers={"host": host}).status_code == 404


def test_a_named_host_is_taken(tmp_path: Path) -> None:
    client = browse(f"sqlite:///{tmp_path / 'x.sqlite'}", tmp_path, hosts=["lab.example"])
    assert client.get("/nope", headers={"host": "lab.example:8765"}).status_code == 404
    assert client.get("/nope", headers={"host": "other.example"}).status_code == 400


@pytest.mark.parametrize(
    ("name", "kind"), [("htmx.min.js", "javascript"), ("live.js", "javascript"), ("app.css", "css")]
)
def test_static_files_come_from_the_package(client: TestClient, name: str, kind: str) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 200
    assert kind in answer.headers["content-type"]


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/%2e%2e%2fapp.py"])
def test_nothing_but_static_files_can_be_fetched(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_licence_of_htmx_is_beside_it(client: TestClient) -> None:
    text = client.get("/static/LICENSES").text
    assert "Zero-Clause BSD" in text
    assert "2.0.11" in text
    assert 'version:"2.0.11"' in client.get("/static/htmx.min.js").text


# --- the live page ---


def parsed_events(text: str) -> list[tuple[str, str]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines()]
        name = next((value for key, _, value in lines if key == "event"), "")
        found.append((name, "\n".join(value for key, _, value in lines if key == "data")))
    return found


def test_live_page_shows_what_the_run_does(client: TestClient, database: Path) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    text = client.get(f"/runs/{LIVE_RUN}/live").text
    for part in ("<strong>1 of 10</strong>", "about 75 s left", "synthetic/score/plain/block1/system", "half way"):
        assert part in text
    assert f'data-events="/runs/{LIVE_RUN}/events"' in text
    assert '<noscript><meta http-equiv="refresh"' in text
    assert example.EVIL not in text
    end()
    answer = client.get(f"/runs/{LIVE_RUN}/live")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/runs/{LIVE_RUN}")


def test_events_end_when_the_run_ends(client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    waits: list[float] = []

    async def end_at_the_third_wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            await anyio.to_thread.run_sync(end)

    monkeypatch.setattr(stream, "pause", end_at_the_third_wait)
    answer = client.get(f"/runs/{LIVE_RUN}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    events = parsed_events(answer.text)
    assert [name for name, _ in events] == ["", "state", "state", "end"]
    assert "about 75 s left" in events[1][1]
    assert example.EVIL not in answer.text
    assert events[-1][1] == "ended"
    assert len(waits) == 3
    assert client.app.state.streams.open == 0


def test_a_quiet_stream_sends_heartbeats(client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    waits = iter((False, False, True))

    async def pause(seconds: float) -> None:
        if next(waits):
            await anyio.to_thread.run_sync(end)

    monkeypatch.setattr(stream, "pause", pause)
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.0)
    assert client.get(f"/runs/{LIVE_RUN}/events").text.count(": still here\n\n") == 2


def test_a_run_whose_process_is_gone_is_given_up(
    client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    (database.parent / "live" / f"{LIVE_RUN}.json").write_text('{"pid": "odd"}')
    assert "No process of this machine" in client.get(f"/runs/{LIVE_RUN}/live").text
    monkeypatch.setattr(stream, "SILENCE_S", 0.0)
    assert parsed_events(client.get(f"/runs/{LIVE_RUN}/events").text)[-1] == ("end", "silent")
    end()


def test_a_store_that_fails_meanwhile_is_told(
    client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = example.begin(f"sqlite:///{database}", database.parent)
    monkeypatch.setattr(stream, "STORE_EVERY_S", 0.0)

    async def pause(seconds: float) -> None:
        damage(database, "UPDATE trials SET record = 'not json'")

    monkeypatch.setattr(stream, "pause", pause)
    name, text = parsed_events(client.get(f"/runs/{LIVE_RUN}/events").text)[-1]
    assert name == "trouble"
    assert "damaged" in text
    end()


def test_too_many_streams_are_refused(client: TestClient) -> None:
    client.app.state.streams.open = stream.MAX_STREAMS
    answer = client.get(f"/runs/{example.RUN}/events")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert client.app.state.streams.open == stream.MAX_STREAMS == 64


def test_a_client_that_leaves_ends_its_stream() -> None:
    closed = []

    async def endless():
        try:
            while True:
                yield "event: state\ndata: x\n\n"
                await anyio.sleep(0)
        finally:
            closed.append(True)

    async def visit(count: StreamCount) -> None:
        sent = anyio.Event()

        async def receive() -> dict[str, str]:
            await sent.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            assert count.open == 1
            if message["type"] == "http.response.body":
                sent.set()

        await LiveStream(endless(), count)({"type": "http", "method": "GET"}, receive, send)

    count = StreamCount()
    anyio.run(visit, count)
    assert closed == [True]
    assert count.open == 0


# --- serving ---


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_a_host_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(BadInput, match="--allow-remote"):
        serve(host=host)


def test_a_taken_port_names_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"port {port}.*--port 0"):
            serve(port=port, store_url=f"sqlite:///{tmp_path / 'x.sqlite'}")


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="between 0 and 65535"):
        serve(port=port, store_url=f"sqlite:///{tmp_path / 'x.sqlite'}")


def test_a_store_url_that_is_none_is_refused_before_serving() -> None:
    with pytest.raises(BadInput, match="not a database URL"):
        serve(port=0, store_url="what")


def test_serve_tells_its_address_once_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    servers, told, ready = [], [], threading.Event()
    plain = serve_module._Server

    def remember(*arguments: object) -> object:
        servers.append(plain(*arguments))
        return servers[0]

    def on_ready(url: str) -> None:
        told.append(url)
        ready.set()

    monkeypatch.setattr(serve_module, "_Server", remember)
    path = tmp_path / "broken.sqlite"
    path.write_bytes(b"no database" * 100)  # served all the same: the pages say what is wrong
    thread = threading.Thread(
        target=serve, kwargs={"port": 0, "store_url": f"sqlite:///{path}", "on_ready": on_ready}, daemon=True
    )
    thread.start()
    assert ready.wait(20)
    answer = httpx.get(told[0] + "runs", trust_env=False)
    servers[0].should_exit = True
    thread.join(10)
    assert answer.status_code == 503
    assert "server" not in answer.headers
    assert not thread.is_alive()


@pytest.mark.parametrize(("module", "package"), [("app", "fastapi"), ("serve", "uvicorn")])
def test_without_the_extra_the_install_line_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.delitem(sys.modules, f"heliograph.web.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'heliograph\[web\]'"):
        importlib.import_module(f"heliograph.web.{module}")
