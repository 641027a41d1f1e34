"""Records between agents that name and measure things differently: lift to concepts, lower to another's fields.

N agents need N codecs instead of N(N-1) converters. Values are converted exactly (rational numbers); what does not
survive is named in a :class:`LossReport`, and a missing required field is asked for, not guessed (arXiv:2507.04376
names the translation layer; the forms here are ours).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from heliograph.errors import BadInput

__all__ = ["UNITS", "ClarificationRequest", "CodecField", "LossReport", "MessageCodec", "Record"]

UNITS: dict[str, tuple[str, Fraction, Fraction]] = {
    "m": ("m", Fraction(1), Fraction(0)),
    "km": ("m", Fraction(1000), Fraction(0)),
    "mile": ("m", Fraction("1609.344"), Fraction(0)),
    "s": ("s", Fraction(1), Fraction(0)),
    "min": ("s", Fraction(60), Fraction(0)),
    "h": ("s", Fraction(3600), Fraction(0)),
    "eur": ("eur", Fraction(1), Fraction(0)),
    "eur_cent": ("eur", Fraction(1, 100), Fraction(0)),
    "kg": ("kg", Fraction(1), Fraction(0)),
    "g": ("kg", Fraction(1, 1000), Fraction(0)),
    "lb": ("kg", Fraction("0.45359237"), Fraction(0)),
    "c": ("k", Fraction(1), Fraction("273.15")),
    "f": ("k", Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
    "k": ("k", Fraction(1), Fraction(0)),
}
"""Unit -> base unit, factor, offset: base = factor * value + offset."""


@dataclass(frozen=True)
class CodecField:
    """One field of an agent's record.

    Attributes:
        name: in the agent's record.
        concept: that it stands for, for example "travel.price".
        unit: of a number, one of :data:`UNITS`; "" for none.
        values: the agent's words by concept, for enumerations.
        required: whether the agent cannot do without.
        digits: decimal places that the agent keeps; None for all that a double has.
    """

    name: str
    concept: str
    unit: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    digits: int | None = None


@dataclass(frozen=True)
class LossReport:
    """What a translation did not keep.

    Attributes:
        dropped: concepts and foreign fields that the target has no field for.
        approximated: concepts whose value was rounded.
    """

    dropped: tuple[str, ...] = ()
    approximated: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dropped or self.approximated)


class ClarificationRequest(BadInput):
    """Fields that the target needs and the record lacks, or that could mean several things.

    Attributes:
        concepts: to ask the sender for.
    """

    def __init__(self, reason: str, concepts: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.reason, self.concepts = reason, concepts

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.concepts)


@dataclass(frozen=True)
class Record:
    """A record by concepts.

    Attributes:
        values: numbers with a unit are exact fractions of the base unit, others as they were.
        bases: base unit by concept.
        opaque: fields that the codec does not know, kept for the way back.
        whole: concepts whose number was an integer.
        origin: name of the codec that lifted it.
    """

    values: Mapping[str, Any]
    bases: Mapping[str, str] = field(default_factory=dict)
    opaque: Mapping[str, Any] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    origin: str = ""


class MessageCodec:
    """One agent's record format.

    Args:
        name: of the format.
        fields: of a record.

    Raises:
        BadInput: a field or concept twice, an unknown unit, or an enumeration that maps two concepts to one word.
    """

    def __init__(self, name: str, fields: tuple[CodecField, ...]) -> None:
        self.name, self.fields = name, tuple(fields)
        for attribute in ("name", "concept"):
            seen = [getattr(one, attribute) for one in self.fields]
            if len(seen) != len(set(seen)):
                raise BadInput(f"codec {name}: each {attribute} stands for one field; got {', '.join(seen)}")
        for one in self.fields:
            if one.unit and one.unit not in UNITS:
                raise BadInput(f"codec {name}: {one.name} has the unknown unit {one.unit!r}; known: {', '.join(UNITS)}")
            if len(set(one.values.values())) != len(one.values):
                raise BadInput(f"codec {name}: {one.name} has one word for two concepts, so the way back is not known")
        self._by_name = {one.name: one for one in self.fields}

    def lift(self, native: Mapping[str, Any]) -> Record:
        """The record by concepts.

        Raises:
            ClarificationRequest: an enumeration's word is unknown.
            BadInput: a number is expected, and something else or not finite was given.
        """
        values: dict[str, Any] = {}
        bases: dict[str, str] = {}
        whole: set[str] = set()
        opaque: dict[str, Any] = {}
        for name, value in native.items():
            known = self._by_name.get(name)
            if known is None:
                opaque[name] = value
            elif known.unit:
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise BadInput(f"{self.name}.{name} is a number in {known.unit}; got {value!r}")
                base, factor, offset = UNITS[known.unit]
                values[known.concept], bases[known.concept] = Fraction(value) * factor + offset, base
                if isinstance(value, int):
                    whole.add(known.concept)
            elif known.values:
                words = {word: concept for concept, word in known.values.items()}
                if not isinstance(value, str) or value not in words:
                    raise ClarificationRequest(
                        f"{self.name}.{name} is one of {', '.join(words)}; got {value!r}", (known.concept,)
                    )
                values[known.concept] = words[value]
            else:
                values[known.concept] = value
        return Record(values, bases, opaque, frozenset(whole), self.name)

    def lower(self, record: Record, *, strict: bool = False) -> tuple[dict[str, Any], LossReport]:
        """The record in this agent's fields.

        Args:
            record: by concepts.
            strict: refuse a loss.

        Raises:
            ClarificationRequest: a required field is missing, or a unit does not fit.
            BadInput: ``strict``, and something would be lost.
        """
        native: dict[str, Any] = {}
        approximated: list[str] = []
        dropped = [concept for concept in record.values if concept not in {one.concept for one in self.fields}]
        missing = tuple(one.concept for one in self.fields if one.required and one.concept not in record.values)
        if missing:
            raise ClarificationRequest(f"{self.name} needs {', '.join(missing)}, which the message lacks", missing)
        for one in self.fields:
            if one.concept not in record.values:
                continue
            value = record.values[one.concept]
            if one.unit:
                native[one.name], exact = self._number(one, value, record)
                if not exact:
                    approximated.append(one.concept)
            elif one.concept in record.bases:
                raise ClarificationRequest(
                    f"{self.name}.{one.name} says no unit, and {one.concept} is in {record.bases[one.concept]}",
                    (one.concept,),
                )
            elif one.values:
                if value not in one.values:
                    dropped.append(one.concept)
                else:
                    native[one.name] = one.values[value]
            else:
                native[one.name] = value
        if record.origin == self.name:
            native.update(record.opaque)
        else:
            dropped += sorted(record.opaque)
        report = LossReport(tuple(dropped), tuple(approximated))
        if strict and report:
            raise BadInput(
                f"{self.name} cannot hold {', '.join((*report.dropped, *report.approximated))} exactly; "
                "send without strict, and read the loss report"
            )
        return native, report

    def _number(self, one: CodecField, value: Any, record: Record) -> tuple[int | float, bool]:
        base, factor, offset = UNITS[one.unit]
        if not isinstance(value, Fraction) or record.bases.get(one.concept) != base:
            raise ClarificationRequest(
                f"{self.name}.{one.name} is in {one.unit}; the message's {one.concept} is in "
                f"{record.bases.get(one.concept, 'no unit')}",
                (one.concept,),
            )
        exact = (value - offset) / factor
        kept = exact if one.digits is None else Fraction(round(exact, one.digits))
        if kept.denominator == 1 and (one.concept in record.whole or one.digits == 0):
            return int(kept), kept == exact
        number = float(kept)
        return number, Fraction(number) == exact
