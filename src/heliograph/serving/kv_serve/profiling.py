"""From a model and a task to profiles: a search by quality, then ratio and speed of what is good enough."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.serving.kv_serve.device import DeviceKVPipeline, restore_on_device, settle
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import CompressionPoint
from heliograph.serving.kv_serve.profile import UNIFIED, CompressionProfile, ProfileSet
from heliograph.serving.kv_serve.quality import Quality, QualityEvaluator, Score, prompt_cache, retrieval_scores
from heliograph.serving.kv_serve.search import SearchResult, SearchSettings, pareto_front, search_points
from heliograph.serving.kv_serve.tasks import FILLER, TASKS, TaskSample, make_samples, read_samples

__all__ = ["Progress", "measure_device_point", "measure_point", "profile_search", "profiles_of"]

Progress = Callable[[str, float], object]
F = TypeVar("F")


@dataclass(frozen=True)
class Measured:
    """Of a point on one cache: ratio of whole frames, and uncompressed bytes a second of both directions."""

    ratio: float
    compress_rate: float
    restore_rate: float


def measure_point(point: CompressionPoint, kv: Tensor, *, scores: Tensor | None = None, repeats: int = 3) -> Measured:
    """Compresses and restores [L, 2, T, G, D] some times; the median counts."""
    pipeline = KVPipeline(point, scores=scores)
    return _measured(pipeline.compress, restore, len, kv, repeats)


def measure_device_point(
    point: CompressionPoint, kv: Tensor, *, scores: Tensor | None = None, repeats: int = 5
) -> Measured:
    """The same on the device where [L, 2, T, G, D] lies; the point's codec is ``none`` or ``bitpack``."""
    pipeline = DeviceKVPipeline(point, scores=scores)
    return _measured(pipeline.compress, restore_on_device, lambda frame: frame.nbytes, kv, repeats)


def _measured(
    compress: Callable[[Tensor], F], back: Callable[[F], object], size: Callable[[F], int], kv: Tensor, repeats: int
) -> Measured:
    """Medians of both directions, until the device of ``kv`` has done its part; the first time does not count."""
    frame = compress(kv)
    back(frame)
    times = []
    for _ in range(repeats):
        settle(kv.device)
        begin = time.perf_counter()
        frame = compress(kv)
        settle(kv.device)
        middle = time.perf_counter()
        back(frame)
        settle(kv.device)
        times.append((middle - begin, time.perf_counter() - middle))
    there_s, back_s = (statistics.median(column) for column in zip(*times, strict=True))
    return Measured(kv.nbytes / size(frame), kv.nbytes / there_s, kv.nbytes / back_s)


