"""Checks with known answers: they cost nothing and fail on purpose."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from heliograph.trials.check import (
    Check,
    Claim,
    Contender,
    Context,
    Control,
    Exact,
    Experiment,
    Size,
    StressAxis,
    Superior,
    Workload,
)

ARMS = (Contender("system", "system"), Contender("baseline", "baseline"), Contender("twin", "control"))
PLAIN = Workload("plain", {"gain": 2.0, "noise": 0.1})


def noisy_score(context: Context) -> dict[str, float]:
    rng = np.random.default_rng([context.seed, ord(context.contender[0])])
    gain = context.workload["gain"] if context.contender == "system" else 0.0
    context.progress(0.5, "half way")
    return {"score": gain + context.workload["noise"] * rng.standard_normal()}


def always_true(context: Context) -> dict[str, bool]:
    context.say(f"block {context.block} agrees")
    return {"agrees": True, "control_agrees": True}


def busy_arms(context: Context):
    array = np.ones(context.workload["elements"])
    return {"system": lambda: array.sum(), "baseline": lambda: (array.sum(), array.sum(), array.sum(), array.sum())}


def _score_experiment(blocks: int = 6, **params: object) -> Experiment:
    load = PLAIN.with_params(**params) if params else PLAIN
    sizes = {"smoke": Size((load,), 2), "laptop": Size((load,), blocks), "gpu": Size((load,), 8)}
    return Experiment("score", "a score with known gain", ARMS, noisy_score, sizes)


EXACT = Experiment(
    "exact",
    "always true",
    (Contender("system", "system"),),
    always_true,
    {p: Size((Workload("one"),), 1) for p in ("smoke", "laptop", "gpu")},
)
SCORE_CLAIM = Claim(
    claim="better_score",
    experiment="score",
    metric="score",
    contender="system",
    baseline="baseline",
    kind=Superior(1.0),
    measured="score of a synthetic arm",
    cannot_show="anything about the world",
)
EXACT_CLAIM = Claim(
    claim="agreement",
    experiment="exact",
    metric="agrees",
    contender="system",
    kind=Exact(),
    measured="agreement",
    cannot_show="anything about the world",
    presets=("smoke", "laptop", "gpu"),
)
TWINS = Control("twins", "two equal arms tie", "score", "score", "twin", "baseline", margin=0.5)
EXACT_CONTROL = Control("still true", "what must hold holds", "exact", "control_agrees", "system")

CHECK = Check(
    slug="synthetic",
    experiments=(EXACT, _score_experiment()),
    claims=(EXACT_CLAIM, SCORE_CLAIM),
    controls=(EXACT_CONTROL, TWINS),
)


def _useless(context: Context) -> dict[str, float]:
    return {"score": 1.0}


USELESS = Check(
    slug="synthetic",
    experiments=(Experiment("score", "equal arms", ARMS, _useless, {"laptop": Size((PLAIN,), 6)}),),
    claims=(SCORE_CLAIM,),
    controls=(TWINS,),
)


def _behave(context: Context) -> dict[str, float]:
    what = context.workload["what"]
    if context.contender == "system" and context.block == 0:
        if what == "raise":
            raise RuntimeError("a deliberate failure")
        if what == "segfault":
            os.kill(os.getpid(), 11)
        if what == "hang":
            time.sleep(60)
        if what == "memory":
            hoard = [np.ones(2**22) for _ in range(64)]
            time.sleep(60)
            del hoard
        if what == "print":
            line = "x" * 1023 + "\n"
            for _ in range(context.workload["kib"]):
                sys.stdout.write(line)
        if what == "nan":
            return {"score": float("nan")}
        if what == "fork" and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    return {"score": 1.0}


def misbehaving(what: str, **params: object) -> Check:
    load = Workload("odd", {"what": what, **params})
    size = Size((load,), 1, time_limit_s=2.0 if what == "hang" else 30.0, memory_limit_bytes=600 * 2**20)
    return Check(
        slug="synthetic",
        experiments=(Experiment("score", what, ARMS, _behave, {"laptop": size}),),
        claims=(SCORE_CLAIM,),
        controls=(TWINS,),
    )


RAISES, SEGFAULTS, HANGS, HOARDS, NANS, FORKS = (
    misbehaving(w) for w in ("raise", "segfault", "hang", "memory", "nan", "fork")
)
PRINTS = misbehaving("print", kib=2**20)

TIMED = Check(
    slug="synthetic",
    experiments=(
        Experiment(
            "time",
            "four sums against one",
            ARMS[:2],
            busy_arms,
            {"laptop": Size((Workload("sum", {"elements": 200_000}),), 5, repeats=5)},
            kind="interleaved",
        ),
    ),
    claims=(
        Claim(
            claim="faster",
            experiment="time",
            metric="seconds",
            contender="system",
            baseline="baseline",
            kind=Superior(1.5),
            effect="ratio",
            better="lower",
            measured="seconds of a sum",
            cannot_show="anything about the world",
        ),
    ),
    controls=(Control("ties", "nothing", "time", "seconds", "system", "system", effect="ratio", margin=1.01),),
)


def _marked(context: Context) -> dict[str, float]:
    folder = Path(os.environ["HELIOGRAPH_TEST_MARKS"])
    (folder / f"{context.block}-{context.contender}-{os.getpid()}").touch()
    if context.block >= 3 and os.environ.get("HELIOGRAPH_TEST_HOLD"):
        time.sleep(250)  # until the run is interrupted
    time.sleep(0.15)
    return noisy_score(context)


MARKED = Check(
    slug="synthetic",
    experiments=(Experiment("score", "leaves a mark a trial", ARMS, _marked, {"laptop": Size((PLAIN,), 8)}),),
    claims=(SCORE_CLAIM,),
    controls=(TWINS,),
)

FRAGILE = Check(
    slug="synthetic",
    experiments=(_score_experiment(),),
    claims=(SCORE_CLAIM,),
    controls=(TWINS,),
    stress=(StressAxis("score", "gain", (1.5, 0.0)),),
)
