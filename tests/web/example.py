"""A system with a known check, a store that holds its runs, and a server of both: what the web tests look at.

Run as a program, it runs the synthetic check that leaves marks, and writes its live file as the command line does:
``python -m tests.web.example STORE_URL FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from heliograph.catalog.card import Card, ClaimCard
from heliograph.catalog.registry import load_cards
from heliograph.trials.judge import ControlResult, Finding, Judgement
from heliograph.trials.live import LiveFile, LiveState
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.store import Store

RUN = "20260301-120000-synthetic-aaaa"
EVIL = '<script>document.title="owned"</script>'


def synthetic_card() -> Card:
    claim: dict[str, Any] = {"metric": "score", "direction": "higher", "baseline": "the baseline", "workload": "plain"}
    return Card(
        slug="synthetic",
        title="Synthetic arms with a known gain",
        family="graphs",
        year=2026,
        arxiv="2601.00001",
        code="example/synthetic",
        code_licence="Apache-2.0",
        status="working",
        summary="Every arm reports a score whose gain is known beforehand. For tests of the pages only.",
        keywords=("zebrafish", "oracle", "noise"),
        public=("Synthetic",),
        check_package="tests.trials.synthetic",
        claims=(
            ClaimCard(id="better_score", statement="The system scores higher.", paper="1.9 points", value=1.9, **claim),
            ClaimCard(id="agreement", statement="The fast path agrees with the plain one.", paper="exact", **claim),
            ClaimCard(id="never_run", statement="A claim that nothing has measured.", paper="not stated", **claim),
        ),
    )


def cards() -> dict[str, Card]:
    return {"synthetic": synthetic_card(), **load_cards()}


def header(run: str = RUN, slug: str = "synthetic", **changes: Any) -> RunHeader:
    machine = {"label": "2 cores of a test, 8 GiB", "cpu": "test"}
    planned = [{"id": r.trial, "slug": slug} for r in records(slug)]
    made = RunHeader(
        run=run,
        slugs=(slug,),
        preset="laptop",
        command=f"heliograph check {slug} --preset laptop",
        started_at="2026-03-01T12:00:00.000+00:00",
        machine=machine,
        versions={"python": "3.11"},
        key={slug: {"plan": "0"}},
        settings={"planned": planned},
    )
    return replace(made, **changes)


def records(slug: str = "synthetic") -> list[TrialRecord]:
    def record(block: int, arm: str, value: float, **more: Any) -> TrialRecord:
        return TrialRecord(
            trial=f"{slug}/score/plain/block{block}/{arm}",
            slug=slug,
            experiment="score",
            workload="plain",
            block=block,
            seed=block,
            contender=arm,
            status="ok",
            metrics={arm: {"score": value, "seconds": 0.5}},
            wall_s=0.5,
            cpu_s=0.4,
            peak_bytes=5 * 2**20,
            started_at=f"2026-03-01T12:00:0{block}+00:00",
            **more,
        )

    curve = {"curves": {"loss": [[0, 1.0], [1, 0.5], [2, 0.3]]}}
    drawing = {
        "drawings": [
            [{"caption": "a triangle", "positions": [[-1, 1], [0, -1], [1, 1]], "edges": [[0, 1], [1, 2], [2, 0]]}]
        ]
    }
    gains = (1.9, 2.1, 2.05, 1.95, 2.0)
    rows = [record(b, "baseline", 0.05 * b) for b in range(5)]
    return [record(b, "system", gain, detail=curve | drawing if b == 0 else {}) for b, gain in enumerate(gains)] + rows


def judgement(slug: str = "synthetic", **changes: Any) -> Judgement:
    better = Finding(
        system=slug,
        claim="better_score",
        kind="superior",
        metric="score of a synthetic arm",
        direction="higher",
        contender="system",
        baseline="baseline",
        workload="plain",
        paper="1.9 points",
        paper_reached=True,
        ours=1.9,
        low=1.7,
        high=2.1,
        level=0.95,
        blocks=5,
        threshold=1.0,
        unit="",
        provenance="measured",
        verdict="holds",
        note="the whole interval [1.7, 2.1] reaches our threshold 1",
        effect="difference",
        values={"system": 2.0, "baseline": 0.1},
        deviation=0.1,
        cannot_show="anything about the world",
    )
    nothing: dict[str, Any] = {"low": None, "high": None, "level": None, "threshold": None, "paper_reached": None}
    exact = replace(
        better, claim="agreement", kind="exact", verdict="fails", ours=0.5, note="1 of 2 cases agree exactly", **nothing
    )
    twins = ControlResult(slug, "twins", True, "two equal arms tie", -0.1, 0.1, 0.5, "difference", "inside the margin")
    return Judgement((replace(better, **changes), exact), (twins,))


def fill(url: str) -> None:
    """One finished run of the synthetic system."""
    store = Store(url)
    store.create_run(header())
    for record in records():
        store.append(RUN, record)
    store.save_judgement(RUN, "synthetic", judgement())
    store.finish(RUN, "finished")
    store.close()


def fill_evil(url: str, run: str) -> None:
    """A finished run in which every text is markup."""
    store, evil = Store(url), EVIL
    made = header(run, command=evil, preset=evil[:19], versions={evil: evil}, started_at=f"2026-05-01T{evil}"[:40])
    store.create_run(replace(made, slugs=("synthetic", "<script>"), machine={"label": evil, evil: evil}))
    record = records()[0]
    drawing = {"caption": evil, "positions": [[0, 0], [1, 1]], "edges": [[0, 1]]}
    told = replace(record, trial=f"synthetic/{evil}", workload=evil, contender=evil, said=(evil,), started_at=evil)
    metrics = {evil: {"score": 1.0, evil: 2.0}, "baseline": {"score": 0.5}}
    store.append(
        run, replace(told, metrics=metrics, detail={"drawings": [[drawing]], "curves": {evil: [[0, 1], [1, 2]]}})
    )
    store.append(run, replace(record, trial="synthetic/crash", status="crashed", tail=evil, metrics={}))
    texts = ("note", "metric", "paper", "unit", "workload", "cannot_show", "contender", "baseline", "provenance")
    judged = judgement(**dict.fromkeys(texts, evil), values={evil: 1.0})
    controls = tuple(replace(c, name=evil, text=evil, note=evil) for c in judged.controls)
    store.save_judgement(run, "synthetic", replace(judged, controls=controls))
    store.finish(run, evil[:19])
    store.close()


def begin(url: str, folder: Path, run: str = "20260302-090000-synthetic-live") -> Callable[[], None]:
    """A run that a process of ours (this one) claims to be running; the returned function ends it."""
    store, live = Store(url), LiveFile(folder, run)
    store.create_run(header(run, started_at="2026-03-02T09:00:00.000+00:00"))
    store.append(run, records()[0])
    said = ("block 0 agrees", EVIL)
    state = LiveState(run, os.getpid(), 1, 10, ("synthetic/score/plain/block1/system",), "half way", said, 75.0, 0.0)
    live.write(state, force=True)

    def end() -> None:
        store.save_judgement(run, "synthetic", judgement())
        store.finish(run, "finished")
        store.close()
        live.remove()

    return end


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application on a free port of loopback; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def main(url: str, folder: Path) -> None:
    """Runs the synthetic check that takes its time, as ``heliograph check`` does."""
    from heliograph.trials.header import new_header
    from heliograph.trials.local import Event, LocalExecutor
    from heliograph.trials.plan import make_plan
    from heliograph.trials.runner import Run

    plan = make_plan("tests.trials.synthetic:MARKED", "laptop")
    run = new_header([plan], "heliograph check synthetic", {})
    live, done, running, said = LiveFile(folder, run.run), 0, dict[str, None](), list[str]()

    def show(event: Event) -> None:
        nonlocal done
        if event.kind == "started":
            if not done and not running:
                print(run.run, flush=True)
            running[event.trial.id] = None
        if event.kind == "finished":
            running.pop(event.trial.id, None)
            done += 1
        if event.kind == "said":
            said.append(event.text)
        state = LiveState(
            run.run, os.getpid(), done, len(plan.trials), tuple(running), event.text, tuple(said[-5:]), 3.0, time.time()
        )
        live.write(state, force=True)

    Run(run, [plan], {}).execute(LocalExecutor(("tests.trials.synthetic",), workers=1), Store(url), folder, show)
    live.remove()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
