"""What one claim says about another: it follows, it contradicts, or neither. A judge's false-green rate decides safety.

A judge that takes a falsehood for a restatement of something confirmed confirms it. :func:`judge_quality` measures how
often that happens, for any judge, on labelled pairs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from heliograph.agents.core.lm import LM
from heliograph.agents.error_cascade.claims import FREE_TEXT, Claim
from heliograph.agents.error_cascade.values import base_number, norm, same_value
from heliograph.errors import BadInput
from heliograph.statistics import Interval, wilson

__all__ = ["ExactJudge", "Judge", "JudgeQuality", "LMJudge", "NoisyJudge", "Relation", "judge_quality"]

Relation = Literal["entails", "contradicts", "neutral"]
RELATIONS: tuple[Relation, ...] = ("entails", "contradicts", "neutral")


class Judge(Protocol):
    """Compares claims."""

    def __call__(self, known: Claim, new: Claim, /) -> Relation:
        """Whether ``known`` entails ``new``, contradicts it, or neither."""
        ...


_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


class ExactJudge:
    """By key and value: claims about other things are neutral, units are converted, a bound follows from a value.

    Args:
        multivalued: predicates of which a subject may have several values, which then do not contradict; every other
            predicate has one value.
        tolerance: relative, within which numbers are the same.

    Raises:
        BadInput: a tolerance outside [0, 1).
    """

    def __init__(self, *, multivalued: Collection[str] = (), tolerance: float = 1e-6) -> None:
        if not 0 <= tolerance < 1:
            raise BadInput(f"tolerance lies in [0, 1); got {tolerance}")
        self.multivalued = frozenset(norm(name) for name in multivalued)
        self.tolerance = tolerance

    def __call__(self, known: Claim, new: Claim) -> Relation:
        """Compares two claims; the scope "" covers every scope."""
        if known.key[1:] != new.key[1:] or (known.scope and known.scope != new.scope):
            return "neutral"
        if "quoted" in (known.stance, new.stance):
            return "neutral"
        if known.stance == "denied":
            if new.stance == "denied":
                return "entails" if self._relation(new, known) == "entails" else "neutral"
            # Not a; then whatever would make a true is wrong.
            return "contradicts" if self._relation(new, known) == "entails" else "neutral"
        relation = self._relation(known, new)
        if new.stance == "denied":
            swapped: Mapping[Relation, Relation] = {"entails": "contradicts", "contradicts": "entails"}
            return swapped.get(relation, "neutral")
        return relation

    def _relation(self, known: Claim, new: Claim) -> Relation:
        """Both read as asserted."""
        first, second = _number(known), _number(new)
        if "=" == known.operator == new.operator:
            if same_value(known.object, known.unit, new.object, new.unit, self.tolerance):
                return "entails"
            comparable = known.predicate != FREE_TEXT and known.key[2] not in self.multivalued
            if comparable and first is not None and second is not None and first[1] != second[1]:
                return "neutral"  # 5 kg and 5 s measure different things; nobody can say which is meant
            return "contradicts" if comparable else "neutral"
        if first is None or second is None or first[1] != second[1]:
            return "neutral"
        a, b = first[0], second[0]
        if known.operator == "=":
            near = abs(a - b) <= self.tolerance * max(abs(a), abs(b)) and new.operator in (">=", "<=")
            return "entails" if near or _HOLDS[new.operator](a, b) else "contradicts"
        if new.operator == "=":
            near = abs(a - b) <= self.tolerance * max(abs(a), abs(b)) and known.operator in (">=", "<=")
            return "neutral" if near or _HOLDS[known.operator](b, a) else "contradicts"
        return _bounds(known.operator, a, new.operator, b)


def _bounds(known: str, a: float, new: str, b: float) -> Relation:
    """Of two half-lines: the first within the second, apart from it, or neither."""
    up, new_up = known[0] == ">", new[0] == ">"
    if up == new_up:
        inside = a > b if up else a < b
        return "entails" if inside or (a == b and (known == new or len(new) == 2)) else "neutral"
    apart = a > b if up else a < b
    return "contradicts" if apart or (a == b and not len(known) == len(new) == 2) else "neutral"


def _number(claim: Claim) -> tuple[float, str] | None:
    if isinstance(claim.object, bool) or not isinstance(claim.object, int | float):
        return None
    return base_number(float(claim.object), claim.unit)


class LMJudge:
    """A language model scores three answers to a question about two claims; equal ids need no question.

    Args:
        lm: must be able to ``score``.
        bias: added to the scores of follows, contradicts and neither, to calibrate a small model.
        margin: lead that "follows" needs over the next answer, in log-probability a token. A larger one costs accuracy
            and lowers the false-green rate.
    """

    PROMPT = (
        "Fact: {known}\nStatement: {new}\nDoes the statement follow from the fact, contradict it, or neither?\nAnswer:"
    )
    ANSWERS = (" It follows.", " It contradicts.", " Neither.")

    def __init__(self, lm: LM, *, bias: tuple[float, float, float] = (0.0, 0.0, 0.0), margin: float = 0.0) -> None:
        if margin < 0:
            raise BadInput(f"margin is 0 or more; got {margin}")
        self.lm, self.bias, self.margin = lm, bias, margin

    def __call__(self, known: Claim, new: Claim) -> Relation:
        """The answer that scores best."""
        if known.id == new.id:
            return "entails"
        if "quoted" in (known.stance, new.stance):
            return "neutral"
        scores = self.lm.score(self.PROMPT.format(known=known.said(), new=new.said()), self.ANSWERS)
        scores = np.asarray(scores, dtype=float) + np.asarray(self.bias)
        if scores[0] < max(scores[1:]) + self.margin:
            return RELATIONS[1 + int(np.argmax(scores[1:]))]
        return "entails"


class NoisyJudge:
    """Another judge's answers, confused at given rates; what a better or worse judge would do to a system.

    The same pair gets the same answer every time, as from a model at temperature 0.

    Args:
        judge: whose answers count as true.
        confusion: for each true relation, the probabilities of answering entails, contradicts, neutral.
        seed: of the confusion.

    Raises:
        BadInput: a row is missing, or is no distribution.
    """

    def __init__(self, judge: Judge, confusion: Mapping[Relation, tuple[float, float, float]], seed: int = 0) -> None:
        for name in RELATIONS:
            row = confusion.get(name, ())
            if len(row) != 3 or min(row) < 0 or abs(sum(row) - 1) > 1e-9:
                raise BadInput(f"confusion[{name!r}] needs three probabilities that add up to 1; got {row}")
        self.judge, self.seed = judge, seed
        self._rows = {name: np.cumsum(confusion[name]) for name in RELATIONS}

    def __call__(self, known: Claim, new: Claim) -> Relation:
        """The confused answer."""
        import hashlib

        true = self.judge(known, new)
        digest = hashlib.blake2b(f"{self.seed}/{known.id}/{new.id}".encode(), digest_size=8).digest()
        place = int(np.searchsorted(self._rows[true], int.from_bytes(digest, "big") / 2**64, side="right"))
        return RELATIONS[min(place, 2)]


@dataclass(frozen=True)
class JudgeQuality:
    """How good a judge is.

    Attributes:
        accuracy: share of right answers.
        false_green: share of pairs that do not follow but were said to, with its interval.
        green_precision: share of "entails" that were right; nan without any.
        pairs: judged.
    """

    accuracy: float
    false_green: Interval
    green_precision: float
    pairs: int


def judge_quality(judge: Judge, pairs: Iterable[tuple[Claim, Claim, Relation]], level: float = 0.95) -> JudgeQuality:
    """Measures a judge on labelled pairs (known, new, relation).

    Raises:
        BadInput: no pair, or none that does not follow.
    """
    answers = [(judge(known, new), true) for known, new, true in pairs]
    others = [said for said, true in answers if true != "entails"]
    if not others:
        raise BadInput("a false-green rate needs labelled pairs of which some do not follow")
    greens = [true for said, true in answers if said == "entails"]
    right = sum(said == true for said, true in answers)
    precision = sum(true == "entails" for true in greens) / len(greens) if greens else float("nan")
    false_green = wilson(sum(said == "entails" for said in others), len(others), level)
    return JudgeQuality(right / len(answers), false_green, precision, len(answers))