def profiles_of(
    points: Mapping[str, tuple[CompressionPoint, Quality]],
    kv: Tensor,
    lengths: Sequence[int],
    *,
    scores: Tensor | None = None,
    repeats: int = 3,
) -> list[CompressionProfile]:
    """Profiles of some points, measured on the first tokens of a cache.

    Args:
        points: with their quality, by id.
        kv: [L, 2, T, G, D] of at least the largest length.
        lengths: tokens.
        scores: [L, G] of the heads.
        repeats: of each measurement.

    Raises:
        BadInput: lengths that the cache does not have.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1 or lengths[-1] > kv.shape[2]:
        raise BadInput(f"lengths lie between 1 and the {kv.shape[2]} tokens of the cache; got {lengths}")
    found = []
    for name, (point, quality) in points.items():
        rows = [measure_point(point, kv[:, :, :n].contiguous(), scores=scores, repeats=repeats) for n in lengths]
        found.append(
            CompressionProfile(
                name,
                point,
                tuple(lengths),
                tuple(row.ratio for row in rows),
                tuple(row.compress_rate for row in rows),
                tuple(row.restore_rate for row in rows),
                quality.relative,
                quality.low,
                quality.high,
                quality.samples,
            )
        )
    return found


def profile_search(
    model: str | Path | LanguageModel,
    space: Iterable[CompressionPoint],
    task: str | Path | Sequence[str] = "kv-lookup",
    *,
    min_quality: float = 0.97,
    max_evals: int = 80,
    samples: int = 8,
    tokens: int = 256,
    lengths: Sequence[int] = (64, 256, 512),
    score: Score = "probability",
    seed: int = 0,
    progress: Progress = lambda _, __: None,
) -> ProfileSet:
    """Profiles for a model, found by evaluating few points.

    Each task gets its own profiles, and the pooled samples of all tasks those for unknown labels.

    Args:
        model: what :func:`~heliograph.lm.core.load.load_model` takes, or what it gave.
        space: candidates, for example a :class:`CompressionSpace`.
        task: passkey, kv-lookup, copy, quote, several of them, or a file of JSON lines with prompt and answer.
        min_quality: relative to the uncompressed cache.
        max_evals: points whose answers are scored, for each task.
        samples, tokens: of each task that is made by rule.
        lengths: tokens at which ratio and speed are measured.
        score: ``probability`` of the answers, or ``exact``.
        seed: of samples and search.
        progress: told what is being done and how far it is.

    Raises:
        BadInput: no such task, an unreadable file, no candidates, or lengths beyond the model's context.
        MissingExtra: scikit-learn, or a codec's library, is not installed.
    """
    points = list(space)
    if not points:
        raise BadInput("a search needs at least one candidate")
    if not isinstance(model, LanguageModel):
        progress("loading the model", 0.0)
        model = load_model(model)
    longest = max(lengths, default=0)
    if not 1 <= longest <= model.config.context:
        raise BadInput(f"lengths lie between 1 and the model's context of {model.config.context}; got {list(lengths)}")
    scores = None
    if any(0 < point.hybrid_ratio < 1 and point.split == "head" for point in points):
        scores = retrieval_scores(model, length=min(64, model.config.context // 2), seed=seed)
    by_task = _samples(model, task, samples, tokens, seed)
    long = prompt_cache(model, _text(model, longest))
    workloads: dict[str, tuple[CompressionProfile, ...]] = {}
    notes: dict[str, object] = {"min_quality": min_quality, "candidates": len(points), "score": score, "seed": seed}
    settings = SearchSettings(min_quality=min_quality, max_evals=max_evals)
    pooled = [sample for found in by_task.values() for sample in found]
    jobs = {UNIFIED: pooled} if len(by_task) == 1 else {**by_task, UNIFIED: pooled}
    for label, own in jobs.items():

        def told(share: float, label: str = label) -> None:
            progress(f"prompts of {label}", share)

        evaluator = QualityEvaluator(model, own, score=score, scores=scores, progress=told)
        result, profiles = _search(evaluator, points, settings, long, lengths, seed, label, progress)
        workloads[label] = profiles
        notes[label] = {
            "evaluations": len(result.evaluated),
            "feasible": len(result.feasible),
            "stopped": result.stopped,
            "reference": evaluator.reference,
        }
    if len(by_task) == 1:
        workloads[next(iter(by_task))] = workloads[UNIFIED]
    table = () if scores is None else tuple(tuple(row) for row in scores.tolist())
    return ProfileSet(model.name, model.fingerprint, workloads, table, notes)


def _search(
    evaluator: QualityEvaluator,
    points: Sequence[CompressionPoint],
    settings: SearchSettings,
    long: Tensor,
    lengths: Sequence[int],
    seed: int,
    label: str,
    progress: Progress,
) -> tuple[SearchResult, tuple[CompressionProfile, ...]]:
    ratios = []
    for number, point in enumerate(points):
        ratios.append(evaluator.ratio(point))
        progress(f"ratios of {label}", (number + 1) / len(points))
    result = search_points(
        points,
        ratios,
        lambda index: evaluator(points[index]).relative,
        settings,
        seed=seed,
        progress=lambda count, _: progress(f"answers of {label}", count / settings.max_evals),
    )
    good = {each.index for each in result.feasible}
    lossy = {points[index].lossy_part for index in good}
    # a codec that compresses less may be faster: all codecs of what is good enough are measured
    kept = {point.name: (point, evaluator(point)) for point in points if point.lossy_part in lossy}
    rough = {name: (each, evaluator.ratio(each[0])) for name, each in kept.items()}
    names = list(rough)
    best = sorted(names, key=lambda name: -rough[name][1])[:24]  # more would be measured for nothing
    profiles = profiles_of({name: kept[name] for name in best}, long, lengths, scores=evaluator.scores)
    front = pareto_front([(p.quality, p.ratios[-1], p.rate(p.lengths[-1])) for p in profiles]) if profiles else []
    return result, tuple(profiles[number] for number in front)


def _samples(
    model: LanguageModel, task: str | Path | Sequence[str], samples: int, tokens: int, seed: int
) -> dict[str, list[TaskSample]]:
    names = [task] if isinstance(task, str | Path) else list(task)
    if not names:
        raise BadInput("a search needs at least one task")
    found = {}
    for name in names:
        if str(name) in TASKS:
            found[str(name)] = make_samples(model, str(name), samples, tokens, seed)
        elif Path(name).suffix in (".jsonl", ".json") or Path(name).is_file():
            found[Path(name).stem] = read_samples(model, name, None)
        else:
            raise BadInput(f"a task is one of {', '.join(TASKS)}, or a .jsonl file; got {str(name)!r}")
    return found


def _text(model: LanguageModel, tokens: int) -> list[int]:
    """Filler text of so many tokens."""
    whole: list[int] = []
    number = 0
    while len(whole) < tokens:
        text = f"{number}. {FILLER[number * 7 % len(FILLER)]}"
        whole += model.tokenizer.encode(text, special=not whole)
        number += 1
    return whole[:tokens]


def long_prompt(model: LanguageModel, tokens: int, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Keys and values of a text of so many tokens, for measurements of speed."""
    return prompt_cache(model, _text(model, tokens), dtype)
