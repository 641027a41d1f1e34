"""``heliograph graphs fit | evaluate | predict``: train on your own graphs, and use what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph.errors import BadInput
from heliograph.graphs.mesh_commands import app as mesh_app

if TYPE_CHECKING:
    from heliograph.graphs.core.tasks import GraphTask, Metrics
    from heliograph.graphs.core.train import EpochRecord, FittedModel
    from heliograph.graphs.inputs import ReadGraphs
    from heliograph.graphs.models import Shape

__all__ = ["app"]

app = typer.Typer(
    help="Train graph networks on your own graphs; predict and evaluate with them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.add_typer(mesh_app, name="mesh_transformer")

DataPath = Annotated[
    Path,
    typer.Argument(
        help="A .pt file, a SMILES table (.csv, .parquet), a .graphml file or folder, a mesh (.vtu, .vtk, .msh) or a "
        "folder of meshes, or a folder with edges.csv."
    ),
]
ModelPath = Annotated[Path, typer.Argument(help="A model folder that fit wrote.")]
Target = Annotated[str, typer.Option(help="Target column or attribute; several separated by commas.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
SplitColumn = Annotated[
    str,
    typer.Option(help="Column that says train, valid or test, or 'scaffold' for SMILES; a random split otherwise."),
]


@app.command()
def fit(
    data: DataPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.")],
    target: Target = "",
    split: SplitColumn = "",
    inputs: Annotated[
        str, typer.Option(help="Of meshes: point data that vertices know, separated by commas; all but the target.")
    ] = "",
    valid: Annotated[float, typer.Option(help="Share of the graphs for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the graphs for the final test.")] = 0.1,
    model: Annotated[
        str,
        typer.Option(help="gnn_plus, grit, graph_mamba, floydnet, gcn, gin, gatedgcn, gps or mlp (`graphs models`)."),
    ] = "gnn_plus",
    conv: Annotated[str, typer.Option(help="Messages of gnn_plus: gcn, gin or gatedgcn.")] = "gcn",
    layers: Annotated[int, typer.Option(help="Layers.")] = 4,
    hidden: Annotated[int, typer.Option(help="Channels.")] = 64,
    dropout: Annotated[float, typer.Option(help="Dropout, a share below 1.")] = 0.0,
    walk_steps: Annotated[int, typer.Option(help="Steps of the random-walk encoding; 0 for none.")] = 16,
    off: Annotated[
        str, typer.Option(help="Techniques of gnn_plus to leave out: edge_features, norm, residual, ffn.")
    ] = "",
    pool: Annotated[str, typer.Option(help="sum, mean or max over a graph's vertices.")] = "mean",
    epochs: Annotated[int, typer.Option(help="Epochs, at most.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Graphs a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation loss before stopping; 0 for never.")
    ] = 15,
    max_seconds: Annotated[float, typer.Option(help="Seconds of training, at most; 0 for no limit.")] = 0.0,
    precision: Annotated[str, typer.Option(help="32, bf16 or 16 (GPU).")] = "32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split, weights, order and dropout.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute encodings anew and do not keep them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network; writes a model folder with a learning curve, and prints its scores on graphs it has not seen."""
    if output.exists() and not overwrite:
        raise BadInput(f"{output} exists already; choose another place or give --overwrite")
    _choose("--conv", conv, ("gcn", "gin", "gatedgcn"))
    _choose("--pool", pool, ("sum", "mean", "max"))
    _choose("--precision", precision, ("32", "bf16", "16"))
    _choose("--device", device, ("auto", "cpu", "cuda"))
    from heliograph.graphs.core.heap import keep_freed_memory
    from heliograph.graphs.inputs import make_task, read_graphs
    from heliograph.graphs.models import MODELS, Shape

    _choose("--model", model, tuple(MODELS))
    if device != "cuda":
        keep_freed_memory()
    switches = tuple(name.strip() for name in off.split(",") if name.strip())
    shape = Shape(layers, hidden, dropout, walk_steps, pool, conv, switches)
    read = read_graphs(data, target, split=split, inputs=_names(inputs) or None)
    task = make_task(read, str(data), seed=seed, valid=valid, test=test)
    _say_task(task)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience or None,
        "max_seconds": max_seconds or None,
        "precision": precision,
        "device": device,
        "seed": seed,
    }
    fitted, metrics = _train(task, read, model, shape, settings, output, resume, not no_cache)
    fitted.save(output, overwrite=overwrite)
    _clear_checkpoints(output)
    (output / "curve.svg").write_text(_curve_svg(fitted, metrics["valid"]), encoding="utf-8")
    if as_json:
        parts = {part: dict(scores.values) for part, scores in metrics.items()}
        row = {"model": str(output), "target": str(task.target), "graphs": _sizes(task), "stopped": fitted.stopped}
        typer.echo(
            json.dumps({**row, "best_epoch": fitted.best_epoch, "metrics": parts, "notes": list(task.notes)}, indent=2)
        )
        return
    _print_metrics(metrics)
    typer.echo(
        f"{fitted.stopped}; weights of epoch {fitted.best_epoch + 1} are in {output} (curve.svg shows the training)"
    )


