"""A running check in the terminal: what is said, how far it is, and the findings at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from heliograph.catalog.card import Card
from heliograph.trials.local import Event
from heliograph.trials.plan import Plan
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.report import guarding, paper_value
from heliograph.trials.runner import Outcome
from heliograph.trials.sentences import axis_chart, sentence
from heliograph.trials.session import RunProgress

__all__ = ["VERDICT_STYLES", "RunWatcher", "duration_text", "print_findings", "runs_table"]

VERDICT_STYLES = {
    "holds": "bold green",
    "weaker": "bold yellow",
    "fails": "bold red",
    "undecided": "bold blue",
    "void": "bold bright_black",
}


def duration_text(seconds: float | None) -> str:
    """Seconds as people say them: ``"42 s"``, ``"3 min 05 s"``."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


class RunWatcher:
    """Shows a run on a terminal, or as plain lines where there is none.

    Args:
        console: where to draw; standard error, so that results may be piped.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: RunProgress | None = None
        self._bar = Progress(
            TextColumn("  "),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[bright_black]{task.fields[current]}"),
            TextColumn("[cyan]{task.fields[latest]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RunWatcher:
        """Starts drawing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops drawing."""
        self._bar.stop()

    def start(self, header: RunHeader, progress: RunProgress, done: int) -> None:
        """Announces a run."""
        self._progress = progress
        kept = f", {done} kept from before" if done else ""
        expected = duration_text(sum(progress.left.values()))
        self.console.print(
            f"[bold]{' '.join(header.slugs)}[/] at [bold]{header.preset}[/]: {len(progress.planned)} trials{kept}, "
            f"about {expected} on {escape(header.machine['label'])}. Run {header.run}.",
            highlight=False,
        )
        self._task = self._bar.add_task(
            "", total=len(progress.planned), completed=progress.done, left="", current="starting", latest=""
        )

    def event(self, event: Event) -> None:
        """Shows one event."""
        if self._progress is None or self._task is None:
            return
        if event.kind == "said":
            self.console.print(f"  {escape(event.text)}", highlight=False)
        record = event.record
        if record is not None and record.status != "ok":
            last = (record.tail.strip().splitlines() or [""])[-1]
            self.console.print(f"  [red]{record.trial}: {record.status}[/]: {escape(last[:200])}", highlight=False)
        elif record is not None and not self.console.is_terminal:
            self.console.print(f"  {_plain(record, self._progress)}", highlight=False, soft_wrap=True)
        running = list(self._progress.running)
        left = self._progress.seconds_left
        self._bar.update(
            self._task,
            completed=self._progress.done,
            left="" if left is None else f"{duration_text(left)} left",
            current=running[-1].partition("/")[2] if running else "",
            latest=self._progress.latest[:60],
        )


def _plain(record: TrialRecord, progress: RunProgress) -> str:
    from heliograph.trials.session import latest_metric

    return f"{progress.done}/{len(progress.planned)} {record.trial} {record.wall_s:.1f} s  {latest_metric(record)}"


def print_findings(console: Console, outcome: Outcome, plans: Sequence[Plan], cards: Mapping[str, Card]) -> None:
    """Each claim as a line, a chart and a sentence; the sentence of the last claim is the last line."""
    for plan in plans:
        judgement = outcome.judgements[plan.check.slug]
        card = cards.get(plan.check.slug)
        for control in judgement.controls:
            if control.passed is not None:
                word = "[green]behaved[/]" if control.passed else "[red]misbehaved[/]"
                console.print(f"control {word}: {escape(control.text)} ({escape(control.note)})", highlight=False)
        for finding in judgement.findings:
            row = finding.to_json()
            controls = guarding(plan.check, finding.claim, judgement.controls)
            lines = axis_chart(row, controls, paper_value(finding, plan.check, card), width=_chart_width(console))
            title = Text.assemble((f"{finding.claim}: ", "bold"), (finding.verdict, VERDICT_STYLES[finding.verdict]))
            body = Text(sentence(row, plan.check.tuning))
            console.print()
            console.print(Group(title, *(Padding(Text(line, no_wrap=True), (0, 2)) for line in lines), body))
    for warning in outcome.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)


def _chart_width(console: Console) -> int:
    return max(24, min(56, console.width - 44))


def runs_table(rows: Sequence[Any]) -> Table:
    """The list of runs."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "preset", "status", "trials", "verdicts"):
        table.add_column(name, no_wrap=name != "verdicts", overflow="fold")
    for row in rows:
        verdicts = Text(", ").join(
            Text.assemble(f"{claim.partition('/')[2]} ", (verdict, VERDICT_STYLES[verdict]))
            for claim, verdict in row.verdicts.items()
        )
        table.add_row(row.run, row.preset, row.status, f"{row.trials}/{row.planned}", verdicts)
    return table
