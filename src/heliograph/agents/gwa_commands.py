"""``heliograph agents gwa run|serve|replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.gwa import GlobalWorkspaceAgent

__all__ = ["gwa_app"]

gwa_app = typer.Typer(
    help="A global workspace: role-bound minds around one stage.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Journal = Annotated[Path | None, typer.Option(help="File that keeps the mind; an existing one is continued.")]
Config = Annotated[Path | None, typer.Option(help="JSON file with settings, for example tau, entropy and theta.")]
Model = Annotated[str, typer.Option(help="A GGUF file or model folder; SmolLM2-135M by default.")]
Url = Annotated[str, typer.Option(help="OpenAI-compatible server, up to and with /v1; needs --model.")]
Key = Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="For --url.", show_default=False)]
Name = Annotated[str, typer.Option(help="Of the workspace.")]
Tokens = Annotated[
    int | None, typer.Option(help="Of an answer at most; 96 for a local model, the settings for --url.", min=1)
]
Seed = Annotated[int | None, typer.Option(help="Instead of the file's.")]


LOCAL_TOKENS = 96
"""Of an answer, where a processor draws it: the settings' thousand would miss their deadline."""


@gwa_app.command()
def run(
    message: Annotated[str, typer.Argument(help="What to think about; without it, the mind thinks on by itself.")] = "",
    ticks: Annotated[int | None, typer.Option(help="At most; the setting by default.")] = None,
    journal: Journal = None,
    config: Config = None,
    model: Model = "",
    url: Url = "",
    api_key: Key = "",
    name: Name = "ws",
    seed: Seed = None,
    tokens: Tokens = None,
    as_json: AsJson = False,
) -> None:
    """Think, tick by tick, and answer. With --json each tick is one line."""
    import asyncio
    from dataclasses import asdict

    agent = _agent(journal, config, model, url, api_key, name, seed, tokens)

    async def think() -> None:
        async with agent:
            async for tick in agent.run(message or None, max_ticks=ticks):
                if as_json:
                    typer.echo(json.dumps(asdict(tick)))
                    continue
                missed = f"  without {', '.join(tick.missed)}" if tick.missed else ""
                typer.echo(f"{tick.index:4}  H {tick.entropy:.3f}  T {tick.temperature:.3f}  {tick.tag}{missed}")
                if tick.winner:
                    typer.echo(f"      {tick.winner}")
                if tick.said:
                    typer.echo(f"says: {tick.said}")

    try:
        asyncio.run(think())
    finally:
        agent.workspace.close()


@gwa_app.command()
def serve(
    journal: Journal = None,
    config: Config = None,
    model: Model = "",
    url: Url = "",
    api_key: Key = "",
    name: Name = "ws",
    seed: Seed = None,
    tokens: Tokens = None,
    idle: Annotated[float, typer.Option(help="Seconds between idle ticks; 0 for none.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Serve the mind as an MCP server on standard input and output: think, status and the trace."""
    import asyncio

    if idle < 0:
        raise BadInput(f"--idle is in seconds, 0 or more; got {idle:g}")
    agent = _agent(journal, config, model, url, api_key, name, seed, tokens)
    server = agent.as_mcp_server(idle)
    # Standard output belongs to the protocol.
    ready = {"name": name, "tick": agent.workspace.state.tick, "tools": ["think", "status"]}
    typer.echo(json.dumps(ready) if as_json else f"gwa: {name} at tick {ready['tick']}: think, status", err=True)

    async def until_closed() -> None:
        async with agent:
            if idle:
                agent.idle(idle)
            await server.run_stdio_async()

    try:
        asyncio.run(until_closed())
    finally:
        agent.workspace.close()


@gwa_app.command()
def replay(
    journal: Annotated[Path, typer.Argument(help="A mind's journal.")],
    as_json: AsJson = False,
) -> None:
    """Check a journal, run the drive again over its thoughts, and measure their variety; exit 1 if it differs."""
    from dataclasses import asdict

    try:
        from heliograph.agents.gwa.replay import replay_journal
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    found = replay_journal(journal)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo(
            f"{found.name}: {found.ticks} ticks, {found.messages} messages, {found.answers} answers, "
            f"{found.calls} calls, {found.skipped} ticks without a thought"
        )
        for place, (entropy, temperature) in enumerate(zip(found.entropies, found.temperatures, strict=True)):
            typer.echo(f"{place:4}  H {entropy:.3f}  T {temperature:.3f}")
        typer.echo(f"distinct-2 {found.distinct_2:.3f}, repetition {found.repetition:.3f}")
        for what, table in (("missed", found.missed), ("read as", found.parses)):
            if table:
                typer.echo(f"{what}: {', '.join(f'{key} {count}' for key, count in sorted(table.items()))}")
        typer.echo(f"the drive run again differs by {found.largest_difference:g} at most")
    if found.largest_difference > 1e-9:
        raise typer.Exit(1)


def _missing(error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra((error.name or "mcp").split(".")[0], "agents")


def _agent(
    journal: Path | None,
    config: Path | None,
    model: str,
    url: str,
    api_key: str,
    name: str,
    seed: int | None,
    tokens: int | None,
) -> GlobalWorkspaceAgent:
    """Reads the settings, then loads the model, so that a mistake in a file is told at once."""
    from dataclasses import replace

    try:
        from heliograph.agents.core.lm import LM, LocalGGUF, OpenAICompatible
        from heliograph.agents.gwa import GlobalWorkspace, GlobalWorkspaceAgent, GWAConfig, default_embedding, reachable
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    options: dict[str, Any] = {}
    if config is not None:
        try:
            options = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read the settings {config}: {error}") from None
        if not isinstance(options, dict):
            raise BadInput(f"{config} holds no JSON object of settings")
    if seed is not None:
        options["seed"] = seed
    if tokens is None and not url and "max_tokens" not in options:
        tokens = LOCAL_TOKENS
    chosen = GWAConfig.from_mapping(options)
    if tokens is not None:
        chosen = replace(chosen, max_tokens={role: min(most, tokens) for role, most in chosen.max_tokens.items()})
    reach = reachable(chosen)
    if reach.inert:
        typer.echo(
            f"note: with these settings the drive moves the temperature between {reach.low:.3f} and {reach.high:.3f} "
            'only; a smaller tau, or "entropy": "window", lets it do more',
            err=True,
        )
    if url and not model:
        raise BadInput("--url needs --model, the model's name there")
    mind: LM = OpenAICompatible(url, model, api_key=api_key) if url else LocalGGUF(model or None)
    return GlobalWorkspaceAgent(GlobalWorkspace(chosen, mind, embed=default_embedding(), name=name, journal=journal))