@app.command()
def models(as_json: AsJson = False) -> None:
    """The networks that fit trains."""
    from heliograph.graphs.models import MODELS

    if as_json:
        typer.echo(json.dumps([{"model": name, "note": kind.note} for name, kind in MODELS.items()], indent=2))
        return
    for name, kind in MODELS.items():
        typer.echo(f"{name:<12} {kind.note}")


@app.command()
def evaluate(
    model: ModelPath,
    data: DataPath,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Score a trained model on graphs with targets."""
    from heliograph.graphs.core.train import encoded, load_model
    from heliograph.graphs.core.train import evaluate as score

    fitted = load_model(model)
    read = _read_for(fitted, data, target, need_target=True)
    metrics = score(fitted, encoded(fitted.model, read.graphs))
    if as_json:
        typer.echo(
            json.dumps(
                {"graphs": len(read.graphs), "metrics": dict(metrics.values), "notes": list(read.notes)}, indent=2
            )
        )
        return
    _say_notes(read.notes)
    _print_metrics({"all": metrics})


@app.command()
def predict(
    model: ModelPath,
    data: DataPath,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV file to write, or for meshes a mesh or folder; else standard output."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict targets, one row a graph or vertex."""
    import torch

    from heliograph.graphs.core.train import encoded, load_model
    from heliograph.graphs.core.train import predict as answer

    fitted = load_model(model)
    mesh_output = _mesh_output(data, output)
    read = _read_for(fitted, data, "", need_target=False)
    answers = answer(fitted, encoded(fitted.model, read.graphs))
    names = list(fitted.target.columns) or ["y"]
    rows: list[dict[str, Any]] = []
    where = [
        {"graph": number} | ({"vertex": vertex} if fitted.target.level == "vertex" else {})
        for number, graph in enumerate(read.graphs)
        for vertex in range(int(graph.num_nodes) if fitted.target.level == "vertex" else 1)
    ]
    classes = (fitted.extra or {}).get("classes") or [str(c) for c in range(fitted.target.outputs)]
    for place, values in zip(where, answers, strict=True):
        if fitted.target.kind == "class":
            chance = torch.softmax(values, -1)
            best = int(chance.argmax())
            rows.append({**place, names[0]: classes[best], "probability": float(chance[best])})
        else:
            shown = values.sigmoid() if fitted.target.kind == "labels" else values
            columns = names if len(names) == len(shown) else [f"{names[0]}{c}" for c in range(len(shown))]
            rows.append({**place, **dict(zip(columns, map(float, shown), strict=True))})
    _say_notes(read.notes)
    if mesh_output is not None:
        _write_meshes(data, mesh_output, read, rows)
        return
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    lines = [",".join(rows[0])] + [",".join(_cell(v) for v in row.values()) for row in rows]
    if output is None:
        typer.echo("\n".join(lines))
    else:
        _write(output, "\n".join(lines) + "\n")


def _train(
    task: GraphTask,
    read: ReadGraphs,
    name: str,
    shape: Shape,
    settings: dict[str, Any],
    output: Path,
    resume: bool,
    use_cache: bool,
) -> tuple[FittedModel, dict[str, Metrics]]:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from heliograph.graphs.core.train import encoded, keep_with
    from heliograph.graphs.core.train import evaluate as score
    from heliograph.graphs.core.train import fit as train
    from heliograph.graphs.models import build_model

    torch.manual_seed(settings["seed"])
    model = build_model(name, task.inputs(), task.target.level, shape)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[latest]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("encodings", total=1.0, latest="")
        parts = [
            encoded(model, part, lambda share: bar.update(line, completed=share), use_cache=use_cache) if part else []
            for part in (task.train, task.valid, task.test)
        ]
        bar.update(line, description="training", total=settings["epochs"], completed=0)

        def watch(record: EpochRecord) -> None:
            loss = record.train_loss if record.valid_loss is None else record.valid_loss
            bar.update(line, completed=record.epoch + 1, latest=f"epoch {record.epoch + 1}, loss {loss:.4g}")

        home = _checkpoints(output)
        fitted = train(model, parts[0], parts[1], task.target, folder=home, resume=resume, watch=watch, **settings)
    kinds = ("train", "valid", "test")
    metrics = {kind: score(fitted, part) for kind, part in zip(kinds, parts, strict=True) if part}
    metrics.setdefault("valid", metrics["test"])
    facts = {"classes": list(read.classes), "vocabulary": [list(kind) for kind in read.vocabulary], "data": task.name}
    if read.arrays:
        facts |= {"inputs": list(read.inputs), "arrays": list(read.arrays)}
    scores = {part: dict(found.values) for part, found in metrics.items()}
    return keep_with(fitted, metrics=scores, notes=list(task.notes), **facts), metrics


def _read_for(fitted: FittedModel, data: Path, target: str, *, need_target: bool) -> ReadGraphs:
    from heliograph.graphs.inputs import read_graphs

    extra = fitted.extra or {}
    kinds = [(str(kind[0]), int(kind[1]), int(kind[2])) for kind in extra.get("vocabulary", [])]
    names = target or ",".join(extra.get("arrays", fitted.target.columns))
    return read_graphs(
        data,
        names,
        vocabulary=kinds,
        classes=extra.get("classes", ()),
        inputs=extra.get("inputs"),
        need_target=need_target,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _mesh_output(data: Path, output: Path | None) -> Path | None:
    """Where meshes with predictions go, if that is what was asked for; refused before work starts where they cannot.

    Raises:
        BadInput: a place of the wrong kind.
    """
    from heliograph.graphs.mesh_inputs import MESHES, mesh_files

    if output is None or output.suffix == ".csv" or not mesh_files(data):
        return None
    if data.is_dir() and (output.suffix or output.is_file()):
        raise BadInput(f"{data} is a folder of meshes; --output takes a folder for them or a .csv file; got {output}")
    if not data.is_dir() and output.suffix.lower() not in MESHES:
        raise BadInput(f"{data} is a mesh; --output takes {', '.join(MESHES)} or .csv; got {output}")
    if output.resolve() == data.resolve():
        raise BadInput(f"{output} is what predictions are made for; choose another place")
    return output


def _write_meshes(data: Path, output: Path, read: ReadGraphs, rows: list[dict[str, Any]]) -> None:
    """The predictions beside the arrays that the meshes have, under their names and ``_predicted``."""
    import numpy as np

    from heliograph.graphs.mesh_inputs import write_meshes

    arrays: list[dict[str, Any]] = []
    start = 0
    for graph in read.graphs:
        own = rows[start : start + int(graph.num_nodes)]
        start += len(own)
        names = [name for name in own[0] if name not in ("graph", "vertex")]
        arrays.append(
            {
                name if name == "probability" else f"{name}_predicted": np.array([float(row[name]) for row in own])
                for name in names
            }
        )
    written = write_meshes(data, output, arrays)
    typer.echo(f"{len(written)} mesh{'es' * (len(written) > 1)} with predictions: {output}")


def _checkpoints(output: Path) -> Path:
    """Beside the model folder, so that the folder itself appears only when it is whole."""
    return output.with_name(f".{output.name}.fit")


def _clear_checkpoints(output: Path) -> None:
    import shutil

    shutil.rmtree(_checkpoints(output), ignore_errors=True)


def _choose(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(f"{option} takes {', '.join(allowed)}; got {value!r}")


def _sizes(task: GraphTask) -> dict[str, int]:
    return {"train": len(task.train), "valid": len(task.valid), "test": len(task.test)}


def _say_task(task: GraphTask) -> None:
    sizes = _sizes(task)
    typer.echo(
        f"{task.name}: {task.target}; graphs: {sizes['train']} to train, {sizes['valid']} to validate, "
        f"{sizes['test']} to test",
        err=True,
    )
    _say_notes(task.notes)


def _say_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _print_metrics(metrics: dict[str, Metrics]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    first = next(iter(metrics.values()))
    for name in ("graphs", *first.values):
        table.add_column(name + (" *" if name == first.main else ""))
    for part, scores in metrics.items():
        table.add_row(part, *(f"{value:.4g}" for value in scores.values.values()))
    Console().print(table)
    typer.echo(f"* {'higher' if first.higher else 'lower'} is better")


def _curve_svg(fitted: FittedModel, metrics: Metrics) -> str:
    """Training and validation loss by epoch, as an SVG."""
    import altair as alt
    import vl_convert

    rows = [
        {"epoch": record.epoch + 1, "loss": value, "graphs": part}
        for record in fitted.curve
        for part, value in (("training", record.train_loss), ("validation", record.valid_loss))
        if value is not None
    ]
    best = [{"epoch": fitted.best_epoch + 1}]
    lines = (
        alt.Chart({"values": rows})
        .mark_line(point=len(fitted.curve) == 1)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1), title="epoch"),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color("graphs:N", title=None),
        )
    )
    rule = alt.Chart({"values": best}).mark_rule(strokeDash=[4, 4], opacity=0.6).encode(x="epoch:Q")
    title = f"{fitted.target}: kept epoch {fitted.best_epoch + 1}, validation {metrics.main} {metrics.quality:.4g}"
    chart = (lines + rule).properties(width=520, height=280, title=title)
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return svg


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from None
