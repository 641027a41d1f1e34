"""The pages in a real browser: nothing is blocked by their own policy, and they work by keyboard and without script."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from heliograph.trials.live import LiveFile, read_live
from heliograph.web import app as app_module
from heliograph.web import create_app
from tests.web import example

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

pytestmark = pytest.mark.integration

CHROMIUM = os.environ.get("HELIOGRAPH_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
LIVE_RUN = "20260302-090000-synthetic-live"
PAGES = {
    "catalog": "/",
    "search": "/?q=kv+cache",
    "nothing": "/?q=xyzzyplugh",
    "system": "/systems/synthetic",
    "planned": "/systems/grover",
    "runs": "/runs",
    "run": f"/runs/{example.RUN}",
    "evil": "/runs/20260501-000000-evil",
    "live": f"/runs/{LIVE_RUN}/live",
    "missing": "/systems/nope",
}
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (e) => console.error("CSP", e.violatedDirective, e.blockedURI));
"""


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed; name a Chromium in HELIOGRAPH_CHROMIUM")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'runs.sqlite'}"
    example.fill(url)
    return url


@pytest.fixture
def site(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(app_module, "load_cards", example.cards)
    with example.serving(create_app(store_url, tmp_path)) as address:
        yield address


@contextlib.contextmanager
def watched(browser, **options: object):
    """A page whose console errors and policy violations fail the test."""
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    context.add_init_script(REPORT_VIOLATIONS)
    page, errors = context.new_page(), []
    page.on("console", lambda m: errors.append(f"{page.url}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(f"{page.url}: {e}"))
    # A page that is left gives up what it still loads, its icon for one: that is no failure of the site.
    page.on(
        "requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else errors.append(f"{r.url}: {r.failure}")
    )
    yield page
    context.close()
    # The browser itself logs that a page answered 404.
    assert [e for e in errors if "status of 404" not in e or "/systems/nope" not in e] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_no_page_breaks_its_own_policy_or_its_width(
    browser, site: str, store_url: str, tmp_path: Path, scheme: str, width: int
) -> None:
    end = example.begin(store_url, tmp_path)
    example.fill_evil(store_url, "20260501-000000-evil")
    with watched(browser, color_scheme=scheme, viewport={"width": width, "height": 844}) as page:
        for name, path in PAGES.items():
            page.goto(site + path, wait_until="load")
            assert page.title() != "owned", name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            for details in page.locator("details").all():
                details.evaluate("element => element.open = true")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            red = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
            assert red < 60 if scheme == "dark" else red > 200
    end()


def test_these_tests_would_see_a_violation(browser, site: str) -> None:
    with pytest.raises(AssertionError, match="Content Security Policy"), watched(browser) as page:  # noqa: PT012
        page.goto(site)
        page.evaluate("document.body.setAttribute('style', 'color: red')")


def test_typing_changes_the_list_without_a_reload(browser, site: str) -> None:
    with watched(browser) as page:
        page.goto(site)
        expect(page.locator(".system")).to_have_count(len(example.cards()))
        page.evaluate("window.same = true")
        page.get_by_label("Search").press_sequentially("zebrafish", delay=20)
        expect(page.locator(".system")).to_have_count(1)
        expect(page.get_by_role("status")).to_contain_text("1 system of")
        expect(page).to_have_url(re.compile(r"\?q=zebrafish"))
        expect(page.get_by_label("Search")).to_be_focused()
        page.get_by_label("Search").fill("")
        expect(page.locator(".system")).to_have_count(len(example.cards()))
        assert page.evaluate("window.same")


def test_filters_work_by_keyboard(browser, site: str) -> None:
    with watched(browser) as page:
        page.goto(site)
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.get_by_label("Search").focus()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Family")).to_be_focused()
        page.keyboard.type("graphs")
        graphs = [card.slug for card in example.cards().values() if card.family == "graphs"]
        expect(page.locator(".system")).to_have_count(len(graphs))
        page.keyboard.press("Tab")
        expect(page.get_by_label("Verdict")).to_be_focused()
        page.keyboard.press("ArrowDown")
        expect(page.locator(".system")).not_to_have_count(len(graphs))
        expect(page.locator('.system[href="/systems/synthetic"]')).to_have_count(1)
        left = page.locator(".system").count()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(r"/systems/\w+$"))
        page.go_back()
        expect(page.locator(".system")).to_have_count(left)


def test_everything_can_be_read_without_script(browser, site: str, store_url: str, tmp_path: Path) -> None:
    end = example.begin(store_url, tmp_path)
    with watched(browser, java_script_enabled=False) as page:
        page.goto(site)
        page.get_by_label("Search").fill("zebrafish")
        page.get_by_label("Family").select_option("graphs")
        page.get_by_role("button", name="Show").click()
        expect(page.locator(".system")).to_have_count(1)
        page.locator(".system").click()
        expect(page.locator("svg")).to_have_count(1)
        page.get_by_role("link", name="run of").first.click()
        page.get_by_text("Every block's value").click()
        expect(page.locator("details[open] svg")).to_be_visible()
        page.get_by_role("navigation").get_by_role("link", name="Runs").click()
        page.get_by_role("link", name="watch").click()
        expect(page.locator("#live strong")).to_have_text("1 of 10")
        end()
        expect(page).to_have_url(f"{site}/runs/{LIVE_RUN}")  # the page asks again by itself


def test_live_page_follows_a_run_to_its_findings(browser, site: str, store_url: str, tmp_path: Path) -> None:
    environment = os.environ | {"HELIOGRAPH_TEST_MARKS": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.web.example", store_url, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process,
        watched(browser) as page,
    ):
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        page.goto(f"{site}/runs/{run}/live")
        expect(page.locator("#live code").first).to_contain_text("synthetic/score")
        seen = page.locator("#live strong").inner_text()
        expect(page.locator("#live strong")).not_to_have_text(seen)
        expect(page.locator("#live tbody tr").first).to_be_visible()
        expect(page).to_have_url(f"{site}/runs/{run}", timeout=60_000)
        expect(page.locator("h3 .pill").first).to_be_visible()
    assert process.returncode == 0


def test_text_of_a_running_check_does_not_run(browser, site: str, store_url: str, tmp_path: Path) -> None:
    end = example.begin(store_url, tmp_path)
    with watched(browser) as page:
        page.goto(f"{site}/runs/{LIVE_RUN}/live")
        state = read_live(tmp_path, LIVE_RUN)
        assert state is not None
        LiveFile(tmp_path, LIVE_RUN).write(replace(state, done=2), force=True)
        expect(page.locator("#live strong")).to_have_text("2 of 10")  # so this came by the stream, not with the page
        expect(page.locator("#live pre")).to_contain_text(example.EVIL)
        assert page.title().startswith("Live: synthetic")
        end()
        expect(page).to_have_url(f"{site}/runs/{LIVE_RUN}")


def test_picture_for_the_docs(browser, site: str) -> None:
    """Writes ``docs/images/web.png`` where HELIOGRAPH_SCREENSHOT is set.

    ``1`` takes the example's run; a path, such as ``/systems/floydnet``, takes that page of your own store.
    """
    wanted = os.environ.get("HELIOGRAPH_SCREENSHOT")
    if not wanted:
        pytest.skip("HELIOGRAPH_SCREENSHOT is not set")
    target = Path(__file__).parents[2] / "docs" / "images" / "web.png"
    target.parent.mkdir(exist_ok=True)
    own = example.serving(create_app()) if wanted.startswith("/") else contextlib.nullcontext(site)
    with own as address, watched(browser, viewport={"width": 1100, "height": 800}) as page:
        page.goto(address + (wanted if wanted.startswith("/") else f"/runs/{example.RUN}"))
        page.screenshot(path=target)
    assert target.stat().st_size < 300_000
