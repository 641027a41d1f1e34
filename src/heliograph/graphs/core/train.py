"""Training, evaluating and predicting with any graph model, by Lightning; and models as folders.

``fit`` gives a :class:`FittedModel`: the model, what its target is, and the curve. A run interrupted in its folder goes
on where it stopped, with the same numbers as if it had not been. A saved model is a folder of a description
(``model.json``) and weights (``weights.pt``, tensors only), written as a whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from heliograph import __version__
from heliograph.errors import BadInput, MissingExtra
from heliograph.graphs.core.encodings import Encoding, cached
from heliograph.graphs.core.fit import DivergenceError
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import Metrics, TargetSpec, infer_target

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
    from torch_geometric.loader import DataLoader
except ImportError as error:
    raise MissingExtra(str(error.name or "lightning").replace("_", "-"), "graphs") from error

__all__ = [
    "EpochRecord",
    "FitOptions",
    "FittedModel",
    "encoded",
    "encodings_of",
    "evaluate",
    "fit",
    "load_model",
    "predict",
]

FORMAT = 1
LOADABLE = "heliograph.graphs."
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Attributes:
        epochs: passes over the training graphs, at most.
        batch_size: graphs a step.
        learning_rate: the peak; a linear warm-up over the first ``warmup`` of all steps leads there, a cosine from
            there to ``final_rate``.
        warmup, final_rate, weight_decay, clip_norm: of the schedule and AdamW.
        patience: epochs without a better validation loss before training stops; None to never stop early.
        max_seconds: wall seconds of training, checked after each step; None for no limit.
        precision: "32", "bf16" or "16" (mixed; "16" needs a GPU).
        device: "auto", "cpu" or "cuda".
        seed: of the order of graphs and of dropout.
        progress: a bar on standard error.
    """

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final_rate: float = 1e-6
    weight_decay: float = 1e-5
    clip_norm: float = 1.0
    patience: int | None = None
    max_seconds: float | None = None
    precision: Literal["32", "bf16", "16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes that make no sense."""
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.learning_rate < math.inf:
            raise BadInput(
                f"epochs and batch_size must be 1 or more and the learning rate positive; got {self.epochs}, "
                f"{self.batch_size} and {self.learning_rate}"
            )
        if not 0 <= self.warmup < 1 or (self.patience is not None and self.patience < 1):
            raise BadInput(f"warmup is a share below 1 and patience 1 or more; got {self.warmup} and {self.patience}")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean training loss, validation loss and quality (None without validation), seconds since the start."""

    epoch: int
    train_loss: float
    valid_loss: float | None
    quality: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A trained model with all that is needed to use it.

    Attributes:
        model: in eval mode; the weights of the best validation loss, or the last where there is no validation.
        target: what it predicts, with the scale of the training targets.
        curve: the epochs.
        best_epoch: whose weights these are.
        stopped: why training ended, in words.
        extra: JSON-ready facts kept with the model (vocabularies, column names).
    """

    model: nn.Module
    target: TargetSpec
    curve: tuple[EpochRecord, ...] = ()
    best_epoch: int = -1
    stopped: str = ""
    extra: Mapping[str, Any] | None = None

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Writes the folder as a whole or not at all.

        Raises:
            BadInput: the folder exists and ``overwrite`` is False, the model has no ``describe()``, or no file can be
                written.
        """
        if not hasattr(self.model, "describe") or not type(self.model).__module__.startswith(LOADABLE):
            raise BadInput(
                f"{type(self.model).__name__} cannot be rebuilt from a file; save its state_dict() with torch.save"
            )
        description = {
            "format": FORMAT,
            "heliograph": __version__,
            "model": f"{type(self.model).__module__}:{type(self.model).__name__}",
            "arguments": self.model.describe(),  # type: ignore[operator]
            "target": self.target.to_json(),
            "curve": [asdict(record) for record in self.curve],
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "extra": dict(self.extra or {}),
        }
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        with _whole_folder(Path(folder), overwrite) as part:
            torch.save(weights, part / "weights.pt")
            (part / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def fit(
    model: nn.Module,
    train: Sequence[Any],
    valid: Sequence[Any] = (),
    target: TargetSpec | None = None,
    *,
    folder: Path | None = None,
    resume: bool = False,
    watch: Callable[[EpochRecord], None] | None = None,
    **options: Any,
) -> FittedModel:
    """Trains a model in place on PyTorch Geometric graphs with ``y``.

    Args:
        model: maps a ``Batch`` to [B, outputs] or [N, outputs]. It need not come from this library.
        train, valid: graphs.
        target: what ``y`` is; inferred where None. Its statistics are taken from ``train`` unless it has some.
        folder: where checkpoints lie after each epoch; none are kept where None.
        resume: go on from the checkpoint in ``folder``, if there is one. With the same options the result is that of a
            run that was never interrupted.
        watch: called after each epoch.
        options: fields of :class:`FitOptions`.

    Raises:
        BadInput: no graphs, or options or targets that do not fit.
        DivergenceError: the loss stopped being finite; the step is named.
    """
    settings = FitOptions(**options)
    if not train:
        raise BadInput("there is nothing to train on: no graphs were given")
    if resume and folder is None:
        raise BadInput("resume needs the folder of the run that was interrupted")
    spec = infer_target(train) if target is None else target
    spec = spec.fitted(train) if not (spec.mean or spec.class_weights) else spec
    _warn_if_odd(model, settings)
    order = _EpochOrder(len(train), settings.seed)
    loader = DataLoader(list(train), settings.batch_size, sampler=order)
    checks = DataLoader(list(valid), settings.batch_size) if valid else None
    module = _Supervised(model, spec, settings, len(loader), order, watch)
    temporary = tempfile.mkdtemp(prefix="heliograph-fit-") if folder is None else None
    home = Path(temporary or folder or ".") / "checkpoints"
    last = home / "last.ckpt"
    try:
        trainer = _trainer(settings, home, bool(valid))
        with _quiet(), _seeded(settings.seed):
            trainer.fit(
                module,
                loader,
                checks,
                ckpt_path=str(last) if resume and last.is_file() else None,
                weights_only=False if resume and last.is_file() else None,
            )
        if getattr(trainer, "interrupted", False):
            raise KeyboardInterrupt
        best = _restore_best(model, trainer, bool(valid))
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    model.to("cpu").eval()
    curve = tuple(module.curve)
    best_epoch = best if best is not None else (curve[-1].epoch if curve else -1)
    return FittedModel(model, spec, curve, best_epoch, _why_stopped(trainer, settings, len(curve)))


def evaluate(fitted: FittedModel, graphs: Sequence[Any], batch_size: int = 128) -> Metrics:
    """The metrics of a fitted model on graphs with ``y``: ``evaluate(fitted, test).mae``."""
    answers = predict(fitted, graphs, batch_size)
    return fitted.target.score(answers, fitted.target.targets(graphs))


def predict(fitted: FittedModel, graphs: Sequence[Any], batch_size: int = 128) -> Tensor:
    """Answers in the unit of the targets, [rows, outputs]: values, or logits of classes and labels."""
    if not graphs:
        raise BadInput("there is nothing to predict: no graphs were given")
    fitted.model.eval()
    device = next((p.device for p in fitted.model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        parts = [
            fitted.target.decode(fitted.model(batch.to(device))).cpu() for batch in DataLoader(list(graphs), batch_size)
        ]
    return torch.cat(parts)


def load_model(folder: Path) -> FittedModel:
    """A model that :meth:`FittedModel.save` wrote. Runs no code of the folder: tensors and JSON only.

    Raises:
        BadInput: not such a folder, a newer format, or weights that do not fit.
    """
    folder = Path(folder)
    try:
        data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(f"{folder} is no model folder of heliograph: {str(error).splitlines()[0][:200]}") from None
    if data.get("format") != FORMAT or not str(data.get("model", "")).startswith(LOADABLE):
        raise BadInput(f"{folder}: format {data.get('format')} of {data.get('model')} cannot be read by {__version__}")
    module, _, name = data["model"].partition(":")
    kind = getattr(importlib.import_module(module), name)
    model = kind.from_description(data["arguments"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(f"{folder}: the weights do not fit the description: {str(error).splitlines()[0]}") from None
    curve = tuple(EpochRecord(**record) for record in data["curve"])
    target = TargetSpec.from_json(data["target"])
    return FittedModel(model.eval(), target, curve, data["best_epoch"], data["stopped"], data["extra"])


def encoded(
    model: nn.Module, graphs: Sequence[Any], progress: Callable[[float], None] | None = None, *, use_cache: bool = True
) -> list[Any]:
    """The graphs with the encodings that the model reads, from the cache where they are known."""
    encodings = encodings_of(model)
    return cached(graphs, encodings, progress=progress, use_cache=use_cache) if encodings else list(graphs)


def encodings_of(model: nn.Module) -> tuple[Encoding, ...]:
    """What the model reads beside a graph's own features: its ``encodings``, its ``encoding``, or its stem's."""
    several = getattr(model, "encodings", None)
    if several is not None:
        return tuple(several)
    one = getattr(model, "encoding", None) or getattr(getattr(model, "stem", None), "encoding", None)
    return (one,) if isinstance(one, Encoding) else ()


class _EpochOrder(Sampler[int]):
    """A new order each epoch, drawn from seed and epoch alone, so that a resumed run sees the same."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())

    def __len__(self) -> int:
        return self.size


class _Supervised(lightning.LightningModule):
    def __init__(
        self,
        model: nn.Module,
        target: TargetSpec,
        options: FitOptions,
        steps: int,
        order: _EpochOrder,
        watch: Callable[[EpochRecord], None] | None,
    ) -> None:
        super().__init__()
        self.model, self.target, self.options, self.steps = model, target, options, steps
        self.order, self.watch = order, watch
        self.curve: list[EpochRecord] = []
        self.answers: list[tuple[Tensor, Tensor]] = []
        self.losses: list[Tensor] = []
        self.held: list[tuple[Tensor, int]] = []
        self.begin, self.before = time.perf_counter(), 0.0

    def configure_optimizers(self) -> Any:
        options = self.options
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        total = max(1, self.steps * options.epochs)
        warm = max(1, round(options.warmup * total))
        floor = options.final_rate / options.learning_rate

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.order.epoch = self.current_epoch  # not by Lightning's own call, which lags by one after a resume
        self.losses = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        # dropout draws from the global generator: set by seed and step, so that a resumed run draws the same
        torch.manual_seed(self.options.seed * 1_000_003 + self.global_step)
        loss = self.target.loss(self.model(batch), batch.y)
        if not bool(torch.isfinite(loss)):
            raise DivergenceError(self.global_step + 1, float(loss.detach()))
        self.losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        self.answers, self.held = [], []

    def validation_step(self, batch: Any, _: int) -> None:
        answer = self.model(batch)
        self.held.append((self.target.loss(answer, batch.y), int(batch.num_graphs)))
        self.answers.append((self.target.decode(answer).cpu(), batch.y.cpu()))

    def on_validation_epoch_end(self) -> None:
        if self.held:
            graphs = sum(count for _, count in self.held)
            self.log("valid_loss", sum(float(loss) * count for loss, count in self.held) / graphs)

    def on_train_epoch_end(self) -> None:
        quality = valid_loss = None
        if self.held:
            valid_loss = float(self.trainer.callback_metrics["valid_loss"])
            decoded, y = (torch.cat([pair[place] for pair in self.answers]) for place in (0, 1))
            try:
                quality = self.target.score(decoded, y).quality
            except BadInput:  # a small validation part may lack one of two answers
                quality = None
        loss = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        seconds = self.before + time.perf_counter() - self.begin
        record = EpochRecord(self.current_epoch, loss, valid_loss, quality, seconds)
        self.curve.append(record)
        if self.watch is not None:
            self.watch(record)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = [asdict(record) for record in self.curve]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = [EpochRecord(**record) for record in checkpoint["curve"]]
        self.before = self.curve[-1].seconds if self.curve else 0.0


def _trainer(options: FitOptions, home: Path, validated: bool) -> Any:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=home,
            filename="best",
            monitor="valid_loss" if validated else None,
            save_last=True,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
    ]
    if options.patience is not None and validated:
        callbacks.append(EarlyStopping("valid_loss", patience=options.patience, check_on_train_epoch_end=True))
    if options.max_seconds is not None:
        callbacks.append(Timer({"seconds": max(1, round(options.max_seconds))}, interval="step"))
    accelerator = {"auto": "gpu" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "gpu"}[options.device]
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise BadInput("device cuda was asked for, but torch sees no GPU; use device='cpu'")
    if accelerator == "cpu" and options.precision == "16":
        raise BadInput("precision 16 needs a GPU; use bf16 or 32 on a CPU")
    with _quiet():
        return lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=accelerator,
            devices=1,
            precision=PRECISIONS[options.precision],
            gradient_clip_val=options.clip_norm or None,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=10**9,
        )


