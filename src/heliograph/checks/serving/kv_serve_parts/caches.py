"""Models, caches and scores of the check; what takes long is kept on disk between trials.

The relative score of a point is measured when it is first asked for and kept by what it depends on: model, samples,
point. A search that asks for it again gets the kept number, and counts the evaluation all the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliograph.data.keep import cache_home, read_tables, write_tables
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import Decoder, fingerprint
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
from heliograph.serving.kv_serve.profile import NO_COMPRESSION, CompressionProfile
from heliograph.serving.kv_serve.profiling import long_prompt, profiles_of
from heliograph.serving.kv_serve.quality import Quality, QualityEvaluator, retrieval_scores
from heliograph.serving.kv_serve.search import SearchResult, SearchSettings, search_points
from heliograph.serving.kv_serve.space import CompressionSpace
from heliograph.serving.kv_serve.tasks import make_samples

__all__ = ["BASELINES", "Calibration", "best_static", "language_model", "long_cache", "measured_front", "space_of"]

# few recent tokens stay as they are: prompts here are short, and 128 of them would be half of what travels
KIVI = CompressionPoint(key_high=4, key_low=4, value_high=4, value_low=4, group=32, keep_recent=32, codec="bitpack")
BASELINES: Mapping[str, CompressionPoint] = {
    "none": METHODS["none"],
    "KIVI": KIVI,
    "CacheGen": METHODS["cachegen"],
    "QuaRot": METHODS["quarot"],
}


# a score that does not fall with the first and stay with the second measures nothing
SANITY = (
    CompressionPoint(quantizer="absmax", key_high=4, key_low=4, value_high=4, value_low=4),
    CompressionPoint(key_high=256, key_low=256, value_high=256, value_low=256),
)


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    size, end_tokens, begin_token, template = 256, (255,), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def decode(self, tokens: list[int], *, special: bool = False) -> str:  # noqa: ARG002
        return bytes(t for t in tokens if t != 255).decode(errors="replace")

    def text_of(self, token: int | None) -> str:
        return "" if token is None else chr(token)


def language_model(name: str, seed: int = 0) -> LanguageModel:
    """A model by name; ``tiny`` is two random layers over bytes."""
    if name != "tiny":
        return load_model(name)
    generator = torch.Generator().manual_seed(seed)
    config = DecoderConfig(
        "llama", vocabulary=256, layers=2, hidden=32, feed_forward=64, heads=4, kv_heads=2, head_dim=8, context=1024,
        norm_eps=1e-5, rope=RopeSpec(1e4, 8),
    )  # fmt: skip
    decoder = Decoder(config).eval()
    for weight in decoder.parameters():
        weight.requires_grad_(False)
        if weight.dim() > 1:
            weight.normal_(std=0.2, generator=generator)
    return LanguageModel(decoder, _Bytes(), "tiny", fingerprint(decoder))  # type: ignore[arg-type]


def _kept(kind: str, facts: Any) -> Any:
    key = hashlib.blake2b(json.dumps([facts, 3], sort_keys=True).encode(), digest_size=8).hexdigest()
    return cache_home() / "kv_serve" / f"{kind}-{key}.npz"


def long_cache(model: str, tokens: int) -> Tensor:
    """Keys and values of a text in bfloat16, [L, 2, T, G, D]; computed once on a machine."""
    path = _kept("cache", [model, tokens])
    found = read_tables(path)
    if found is None:
        found = {"bits": long_prompt(language_model(model), tokens).view(torch.int16).numpy()}
        write_tables(path, found)
    return torch.from_numpy(np.ascontiguousarray(found["bits"])).view(torch.bfloat16)


def space_of(load: Mapping[str, Any]) -> list[CompressionPoint]:
    """Candidates of the search."""
    return list(CompressionSpace(**{name: tuple(choices) for name, choices in load["space"].items()}))


class Calibration:
    """Ratios and relative scores of points on a few samples of several tasks.

    Args:
        load: ``model``, ``tasks``, ``samples`` of each, ``tokens``, ``sample_seed``.
        points: candidates.
        heads: scores of the heads [L, G] where they are known; they depend on the model alone.

    Attributes:
        count: of the candidates; two more points behind them show that the score notices what is lost.
    """

    def __init__(
        self, load: Mapping[str, Any], points: Sequence[CompressionPoint], heads: Tensor | None = None
    ) -> None:
        self.load, self.count, self.points = load, len(points), [*points, *SANITY]
        facts = [load[name] for name in ("model", "tasks", "samples", "tokens", "sample_seed")]
        self._path = _kept("scores", [facts, [point.to_json() for point in self.points]])
        kept = read_tables(self._path)
        empty = np.full((len(self.points), 6), np.nan)
        self._table = empty if kept is None else kept["table"].copy()
        self._heads = heads if kept is None else torch.from_numpy(kept["heads"].copy())
        self._new = 0

    @functools.cached_property
    def evaluator(self) -> QualityEvaluator:
        """Made when something has to be measured."""
        load = self.load
        model = language_model(load["model"])
        samples = [
            sample
            for task in load["tasks"]
            for sample in make_samples(model, task, load["samples"], load["tokens"], load["sample_seed"])
        ]
        if self._heads is None:
            self._heads = retrieval_scores(model)
        return QualityEvaluator(model, samples, scores=self._heads)

    @property
    def heads(self) -> Tensor:
        """Scores of the heads, [L, G]."""
        if self._heads is None:
            _ = self.evaluator
        assert self._heads is not None
        return self._heads

    def ratio(self, index: int) -> float:
        """Compression ratio of a candidate over two samples, whole frames."""
        if np.isnan(self._table[index, 0]):
            evaluator = self.evaluator
            self._table[index, 0] = evaluator.ratio(self.points[index], 2)  # it hardly varies
            self._changed()
        return float(self._table[index, 0])

    def quality(self, index: int) -> Quality:
        """Relative score of a candidate."""
        if np.isnan(self._table[index, 1]):
            found = self.evaluator(self.points[index])
            self._table[index, 1:] = (
                found.relative, found.low, found.high, found.agreement, found.divergence,
            )  # fmt: skip
            self._changed()
        relative, low, high, agreement, divergence = (float(value) for value in self._table[index, 1:])
        return Quality(relative, low, high, self.load["samples"] * len(self.load["tasks"]), agreement, divergence)

    def _changed(self) -> None:
        self._new += 1
        if self._new % 16 == 0:
            self.save()

    def save(self) -> None:
        """Keeps what has been measured, and takes over what another process has measured since."""
        if not self._new:
            return
        other = read_tables(self._path)
        if other is not None:
            missing = np.isnan(self._table)
            self._table[missing] = other["table"][missing]
        write_tables(self._path, {"table": self._table, "heads": self.heads.numpy()})

    def search(self, settings: SearchSettings, seed: int) -> SearchResult:
        """The engine's search among the candidates."""
        ratios = [self.ratio(index) for index in range(self.count)]
        found = search_points(
            self.points[: self.count], ratios, lambda index: self.quality(index).relative, settings, seed=seed
        )
        self.save()
        return found


