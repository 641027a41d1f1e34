"""``heliograph agents error_cascade fit|risk|replay|plot LOG``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.error_cascade.claims import Claim
    from heliograph.agents.error_cascade.logs import MessageLog

__all__ = ["error_cascade_app"]

error_cascade_app = typer.Typer(
    help="How claims spread among agents: rates, risk, lineage, and what a governor would have stopped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
LogPath = Annotated[Path, typer.Argument(help="Messages as JSON lines, or a framework's transcript.")]
DRAWS = 50
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Format = Annotated[
    str, typer.Option("--format", help="auto, plain, autogen, camel, crewai, langchain, langgraph or metagpt.")
]
About = Annotated[str, typer.Option(help="Only claims with this text.")]


def _read(path: Path, format: str) -> MessageLog:
    try:
        from heliograph.agents.error_cascade.logs import read_log
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "rfc8785").split(".")[0], "agents") from error
    log = read_log(path, format)  # type: ignore[arg-type]
    for line, why in log.skipped[:10]:
        typer.echo(f"{path}:{line}: skipped: {why}", err=True)
    if len(log.skipped) > 10:
        typer.echo(f"{path}: {len(log.skipped)} lines skipped in all", err=True)
    return log


def _print(value: Any) -> None:
    """Numbers that are none become null: JSON has no NaN."""

    def clean(part: Any) -> Any:
        if isinstance(part, float) and part != part:
            return None
        if isinstance(part, dict):
            return {name: clean(item) for name, item in part.items()}
        return [clean(item) for item in part] if isinstance(part, list | tuple) else part

    typer.echo(json.dumps(clean(value), indent=2, allow_nan=False))


def _keep(about: str) -> Any:
    wanted = about.casefold()
    return (lambda claim: wanted in f"{claim.said()} {claim.object}".casefold()) if about else None


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


@error_cascade_app.command()
def fit(
    log: LogPath,
    format: Format = "auto",
    about: About = "",
    form: Annotated[str, typer.Option(help="product, poisson or logistic.")] = "product",
    as_json: AsJson = False,
) -> None:
    """Transmission and recovery, by likelihood, and by the paper's protocol beside it."""
    from dataclasses import asdict

    read = _read(log, format)
    from heliograph.agents.error_cascade.fit import fit_cascade
    from heliograph.agents.error_cascade.risk import traces

    found = traces(read, keep=_keep(about))
    mean = found.adjacency.mean(axis=0)
    fits = {}
    if form != "logistic":
        fits["likelihood"] = fit_cascade(found.adoption, found.adjacency, form=form)  # type: ignore[arg-type]
    fits["seeded"] = fit_cascade(found.adoption, mean, form=form, init="seeded", draws=DRAWS)  # type: ignore[arg-type]
    if found.adoption.shape[1] > 2:
        fits["homogeneous"] = fit_cascade(found.adoption, mean, form=form, init="homogeneous", draws=DRAWS)  # type: ignore[arg-type]
    if as_json:
        _print({"agents": found.agents, "cascades": len(found.claims), "skipped": len(read.skipped),
                "fits": {name: asdict(one) for name, one in fits.items()}})  # fmt: skip
        return
    typer.echo(f"{len(found.claims)} cascades, {len(found.agents)} agents, {found.adoption.shape[1]} rounds")
    for name, one in fits.items():
        rates = f"beta {one.beta:.3f}{_range(one.beta_interval)}, delta {one.delta:.3f}{_range(one.delta_interval)}"
        typer.echo(f"{name:<12} {rates}, mean squared error {one.mse:.2e}")


