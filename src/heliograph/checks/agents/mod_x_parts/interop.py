"""Messages between six kinds of agents, each with its own form and record format, delivered and understood or not."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from heliograph.agents.mod_x.codec import ClarificationRequest, CodecField, MessageCodec
from heliograph.agents.mod_x.wire import FORMS, Exchange, Form, read, same_json, translate, write
from heliograph.errors import BadInput
from heliograph.trials.check import Context

__all__ = ["CODECS", "measure", "understood"]

KINDS = ("rule", "neural", "symbolic", "device", "human", "legacy")
FORM: dict[str, Form] = dict(zip(KINDS, ("envelope", "mcp", "a2a", "nats", "a2a", "jsonrpc"), strict=True))
UNITS = {
    "rule": ("km", "min", "eur"),
    "neural": ("km", "h", "eur"),
    "symbolic": ("m", "s", "eur_cent"),
    "device": ("m", "s", "eur"),
    "human": ("mile", "h", "eur"),
    "legacy": ("mile", "min", "eur_cent"),
}
CLASSES = {
    "rule": ("1", "2"),
    "neural": ("first class", "second class"),
    "symbolic": ("first", "second"),
    "device": ("A", "B"),
    "human": ("comfortable", "cheap"),
    "legacy": ("F", "Y"),
}


def _codec(kind: str) -> MessageCodec:
    distance, duration, price = UNITS[kind]
    first, second = CLASSES[kind]
    return MessageCodec(
        kind,
        (
            CodecField(f"{kind}_distance", "trip.distance", unit=distance, required=True),
            CodecField(f"{kind}_duration", "trip.duration", unit=duration),
            CodecField(f"{kind}_price", "trip.price", unit=price),
            CodecField(f"{kind}_class", "trip.class", values={"first": first, "second": second}),
            CodecField(f"{kind}_city", "place.city"),
            # Two kinds have no field for remarks; what they lose has to be reported.
            *(() if kind in ("device", "legacy") else (CodecField(f"{kind}_remark", "note.remark"),)),
        ),
    )


CODECS = {kind: _codec(kind) for kind in KINDS}
FACTORS = {"km": 1000.0, "m": 1.0, "mile": 1609.344, "s": 1.0, "min": 60.0, "h": 3600.0, "eur": 1.0, "eur_cent": 0.01}


def _message(noise: random.Random) -> dict[str, Any]:
    """What is meant, in metres, seconds and euro; whole numbers, as people give them."""
    return {
        "trip.distance": noise.randrange(1, 2000) * 100,
        "trip.duration": noise.randrange(1, 600) * 60,
        "trip.price": noise.randrange(1, 90_000) / 100,
        "trip.class": noise.choice(("first", "second")),
        "place.city": noise.choice(("Rome", "Zürich", "São Paulo", "京都")),
        **({"note.remark": noise.choice(("by the sea", "no stairs"))} if noise.random() < 0.5 else {}),
    }


def _native(kind: str, meant: Mapping[str, Any]) -> dict[str, Any]:
    """The message as an agent of a kind says it, written without the codecs."""
    distance, duration, price = UNITS[kind]
    record = {
        f"{kind}_distance": meant["trip.distance"] / FACTORS[distance],
        f"{kind}_duration": meant["trip.duration"] / FACTORS[duration],
        f"{kind}_price": meant["trip.price"] / FACTORS[price],
        f"{kind}_class": CLASSES[kind][0 if meant["trip.class"] == "first" else 1],
        f"{kind}_city": meant["place.city"],
    }
    if "note.remark" in meant and kind not in ("device", "legacy"):
        record[f"{kind}_remark"] = meant["note.remark"]
    return record


def understood(kind: str, record: Any, meant: Mapping[str, Any]) -> bool:
    """The receiver's own reading: every field that it has says what was meant, within a millionth."""
    if not isinstance(record, Mapping):
        return False
    for name, wanted in _native(kind, meant).items():
        got = record.get(name)
        if isinstance(wanted, float):
            if isinstance(got, bool) or not isinstance(got, int | float) or abs(got - wanted) > 1e-6 * abs(wanted):
                return False
        elif got != wanted:
            return False
    return True


def measure(context: Context) -> Mapping[str, Any]:
    """Share of messages understood with and without translation, losses named, and returns to the first form."""
    noise = random.Random(context.seed)
    good = silent = plain = cells = 0
    lossy = reported = returned = 0
    count = int(context.workload.params["messages"])
    for number in range(count):
        sender, receiver = noise.sample(KINDS, 2)
        meant = _message(noise)
        native = _native(sender, meant)
        heard = {key: value for key, value in meant.items() if f"{sender}_{key.split('.')[1]}" in native}
        call = write(Exchange("call", native, "trip.plan", number, f"c{number}"), FORM[sender])
        cells += 1
        try:
            wire = translate(call, FORM[sender], FORM[receiver])
            arguments = read(wire.message, FORM[receiver]).body
            record, report = CODECS[receiver].lower(CODECS[sender].lift(arguments))
        except (BadInput, ClarificationRequest):
            continue
        good += understood(receiver, record, heard)
        plain += understood(receiver, native, heard)  # no translation: the receiver sees the sender's fields
        gone = {key for key in heard if f"{receiver}_{key.split('.')[1]}" not in record}
        lossy += bool(gone)
        reported += bool(gone) and gone <= set(report.dropped)
        back = translate(wire.message, FORM[receiver], FORM[sender])
        returned += bool(wire.lost) or same_json(back.message, call)
        silent += bool(gone) and not report
    forms = [(a, b) for a in FORMS for b in FORMS]
    chain = 0
    for a, b in forms:
        message = write(Exchange("call", {"n": [1, 1.5, True, None]}, "x", "id", "" if "jsonrpc" in (a, b) else "c"), a)
        there = translate(message, a, b)
        chain += bool(there.lost) or same_json(translate(there.message, b, a).message, message)
    context.keep(
        "codecs", {"needed": len(KINDS), "point to point": len(KINDS) * (len(KINDS) - 1), "silent losses": silent}
    )
    return {
        "understood": good / cells,
        "untranslated": plain / cells,
        "returns": [returned == cells, chain == len(forms)],
        "loss_named": [lossy == reported, silent == 0, lossy > 0 or count < 50],
        "notices": [plain == 0, not understood("rule", {}, _message(noise)), json.dumps(1) != json.dumps(1.0)],
    }
