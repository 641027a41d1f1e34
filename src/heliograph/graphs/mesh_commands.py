"""``heliograph graphs mesh_transformer fit | score | rollout``: train a simulator on your own meshes, and run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliograph.errors import BadInput

if TYPE_CHECKING:
    from heliograph.data.mesh import MeshTrajectory

__all__ = ["app"]

app = typer.Typer(
    help="Step fields on meshes forward in time: masked attention, or MeshGraphNet.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Data = Annotated[
    list[Path],
    typer.Argument(help="An .h5 file in MeshGraphNet's layout, an .xdmf series, or the .vtu files of one series."),
]
Fields = Annotated[str, typer.Option(help="Fields of the vertices, separated by commas.")]
Folder = Annotated[Path, typer.Option("--simulator", "-s", help="A folder that fit wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def fit(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The simulator folder to write.")],
    fields: Fields = "velocity",
    model: Annotated[str, typer.Option(help="mesh_transformer or mesh_graph_net.")] = "mesh_transformer",
    support: Annotated[str, typer.Option(help="Who hears whom: mesh, khop=2,global=16, dilated=7:3.")] = "mesh",
    hidden: Annotated[int, typer.Option(help="Channels.")] = 64,
    layers: Annotated[int, typer.Option(help="Blocks, or rounds of messages.")] = 10,
    noise: Annotated[float, typer.Option(help="Noise on training inputs, in the fields' unit.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Seconds of training.")] = 120.0,
    batch: Annotated[int, typer.Option(help="Frames a step.")] = 1,
    held_out: Annotated[int, typer.Option(help="Last trajectories kept for the score; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a simulator folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a simulator; writes a folder, and prints its errors on the trajectories that were held out."""
    if output.exists() and not overwrite:
        raise BadInput(f"{output} exists already; choose another place or give --overwrite")
    if model not in ("mesh_transformer", "mesh_graph_net"):
        raise BadInput(f"--model takes mesh_transformer or mesh_graph_net; got {model!r}")
    if seconds <= 0 or held_out < 0:
        raise BadInput(f"--seconds must be above 0 and --held-out 0 or more; got {seconds:g} and {held_out}")
    import shutil

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from heliograph.data.mesh import mesh_set
    from heliograph.graphs.mesh_transformer import MeshGraphNet, MeshSimulator, MeshTransformer
    from heliograph.graphs.mesh_transformer.supports import parse_support

    recipe = parse_support(support)
    trajectories = _read(data, fields)
    if held_out >= len(trajectories):
        raise BadInput(f"{len(trajectories)} trajectories were read; --held-out {held_out} leaves none for training")
    known = mesh_set(trajectories[: len(trajectories) - held_out], trajectories[len(trajectories) - held_out :])
    torch.manual_seed(seed)
    width, channels = known.in_dim, known.schema.channels
    network = (
        MeshTransformer(width, channels, hidden=hidden, layers=layers)
        if model == "mesh_transformer"
        else MeshGraphNet(width, channels, hidden=hidden, layers=layers, dimensions=known.schema.dimensions)
    )
    simulator = MeshSimulator(network, known.schema, noise_std=noise, support=recipe)
    if torch.cuda.is_available():
        simulator.to("cuda")
    states = output.with_name(f".{output.name}.fit")
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[latest]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("training", total=1.0, latest="")

        def watch(step: int, share: float, loss: float) -> None:
            if step % 10 == 0:
                bar.update(line, completed=share, latest=f"step {step}, loss {loss:.4g}")

        report = simulator.fit(
            known.train, seconds=seconds, batch=batch, seed=seed, folder=states, resume=resume, callback=watch
        )
    simulator.save(output, overwrite=overwrite)
    shutil.rmtree(states, ignore_errors=True)
    facts = {"simulator": str(output), "steps": report.steps, "seconds": round(report.seconds, 3)}
    _show(facts | (_scores(simulator, known.test) if known.test else {}), as_json)


@app.command()
def score(simulator: Folder, data: Data, fields: Fields = "velocity", as_json: AsJson = False) -> None:
    """Errors of one step and of whole roll-outs, beside those of a field that stays as it is."""
    from heliograph.graphs.mesh_transformer import MeshSimulator

    _show(_scores(MeshSimulator.load(simulator), _read(data, fields)), as_json)


@app.command()
def rollout(
    simulator: Folder,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.")],
    fields: Fields = "velocity",
    trajectory: Annotated[int, typer.Option(help="Which one to begin from, counted from 0.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps; 0 for as many as the trajectory has.")] = 0,
) -> None:
    """Steps on from the first frame of a trajectory, each from the last prediction; writes frames [T, N, C]."""
    import io

    import numpy as np

    from heliograph.graphs.mesh_transformer import MeshSimulator

    loaded, known = MeshSimulator.load(simulator), _read(data, fields)
    if not 0 <= trajectory < len(known) or steps < 0:
        raise BadInput(
            f"--trajectory counts from 0 to {len(known) - 1} and --steps is 0 or more; got {trajectory}, {steps}"
        )
    begin = known[trajectory]
    frames = loaded.rollout(begin, steps or None).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=frames, pos=begin.pos, cells=begin.cells, node_type=begin.node_type)
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_bytes(buffer.getvalue())
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {output}: {error.strerror}") from None
    typer.echo(f"{len(frames)} frames of {frames.shape[1]:,} vertices are in {output}")


def _read(paths: list[Path], fields: str) -> list[MeshTrajectory]:
    from heliograph.data.mesh_files import read_h5, read_series

    names = [name.strip() for name in fields.split(",") if name.strip()]
    if not names:
        raise BadInput("--fields names at least one field of the vertices")
    if any(path.suffix in (".h5", ".hdf5") for path in paths):
        return [trajectory for path in paths for trajectory in read_h5(path, names)]
    if len(paths) > 1 and all(path.suffix == ".xdmf" for path in paths):
        return [read_series(path, names) for path in paths]
    return [read_series(paths[0] if len(paths) == 1 else paths, names)]


def _scores(simulator: object, trajectories: object) -> dict[str, float]:
    found = simulator.score(trajectories)  # type: ignore[attr-defined]
    names = ("one_step_rmse", "one_step_persistence", "all_rollout_rmse", "persistence_rmse")
    return {name: getattr(found, name) for name in names} | {"diverged": len(found.diverged)}


def _show(facts: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<22} {value:.4g}" if isinstance(value, float) else f"{name:<22} {value}")
