"""``heliograph serve MODEL``: an OpenAI-compatible server over one engine, or over instances with roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import BadInput, MissingExtra
from heliograph.serving.amd_instinct_commands import app as amd_instinct_app
from heliograph.serving.kv_serve_commands import app as kv_serve_app
from heliograph.serving.prfaas_commands import app as prfaas_app

__all__ = ["app", "serve"]

app = typer.Typer(
    help="Systems of serving, each with verbs of its own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(amd_instinct_app, name="amd_instinct")
app.add_typer(kv_serve_app, name="kv_serve")
app.add_typer(prfaas_app, name="prfaas")


def serve(
    model: Annotated[str, typer.Argument(help="A .gguf file, a Hugging Face folder, smollm2-135m or gemma3-270m.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name under which the model is served.")] = None,
    roles: Annotated[str | None, typer.Option(help="Instances: prefill=1,decode=2 or mix=2; else one engine.")] = None,
    on: Annotated[str, typer.Option(help="Where instances run: local, or ray for a Ray cluster's machines.")] = "local",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:0.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    layers: Annotated[int | None, typer.Option(help="Only the model's first so many, for measurements.")] = None,
    random_weights: Annotated[
        bool, typer.Option(help="MODEL is a config.json or its folder: draw weights of that shape, to measure speed.")
    ] = False,
    block_size: Annotated[int, typer.Option(help="Tokens a block of the cache.")] = 16,
    cache_gib: Annotated[float, typer.Option(help="Memory of keys and values, of each instance.")] = 1.0,
    max_tokens_per_step: Annotated[int, typer.Option(help="Of all requests together.")] = 512,
    max_sequences: Annotated[int, typer.Option(help="Running at once, of each instance.")] = 64,
    chunk_limit: Annotated[int | None, typer.Option(help="Prompt tokens of one request in a step.")] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Share blocks of texts that begin alike.")] = True,
    overlap: Annotated[bool, typer.Option(help="Plan the next step while this one runs.")] = False,
    packed: Annotated[
        bool, typer.Option(help="On a CPU, keep a second copy of the weights as its products like them: faster.")
    ] = True,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 256,
    max_requests: Annotated[int, typer.Option(help="Answers under way at once; more get 429.")] = 512,
    api_key: Annotated[list[str] | None, typer.Option(help="Clients must send it; several may be given.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with one key a line.")] = None,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that requests may go on after SIGTERM.")] = 30.0,
    lease: Annotated[float, typer.Option(help="Seconds that a hand-over is waited for.")] = 30.0,
    on_transfer_failure: Annotated[str, typer.Option(help="recompute or fail.")] = "recompute",
    as_json: Annotated[bool, typer.Option("--json", help="Print {url, model, pid} once requests are taken.")] = False,
) -> None:
    """Serve a language model to OpenAI clients until SIGTERM or Ctrl-C; requests under way are finished first."""
    keys = tuple(api_key or ()) + _keys(api_key_file)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise BadInput(f"dtype is float32, bfloat16 or float16; got {dtype!r}")
    if on_transfer_failure not in ("recompute", "fail"):
        raise BadInput(f"on-transfer-failure is recompute or fail; got {on_transfer_failure!r}")
    if not cache_gib > 0:
        raise BadInput(f"the cache needs memory; got --cache-gib {cache_gib:g}")
    wanted = _roles(roles)
    if on not in ("local", "ray") or (on == "ray" and not wanted):
        raise BadInput(f"--on is local, or ray together with --roles; got {on!r}")
    try:
        from heliograph.serving.core.run_server import ServeOptions, bind, serve_model
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "fastapi").split(".")[0], "serving") from error
    engine: dict[str, Any] = {
        "block_size": block_size,
        "cache_bytes": int(cache_gib * 2**30),
        "max_tokens_per_step": max_tokens_per_step,
        "max_sequences": max_sequences,
        "chunk_limit": chunk_limit,
        "prefix_cache": prefix_cache,
        "overlap": overlap,
        "packed": packed,
    }
    options = ServeOptions(
        model,
        name,
        engine,
        device,
        dtype,
        layers,
        wanted,
        max_waiting,
        max_requests,
        keys,
        drain_timeout,
        lease,
        on_transfer_failure,
        "ray" if on == "ray" else "local",
        random_weights,
    )
    listening = bind(host, port)

    def ready(url: str, served: str) -> None:
        if as_json:
            import os

            typer.echo(json.dumps({"url": url, "model": served, "pid": os.getpid()}))
        typer.echo(f"{served} is served at {url}/v1", err=True)

    ended = serve_model(options, listening, ready)
    if ended:
        typer.echo(f"{ended} requests were ended after {drain_timeout:g} s", err=True)


def _keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if not lines:
        raise BadInput(f"{path} holds no key")
    return tuple(lines)


def _roles(text: str | None) -> dict[str, int]:
    """``prefill=1,decode=2`` as numbers of instances."""
    if text is None:
        return {}
    found: dict[str, int] = {}
    for part in text.split(","):
        role, _, count = part.partition("=")
        if role not in ("prefill", "decode", "mix") or not count.isdigit() or int(count) < 1 or role in found:
            raise BadInput(
                f"roles are prefill, decode or mix with a number of instances each; got {part!r} in {text!r}"
            )
        found[role] = int(count)
    if "mix" not in found and set(found) != {"prefill", "decode"}:
        raise BadInput(f"prompts and answers both need an instance; got only {text!r}")
    return found
