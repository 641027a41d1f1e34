"""``heliograph serving kv_serve profile | choose | compress | restore``: profiles, choices, and files."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["app"]

app = typer.Typer(
    help="Keys and values compressed by what pays: profiles of a model, the choice for a transfer, and files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A .gguf file, a Hugging Face folder, or smollm2-135m.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the profiles are written, as JSON.")],
    task: Annotated[
        list[str] | None, typer.Option(help="passkey, kv-lookup, copy, quote, or JSON lines {prompt, answer}.")
    ] = None,
    min_quality: Annotated[float, typer.Option(help="Relative to the uncompressed cache.")] = 0.97,
    evals: Annotated[int, typer.Option(help="Points whose answers are scored, of each task.")] = 40,
    samples: Annotated[int, typer.Option(help="Of each task that is made by rule.")] = 8,
    tokens: Annotated[int, typer.Option(help="Prompt tokens of each sample.")] = 256,
    lengths: Annotated[str, typer.Option(help="Tokens at which ratio and speed are measured.")] = "64,256,512",
    transforms: Annotated[str, typer.Option(help="Of the space.")] = "none,hadamard",
    high: Annotated[str, typer.Option(help="Levels of heads that need precision.")] = "20,16,12",
    low: Annotated[str, typer.Option(help="Levels of the others.")] = "16,10,6",
    ratios: Annotated[str, typer.Option(help="Shares of heads with low levels.")] = "0.4,0.8",
    codecs: Annotated[str, typer.Option(help="bitpack, huffman, zlib, zstd.")] = "bitpack,huffman",
    score: Annotated[str, typer.Option(help="probability or exact.")] = "probability",
    seed: Annotated[int, typer.Option(help="Of samples and search.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Search the settings that keep a model's answers, and measure what they cost on this machine."""
    from heliograph.serving.kv_serve import CompressionSpace, profile_search

    if score not in ("probability", "exact"):
        raise BadInput(f"--score takes probability or exact; got {score!r}")
    if not output.parent.is_dir():
        raise BadInput(f"there is no folder {output.parent}")
    space = CompressionSpace(
        transform=_words(transforms),
        levels_high=_numbers(high, "--high"),
        levels_low=_numbers(low, "--low"),
        hybrid_ratio=_shares(ratios),
        codec=_words(codecs),
    )
    last = [0.0]

    def say(what: str, share: float) -> None:
        if time.monotonic() - last[0] > 1 or share >= 1:
            last[0] = time.monotonic()
            typer.echo(f"{what}: {share:4.0%}", err=True)

    found = profile_search(
        model,
        space,
        task or ["kv-lookup"],
        min_quality=min_quality,
        max_evals=evals,
        samples=samples,
        tokens=tokens,
        lengths=_numbers(lengths, "--lengths"),
        score=score,  # type: ignore[arg-type]
        seed=seed,
        progress=say,
    )
    found.save(output)
    if as_json:
        typer.echo(output.read_text(encoding="utf-8"))
        return
    for label, profiles in found.workloads.items():
        typer.echo(f"{label}: {len(profiles)} profiles of {len(space)} candidates")
        for each in profiles:
            typer.echo(
                f"  {each.ratios[-1]:5.2f}x  quality {each.quality:6.1%} [{each.quality_low:.1%}, "
                f"{each.quality_high:.1%}]  pays below {8e-6 * each.break_even(each.lengths[-1]):8.1f} Mbit/s  "
                f"{each.id}"
            )
    typer.echo(f"written to {output}")