def measured_front(load: Mapping[str, Any], kv: Tensor, repeats: int = 2) -> tuple[list[CompressionProfile], Tensor]:
    """Profiles that keep the quality, measured here and now on ``kv``; and the scores of the heads.

    The best way of losing bits that the search finds, with every codec, and the lossless codec.
    """
    calibration = Calibration(load, space_of(load))
    settings = SearchSettings(min_quality=load["min_quality"], max_evals=load["max_evals"])
    found = calibration.search(settings, load["search_seed"])
    lossy = [] if found.best is None else [calibration.points[found.best.index].lossy_part]
    chosen = {
        point.name: (point, calibration.quality(index))
        for index, point in enumerate(calibration.points)
        if point.lossy_part in lossy
    }
    sure = Quality(1.0, 1.0, 1.0, 0, 1.0, 0.0)
    chosen["lossless"] = METHODS["lossless"], sure
    calibration.save()
    heads = calibration.heads
    return profiles_of(chosen, kv, [kv.shape[2]], scores=heads, repeats=repeats), heads


def best_static(profiles: list[CompressionProfile], tokens: int, bandwidths: list[float]) -> CompressionProfile:
    """The one profile that is best over a sweep: least geometric mean of the predicted times."""

    def mean(one: CompressionProfile) -> float:
        return sum(math.log(one.seconds(1, tokens, b) + 1e-12) for b in bandwidths)

    return min([NO_COMPRESSION, *profiles], key=mean)
