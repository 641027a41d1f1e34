"""The web application: routes, error pages, and the guards before them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from heliograph.errors import MissingExtra

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, RedirectResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.staticfiles import StaticFiles
except ImportError:
    raise MissingExtra("fastapi", "web") from None

import jinja2
from markupsafe import Markup

import heliograph
from heliograph.catalog.card import FAMILIES
from heliograph.catalog.registry import load_cards
from heliograph.trials.sentences import figure_text, here_text
from heliograph.trials.store import data_folder as default_data_folder
from heliograph.web.guard import SECURITY_HEADERS, ReadOnlyGuard
from heliograph.web.pages import FAMILY_LINES, RUNS_SHOWN, VERDICTS, Pages
from heliograph.web.reader import NotFoundError, Reader, UnreadableError
from heliograph.web.stream import LiveStream, LiveView, StreamCount, Watch, live_events

__all__ = ["LOOPBACK_HOSTS", "create_app"]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_HERE = Path(__file__).parent
_GLYPHS = {"holds": "✓", "weaker": "◐", "fails": "✗", "undecided": "?", "void": "–", "not run": "·"}


def create_app(store_url: str | None = None, data_folder: Path | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The application that shows the catalog and the runs of a store; it writes nothing.

    Args:
        store_url: the store; the default store where ``None``. It is opened at the first page that needs it.
        data_folder: where running checks leave their live files; heliograph's data folder where ``None``.
        hosts: names beside those of loopback by which a browser may call this server.

    Raises:
        CardError: a built-in card is invalid.
    """
    pages = Pages(Reader(store_url), load_cards())
    folder = data_folder or default_data_folder()
    templates = _Templates()
    streams = StreamCount()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=_import_charts, daemon=True).start()
        yield
        pages.reader.close()

    app = FastAPI(title="heliograph", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.streams = streams
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_HOSTS, *hosts], www_redirect=False)
    app.add_middleware(ReadOnlyGuard)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    _add_error_pages(app, templates)
    show = partial(app.api_route, methods=["GET", "HEAD"], response_class=HTMLResponse)

    @show("/")
    def catalog(q: str = "", family: str = "", verdict: str = "") -> Response:
        page = pages.catalog(q, family, verdict)
        return templates.page("catalog.html", 503 if page.trouble else 200, page=page)

    @show("/systems/{slug}")
    def system(slug: str) -> Response:
        page = pages.system(slug)
        return templates.page("system.html", 503 if page.trouble else 200, page=page)

    @show("/runs")
    def runs(system: str = "", limit: str = "") -> Response:
        shown = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 6 else RUNS_SHOWN
        return templates.page("runs.html", page=pages.runs(system, shown))

    @show("/runs/{run}")
    def one_run(run: str) -> Response:
        page = pages.run(run)
        if page.header.run != run:
            return RedirectResponse(f"/runs/{quote(page.header.run, safe='')}", 307)
        return templates.page("run.html", page=page)

    @show("/runs/{run}/live")
    def live(run: str) -> Response:
        view = Watch(pages.reader, folder, pages.reader.run(run).header.run).look()
        if view.state == "ended":
            return RedirectResponse(f"/runs/{quote(view.run, safe='')}", 307)
        return templates.page("live.html", view=view)

    @show("/runs/{run}/events")
    def events(run: str) -> Response:
        watch = Watch(pages.reader, folder, pages.reader.run(run).header.run)
        return LiveStream(live_events(watch, templates.live_part), streams)

    return app


class _Templates:
    """The package's templates; everything that is not markup of ours is escaped."""

    def __init__(self) -> None:
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters |= {
            "when": _when,
            "figure": figure_text,
            "here": lambda finding: here_text(finding.to_json()),
            "segment": lambda text: quote(str(text), safe=""),
        }
        self.environment.globals |= {
            "version": heliograph.__version__,
            "families": FAMILIES,
            "family_lines": FAMILY_LINES,
            "verdicts": VERDICTS,
            "glyphs": _GLYPHS,
        }

    def page(self, name: str, status_code: int = 200, **data: Any) -> HTMLResponse:
        text = self.environment.get_template(name).render(**data)
        return HTMLResponse(text, status_code, headers={"cache-control": "no-cache"})

    def live_part(self, view: LiveView) -> str:
        return self.environment.get_template("live_part.html").render(view=view)

    def error(self, status: int, title: str, text: str) -> HTMLResponse:
        return self.page("error.html", status, status=status, title=title, text=text)


def _add_error_pages(app: FastAPI, templates: _Templates) -> None:
    @app.exception_handler(NotFoundError)
    def not_found(_: Request, error: Exception) -> Response:
        return templates.error(404, "Not here", str(error))

    @app.exception_handler(UnreadableError)
    def unreadable(_: Request, error: Exception) -> Response:
        return templates.error(503, "The store cannot be read", str(error))

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 404:
            return templates.error(404, "Not here", f"There is no page {request.url.path[:200]}")
        return templates.error(status, "Refused", str(getattr(error, "detail", "")))

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> Response:
        # This answer is made outside the guard, so it carries the headers itself.
        text = f"A fault of heliograph ({type(error).__name__}); its traceback is in the terminal of the server."
        response = templates.error(500, "This page failed", text)
        response.headers.update(SECURITY_HEADERS)
        return response


def _when(moment: str) -> Markup:
    """An ISO time as people read it."""
    date, _, clock = moment.partition("T")
    return Markup('<time datetime="{}">{} {} UTC</time>').format(moment, date, clock[:5])


def _import_charts() -> None:
    """Imports the chart library before the first page needs it; it takes a second."""
    from heliograph.trials import charts  # noqa: F401
