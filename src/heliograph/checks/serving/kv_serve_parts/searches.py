"""How soon a search finds what trying everything finds, and what is lost of the answers on other samples."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from heliograph.checks.serving.kv_serve_parts.caches import BASELINES, Calibration, long_cache, space_of
from heliograph.serving.kv_serve.pipeline import KVPipeline
from heliograph.serving.kv_serve.search import SearchSettings, random_search, search_points
from heliograph.trials.check import Context

__all__ = ["measure_quality", "measure_search"]

NEAR = 0.99


def measure_search(context: Context) -> Mapping[str, Any]:
    """``share``: the best feasible ratio found within the budget, over the best there is; ``evals``: evaluations until
    one within 1 % of that; where there is none within the budget, as many as trying everything takes.

    A block is nine tenths of the candidates, drawn by its seed and the same for every contender. ``notices``: the
    score falls with few levels and stays with many.
    """
    load = context.workload
    calibration = Calibration(load.params, space_of(load.params))
    everything = list(range(calibration.count))
    if context.contender == "random":  # two trials run at once; from both ends they measure half each
        everything.reverse()
    for done, index in enumerate(everything):
        calibration.ratio(index)
        calibration.quality(index)
        context.progress(done / calibration.count, "trying everything")
    qualities = [calibration.quality(index).relative for index in range(calibration.count)]
    coarse, fine = (calibration.quality(calibration.count + n).relative for n in range(2))
    calibration.save()
    kept = random.Random(context.seed).sample(range(calibration.count), round(0.9 * calibration.count))
    points = [calibration.points[n] for n in kept]
    ratios, own = [calibration.ratio(n) for n in kept], [qualities[n] for n in kept]
    distinct = len({point.lossy_part for point in points})
    feasible = [ratio for ratio, quality in zip(ratios, own, strict=True) if quality >= load["min_quality"]]
    context.keep("candidates, of them distinct, feasible", [len(points), distinct, len(feasible)])
    if not feasible:
        raise RuntimeError(f"no candidate keeps {load['min_quality']:.0%} of the score; the space has to hold one")
    settings = SearchSettings(
        min_quality=load["min_quality"],
        max_evals=load["max_evals"],
        prune=context.contender != "no pruning",
        model=context.contender != "no model",
    )
    search = random_search if context.contender == "random" else search_points
    found = search(points, ratios, lambda index: own[index], settings, seed=context.seed)
    best, reached = max(feasible), distinct
    for count, each in enumerate(found.evaluated, 1):
        if each.quality >= load["min_quality"] and each.ratio >= NEAR * best:
            reached = count
            break
    context.keep("best ratio", {"found": found.best.ratio if found.best else None, "there": best})
    context.keep("stopped", [found.stopped, len(found.evaluated)])
    return {
        "share": (found.best.ratio if found.best else 1.0) / best,
        "evals": float(reached),
        "notices": [coarse < load["min_quality"], fine >= load["min_quality"]],
    }


def measure_quality(context: Context) -> Mapping[str, Any]:
    """``relative`` score, ``agreement`` and ``divergence`` on samples that no search has seen; ``ratio`` at length.

    The system's point is what its search finds on the calibration samples.
    """
    load = context.workload
    seen = Calibration(load.params, space_of(load.params))
    settings = SearchSettings(min_quality=load["min_quality"], max_evals=load["max_evals"])
    found = seen.search(settings, load["search_seed"])
    if found.best is None:
        raise RuntimeError("the search has found no feasible point")
    points = {"KVServe": seen.points[found.best.index], **BASELINES}
    held_out = {**load.params, "sample_seed": load["sample_seed"] + 1000 + context.block, "tokens": load["held_tokens"]}
    fresh = Calibration(held_out, list(points.values()), seen.heads)
    quality = fresh.quality(list(points).index(context.contender))
    fresh.save()
    kv = long_cache(load["model"], load["ratio_tokens"])
    ratio = kv.nbytes / len(KVPipeline(points[context.contender], scores=seen.heads).compress(kv))
    context.keep("point", points[context.contender].name)
    context.keep("interval over samples", [quality.low, quality.high, quality.samples])
    return {
        "ratio": ratio,
        "relative": quality.relative,
        "agreement": quality.agreement,
        "divergence": quality.divergence,
    }