@app.command()
def choose(
    profiles: Annotated[Path, typer.Argument(help="A file of `profile`.")],
    tokens: Annotated[int, typer.Option(help="Of the request.")],
    megabits: Annotated[float, typer.Option(help="Of the link, a second.")],
    bytes_per_token: Annotated[int, typer.Option(help="Of uncompressed keys and values.")] = 23040,
    workload: Annotated[str, typer.Option(help="Label.")] = "unified",
    min_quality: Annotated[float, typer.Option(help="Relative to the uncompressed cache.")] = 0.0,
    slo_ms: Annotated[float, typer.Option(help="What is left for the transfer; 0 for no limit.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Say which profile is fastest for a request, and where the choice changes."""
    import math

    from heliograph.serving.kv_serve import CompressionController, ProfileSet, TransferContext

    if not megabits > 0 or tokens < 1 or bytes_per_token < 1:
        raise BadInput("--megabits, --tokens and --bytes-per-token are above 0")
    controller = CompressionController(ProfileSet.load(profiles), epsilon=0)
    limit = slo_ms / 1e3 if slo_ms > 0 else math.inf
    context = TransferContext(tokens * bytes_per_token, tokens, workload, min_quality, limit, megabits * 1e6 / 8)
    decision, envelope = controller.select(context), controller.envelope(context)
    edges = [8e-6 / x for x in envelope.breaks]
    if as_json:
        plain: dict[str, Any] = {
            "profile": decision.profile.id,
            "reason": decision.reason,
            "seconds": decision.t_hat,
            "uncompressed_seconds": context.nbytes / (megabits * 1e6 / 8),
            "envelope": [
                {"profile": name, "below_megabits": edge}
                for name, edge in zip(envelope.ids, [None, *edges], strict=True)
            ],
            "point": decision.profile.point.to_json(),
        }
        typer.echo(json.dumps(plain, indent=1))
        return
    typer.echo(f"{decision.profile.id} ({decision.reason}): {decision.t_hat * 1e3:.1f} ms")
    typer.echo(f"uncompressed: {context.nbytes / (megabits * 1e6 / 8) * 1e3:.1f} ms")
    for name, edge in zip(envelope.ids, [math.inf, *edges], strict=True):
        typer.echo(f"  below {edge:10,.1f} Mbit/s: {name}")


@app.command()
def compress(
    source: Annotated[
        Path, typer.Argument(help="A .safetensors file with a tensor kv [layers, 2, tokens, heads, dim].")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the frame is written.")],
    method: Annotated[str, typer.Option(help="none, lossless, kivi, cachegen or quarot.")] = "lossless",
    profiles: Annotated[Path | None, typer.Option(help="A file of `profile`; then method is an id in it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compress keys and values of a file into one checked frame."""
    from heliograph.serving.kv_serve import KVPipeline, ProfileSet
    from heliograph.serving.kv_serve.link import scores_of

    kv = _read_kv(source)
    if profiles is None:
        pipeline = KVPipeline(method)
    else:
        loaded = ProfileSet.load(profiles)
        known = {each.id: each.point for found in loaded.workloads.values() for each in found}
        if method not in known:
            raise BadInput(f"{profiles} holds {', '.join(known) or 'no profile'}; got {method!r}")
        pipeline = KVPipeline(known[method], scores=scores_of(loaded))
    begin = time.perf_counter()
    frame = pipeline.compress(kv, request=source.name)
    seconds = time.perf_counter() - begin
    _write(output, frame)
    if as_json:
        typer.echo(json.dumps({"bytes": len(frame), "raw_bytes": kv.nbytes, "seconds": seconds}))
        return
    typer.echo(f"{kv.nbytes:,} bytes to {len(frame):,} ({kv.nbytes / len(frame):.2f}x) in {seconds * 1e3:.0f} ms")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A frame that `compress` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors file.")],
    as_json: AsJson = False,
) -> None:
    """Restore keys and values from a frame; a damaged one is refused."""
    from safetensors.torch import save

    from heliograph.serving.kv_serve import restore as restore_frame

    try:
        data = source.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {source}: {error.strerror}") from None
    found = restore_frame(data)
    _write(output, save({"kv": found.kv}))
    layout = found.header.layout
    if as_json:
        typer.echo(json.dumps({"shape": list(layout.shape), "dtype": layout.dtype, "point": found.header.point.name}))
        return
    typer.echo(f"{list(layout.shape)} {layout.dtype} from {found.header.point.name}")


def _read_kv(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is no readable .safetensors file: {error}") from None
    if "kv" not in tensors:
        raise BadInput(f"{path} holds no tensor kv [layers, 2, tokens, heads, dim]; it holds {', '.join(tensors)}")
    return tensors["kv"]


def _write(path: Path, data: bytes) -> None:
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            part = Path(file.name)
            file.write(data)
        part.replace(path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in _words(text))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise BadInput(f"{option} takes whole numbers of 1 or more, separated by commas; got {text!r}")
    return found


def _shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in _words(text))
    except ValueError:
        found = ()
    if not found or not all(0 <= share <= 1 for share in found):
        raise BadInput(f"--ratios takes shares from 0 to 1, separated by commas; got {text!r}")
    return found