@error_cascade_app.command()
def risk(
    log: LogPath,
    format: Format = "auto",
    about: About = "",
    horizon: Annotated[int, typer.Option(help="Rounds to look ahead.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Will a false claim spread, and from whom furthest?"""
    read = _read(log, format)
    from heliograph.agents.error_cascade.risk import CascadeRisk

    found = CascadeRisk.from_log(read, keep=_keep(about), horizon=horizon)
    if as_json:
        _print({**found.to_plain(), "skipped": len(read.skipped)})
        return
    marks = found.indicators
    typer.echo(f"beta {found.beta:.3f}, delta {found.delta:.3f} from {found.cascades} cascades")
    typer.echo(f"spectral margin {marks.margin:+.3f}; gain within {horizon} rounds {marks.gain:.2f}")
    if marks.reproduction is not None:
        typer.echo(f"an adoption causes {marks.reproduction:.2f} more")
    for agent, gain, coverage in found.seeds():
        typer.echo(f"  {agent:<24} gain {gain:6.2f}, a claim from here reaches {coverage:.0%}")


@error_cascade_app.command()
def replay(
    log: LogPath,
    format: Format = "auto",
    trusted: Annotated[
        Path | None, typer.Option(help="What is true: one sentence a line, or a JSON list of claims.")
    ] = None,
    trace: Annotated[str, typer.Option(help="Also say where claims with this text entered.")] = "",
    lineage: Annotated[Path | None, typer.Option(help="Write the lineage graph here, as JSON lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a governor would have stopped, and where it had come from. Exit 1 if there is such a claim."""
    from dataclasses import asdict

    read = _read(log, format)
    from heliograph.agents.error_cascade.claims import EveryClaim
    from heliograph.agents.error_cascade.governor import Governor
    from heliograph.agents.error_cascade.replaying import replay as send

    governor = Governor("speed", claims=EveryClaim(), hold=0)
    for claim in () if trusted is None else _trusted(trusted):
        governor.trust(claim)
    every = max(1, len(read.messages) // 10)
    show = len(read.messages) >= 5000

    def progress(done: int, total: int) -> None:
        if show and done % every == 0:
            typer.echo(f"{done} of {total} messages", err=True)

    found = send(read, governor, progress=progress)
    traced = found.lineage.roots(trace) if trace else ()
    if lineage is not None:
        _write(lineage, found.lineage.to_jsonl())

    def plain(root: Any) -> dict[str, Any]:
        return {**asdict(root), "claim": {"id": root.claim.id, "text": root.claim.said()}}

    if as_json:
        refused = [
            {"line": one.line, "message": one.message, "sender": one.sender, "round": one.round, "claim": one.claim.id,
             "text": one.claim.said(), "why": one.why}
            for one in found.refused
        ]  # fmt: skip
        _print({"refused": refused, "roots": [plain(root) for root in found.roots],
                "traced": [plain(root) for root in traced], "counts": asdict(found.counts),
                "too_large": found.too_large, "skipped": len(read.skipped)})  # fmt: skip
    else:
        for one in found.refused:
            typer.echo(f"line {one.line}: {one.sender} says: {one.claim.said()} ({one.why})")
        for root in (*found.roots, *traced):
            reach = f"reached {len(root.agents_reached)} agents and {root.claims_reached} claims"
            typer.echo(f"entered with {root.agent} in message {root.message}: {root.claim.said()}; {reach}")
        for line in found.too_large:
            typer.echo(f"line {line}: holds more claims than are screened", err=True)
        counts = found.counts
        typer.echo(f"{counts.messages} messages, {counts.atoms} claims, {len(found.refused)} would have been stopped")
    if found.refused:
        raise typer.Exit(1)


@error_cascade_app.command()
def plot(
    log: LogPath,
    output: Annotated[Path, typer.Option("--output", help="An .html, .svg, .png or .json file.")],
    format: Format = "auto",
    about: About = "",
    fitted: Annotated[bool, typer.Option("--fitted", help="The mean coverage beside the fitted curve.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw coverage over rounds."""
    read = _read(log, format)
    from heliograph.agents.error_cascade.claims import EveryClaim
    from heliograph.agents.error_cascade.fit import fit_cascade
    from heliograph.agents.error_cascade.governor import Governor
    from heliograph.agents.error_cascade.plots import plot_coverage
    from heliograph.agents.error_cascade.replaying import replay as send
    from heliograph.agents.error_cascade.risk import traces

    keep = _keep(about)
    if fitted:
        found = traces(read, keep=keep)
        chart = plot_coverage(fit_cascade(found.adoption, found.adjacency), output)
    else:
        shown = send(read, Governor("speed", claims=EveryClaim(), hold=0)).lineage
        if keep is not None:
            shown.compact(lambda node: keep(node.claim))
        chart = plot_coverage(shown, output)
    if as_json:
        _print({"written": str(output), "points": chart.data.values})
    else:
        typer.echo(f"wrote {output}")


def _trusted(path: Path) -> tuple[Claim, ...]:
    from heliograph.agents.error_cascade.claims import RegexClaims, StructuredClaims

    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    try:
        whole = json.loads(raw)
    except ValueError:
        atoms = RegexClaims(100_000).split(raw).atoms
    else:
        found = StructuredClaims(100_000).split({"claims": whole})
        if found.unscreened or not isinstance(whole, list):
            raise BadInput(
                f"{path}: a JSON file of trusted claims is a list of [subject, predicate, object] or objects"
            )
        atoms = found.atoms
    if not atoms:
        raise BadInput(f"{path} holds no claim")
    return tuple(atom.claim for atom in atoms)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    fresh = path.with_name(path.name + ".part")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {error.strerror}") from None