def _restore_best(model: nn.Module, trainer: Any, validated: bool) -> int | None:
    path = trainer.checkpoint_callback.best_model_path
    if not validated or not path or not Path(path).is_file():
        return None
    # a file that this very run wrote
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model.load_state_dict({name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()})
    return int(checkpoint["epoch"])


def _why_stopped(trainer: Any, options: FitOptions, epochs: int) -> str:
    if epochs >= options.epochs:
        return f"all {options.epochs} epochs done"
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return f"no better validation loss for {options.patience} epochs"
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            return f"{options.max_seconds:g} s of training are over"
    return f"stopped after {epochs} epochs"


def _warn_if_odd(model: nn.Module, options: FitOptions) -> None:
    if count_parameters(model) == 0:
        raise BadInput(f"{type(model).__name__} has no parameters to train")
    if options.batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        warnings.warn("batch norm over a batch of one graph is noisy; use a larger batch_size", stacklevel=3)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advertisements and advice on loaders."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.jit")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators as the seed says, and afterwards as they were."""
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def _whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes its place in one step at the end; the old one, if any, goes then."""
    if folder.exists() and not overwrite:
        raise BadInput(f"{folder} exists already; choose another place or allow overwriting")
    if folder.exists() and not (folder / "model.json").is_file() and any(folder.iterdir()):
        raise BadInput(f"{folder} holds something that is no model; it is not overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield part
        if folder.exists():
            old = part.with_name(part.name + "-old")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(folder)
        os.chmod(folder, 0o755)  # noqa: PTH101 - mkdtemp makes a private folder
    finally:
        shutil.rmtree(part, ignore_errors=True)


def keep_with(fitted: FittedModel, **extra: Any) -> FittedModel:
    """The same with more facts to keep."""
    return replace(fitted, extra={**(fitted.extra or {}), **extra})
