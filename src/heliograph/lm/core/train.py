"""Training of small language models on whole corpora: next-token loss, one recipe, resumable, the same bits again.

Which windows of the text a step sees depends on the seed and the step alone, so a run that was interrupted goes on with
the windows that it would have seen, and ends with the same weights.

Shapes: B windows, T tokens of a window.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliograph.errors import BadInput
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import CachedAttention, Decoder, fingerprint
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.tokens import Tokenizer
from heliograph.random import CounterRng

__all__ = [
    "TrainingPlan",
    "TrainingPoint",
    "encode_documents",
    "new_model",
    "next_token_loss",
    "small_config",
    "text_loss",
    "train_model",
]

Loss = Callable[[Decoder, Tensor], Tensor]
STATE = "training.pt"


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained.

    Attributes:
        steps: of the optimizer.
        batch, length: windows a step, and tokens of each that are predicted.
        learning_rate: at its highest, after ``warmup`` steps; it then falls along a cosine to a tenth.
        weight_decay: of matrices; vectors have none.
        clip: of the gradient's norm.
        evaluate_every: steps between two evaluations, and two saves; the last step is always evaluated.
        seed: of the windows.
    """

    steps: int = 500
    batch: int = 16
    length: int = 128
    learning_rate: float = 2e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        if min(self.steps, self.batch, self.length, self.evaluate_every) < 1 or self.warmup < 0:
            raise BadInput(f"steps, batch, length and evaluate_every are at least 1, warmup at least 0: {self}")
        if not (self.learning_rate > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise BadInput(f"learning rate and clip are positive, weight decay at least 0: {self}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class TrainingPoint:
    """Where training stands.

    Attributes:
        step: steps done.
        train_loss: mean over the steps since the point before, nats a token.
        validation_loss: nats a token; None without validation text.
        seconds: of training so far, evaluations left out.
    """

    step: int
    train_loss: float
    validation_loss: float | None
    seconds: float


def small_config(
    vocabulary: int,
    *,
    layers: int = 4,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    context: int = 512,
) -> DecoderConfig:
    """The shape of a small Llama: heads of ``hidden / heads``, feed-forward about 8/3 of the width, tied matrices."""
    width = hidden // max(1, heads)
    inner = -(-8 * hidden // 3 // 32) * 32
    return DecoderConfig(
        "llama", vocabulary, layers, hidden, inner, heads, kv_heads or heads, width, context, 1e-5,
        RopeSpec(10_000.0, width), tied=True,
    )  # fmt: skip


def new_model(
    config: DecoderConfig, tokenizer: Tokenizer, *, seed: int = 0, device: str = "cpu", name: str = "small"
) -> LanguageModel:
    """A model with fresh weights: normal of 0.02, outputs of a layer smaller by the root of twice the layers.

    Raises:
        BadInput: the tokenizer has more tokens than the model's vocabulary.
    """
    if tokenizer.size > config.vocabulary:
        raise BadInput(f"the tokenizer has {tokenizer.size} tokens, the model room for {config.vocabulary}")
    decoder = Decoder(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own, weight in decoder.named_parameters():
            if weight.dim() > 1:
                deep = own.endswith(("out.weight", "down.weight"))
                weight.normal_(std=0.02 / (math.sqrt(2 * config.layers) if deep else 1), generator=noise)
            elif own.endswith("bias"):
                weight.zero_()
    decoder = decoder.to(device).eval()
    return LanguageModel(decoder, tokenizer, name, fingerprint(decoder))


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Tensor:
    """All documents one after another, each followed by the tokenizer's first end token; int32, one axis."""
    end = list(tokenizer.end_tokens[:1])
    rows = [torch.tensor(tokenizer.encode(text, special=False) + end, dtype=torch.int32) for text in documents]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int32)


def next_token_loss(decoder: Decoder, windows: Tensor) -> Tensor:
    """Mean loss in nats of predicting tokens 1 .. T from those before, of windows [B, T + 1]."""
    seen = windows[:, :-1]
    positions = torch.arange(seen.shape[1], device=seen.device).expand_as(seen)
    hidden = decoder(decoder.embed(seen), positions, CachedAttention())
    return functional.cross_entropy(decoder.logits(hidden).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def text_loss(model: LanguageModel, tokens: Tensor, *, length: int = 128, batch: int = 16, most: int = 64) -> float:
    """Mean loss in nats a token over windows side by side, the first ``most`` batches.

    Raises:
        BadInput: fewer tokens than one window has.
    """
    device = next(model.decoder.parameters()).device
    windows = _side_by_side(tokens, length)
    total, count = 0.0, 0
    for part in torch.split(windows, batch)[:most]:
        total += float(next_token_loss(model.decoder, part.to(device))) * len(part)
        count += len(part)
    return total / count


@torch.enable_grad()
def train_model(
    model: LanguageModel,
    tokens: Tensor,
    plan: TrainingPlan = TrainingPlan(),
    *,
    validation: Tensor | None = None,
    loss: Loss = next_token_loss,
    folder: Path | str | None = None,
    progress: Callable[[TrainingPoint], object] | None = None,
) -> list[TrainingPoint]:
    """Trains a model in place.

    Args:
        model: trained where it is, and left in eval mode.
        tokens: of the text, one axis, from :func:`encode_documents`.
        plan: the recipe.
        validation: tokens of text held out.
        loss: of windows [B, T + 1]; next-token loss unless a system has its own.
        folder: where the state is kept after each evaluation; a run found there goes on.
        progress: called after each evaluation.

    Returns:
        One point an evaluation, those before an interruption included.

    Raises:
        BadInput: too little text, tokens outside the vocabulary, a loss that is not finite, a folder that holds another
            run or cannot be written.
    """
    decoder, device = model.decoder, next(model.decoder.parameters()).device
    if len(tokens) < plan.length + 1 or (validation is not None and len(validation) < plan.length + 1):
        raise BadInput(
            f"{len(tokens)} tokens are too few for windows of {plan.length + 1}; shorten them or give more text"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= model.config.vocabulary:
        raise BadInput(f"tokens go up to {int(tokens.max())}; the model knows {model.config.vocabulary}")
    optimizer = _optimizer(decoder, plan)
    kept = None if folder is None else _Kept(Path(folder), _run_name(model, tokens, plan))
    step, points, seconds = (0, [], 0.0) if kept is None else kept.load(decoder, optimizer)
    rng = CounterRng(plan.seed)
    source = tokens.to(torch.int64)
    since: list[float] = []
    decoder.train()
    begin = time.perf_counter()
    while step < plan.steps:
        starts = rng.at(step).bits(plan.batch).astype("uint64") % (len(source) - plan.length)
        windows = torch.stack([source[s : s + plan.length + 1] for s in starts.astype("int64").tolist()]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        value = loss(decoder, windows)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(decoder.parameters(), plan.clip)
        optimizer.step()
        since.append(float(value.detach()))
        step += 1
        if not math.isfinite(since[-1]):
            decoder.eval()
            raise BadInput(f"the loss was {since[-1]} at step {step}; lower the learning rate")
        if step % plan.evaluate_every == 0 or step == plan.steps:
            seconds += time.perf_counter() - begin
            decoder.eval()
            held = None if validation is None else text_loss(model, validation, length=plan.length, batch=plan.batch)
            points.append(TrainingPoint(step, sum(since) / len(since), held, seconds))
            if kept is not None:
                kept.save(decoder, optimizer, step, points)
            if progress is not None:
                progress(points[-1])
            since = []
            decoder.train()
            begin = time.perf_counter()
    decoder.eval()
    return points


class _Kept:
    """The state of a run in a folder: one file, replaced in one step."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / STATE, name

    def load(self, decoder: Decoder, optimizer: torch.optim.Optimizer) -> tuple[int, list[TrainingPoint], float]:
        if not self.path.is_file():
            return 0, [], 0.0
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            name = state["name"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise BadInput(f"{self.path} is damaged ({type(error).__name__}); remove it to begin again") from None
        if name != self.name:
            raise BadInput(
                f"{self.path} belongs to another run (other text, model or plan); name another folder or remove it"
            )
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        points = [TrainingPoint(**point) for point in json.loads(state["points"])]
        return int(state["step"]), points, points[-1].seconds if points else 0.0

    def save(
        self, decoder: Decoder, optimizer: torch.optim.Optimizer, step: int, points: Sequence[TrainingPoint]
    ) -> None:
        part = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".part-", delete=False) as file:
                part = file.name
                state = {
                    "name": self.name,
                    "step": step,
                    "points": json.dumps([asdict(point) for point in points]),
                    "decoder": decoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(self.path)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            raise BadInput(f"{self.path} cannot be written: {error}") from None
        finally:
            if part:
                Path(part).unlink(missing_ok=True)


def _run_name(model: LanguageModel, tokens: Tensor, plan: TrainingPlan) -> str:
    """What must be the same for a run to go on."""
    text = int(tokens.to(torch.int64).sum()), len(tokens), tokens[:64].tolist(), tokens[-64:].tolist()
    return json.dumps([asdict(model.config), asdict(plan), text], sort_keys=True)


def _optimizer(decoder: Decoder, plan: TrainingPlan) -> torch.optim.Optimizer:
    matrices = [weight for weight in decoder.parameters() if weight.dim() > 1]
    vectors = [weight for weight in decoder.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95))


def _side_by_side(tokens: Tensor, length: int) -> Tensor:
    """Windows [N, T + 1] that share only their ends."""
    count = (len(tokens) - 1) // length
    if count < 1:
        raise BadInput(f"{len(tokens)} tokens are fewer than a window of {length + 1}")
    whole = tokens[: count * length + 1].to(torch.int64)
    return torch.stack([whole[n * length : (n + 1) * length + 1] for n in range(count)])
