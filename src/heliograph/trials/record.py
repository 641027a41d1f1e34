"""Records: what one trial left behind, and the header of the run it belongs to.

A record file is JSON lines: a header, then one line a trial. The standard library alone writes and reads it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from heliograph.errors import BadInput

__all__ = ["RecordWriter", "RunHeader", "TrialRecord", "check_metrics", "failed_record", "read_records"]

FORMAT = "heliograph-record-1"
LONGEST_PLAIN_ROW = 256  # outcomes a shot beyond this are written as packed bits
Status = Literal["ok", "crashed", "timed_out", "out_of_memory"]


@dataclass(frozen=True)
class TrialRecord:
    """What one trial measured, or how it failed.

    Attributes:
        trial: the trial's id, unique within a run.
        slug, experiment, workload, block, seed: what it was.
        contender: the arm, or ``""`` for an interleaved trial.
        status: ``ok``, or how it failed.
        metrics: by contender, then by metric.
        detail: what the trial kept: curves, drawings, tables.
        said: lines it showed.
        wall_s, cpu_s: seconds it took.
        peak_bytes: highest resident memory above what the process began with.
        peak_device_bytes: highest memory allocated on the accelerator.
        printed_bytes: how much it printed; the end of it is in ``tail``.
        tail: the last printed text, or the error.
        host: where it ran.
        started_at: when, ISO 8601 in UTC.
    """

    trial: str
    slug: str
    experiment: str
    workload: str
    block: int
    seed: int
    contender: str
    status: Status
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    peak_device_bytes: int = 0
    printed_bytes: int = 0
    tail: str = ""
    host: str = ""
    started_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; a long row of booleans becomes ``{"rows": count, "bits": base64 of its compressed bits}``."""
        return {**asdict(self), "metrics": _each_metric(self.metrics, _pack)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRecord:
        """The inverse of :meth:`to_json`; unknown keys are refused.

        Raises:
            BadInput: keys are missing or unknown, or a packed row is damaged.
        """
        try:
            record = cls(**{**data, "said": tuple(data.get("said", ()))})
            return replace(record, metrics=_each_metric(record.metrics, _unpack))
        except (TypeError, AttributeError) as error:
            raise BadInput(f"not a trial record of this version: {error}") from None


@dataclass(frozen=True)
class RunHeader:
    """What a run is, complete enough to repeat it.

    Attributes:
        run: the run's id.
        slugs: systems checked.
        preset: the size.
        command: the command that repeats it.
        started_at: ISO 8601 in UTC.
        machine: facts of the machine.
        versions: of the packages that matter.
        key: the fields of the resume key, by slug.
        settings: what the user chose: seeds, workload, executor.
    """

    run: str
    slugs: tuple[str, ...]
    preset: str
    command: str
    started_at: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    key: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunHeader:
        """The inverse of :meth:`to_json`.

        Raises:
            BadInput: keys are missing.
        """
        known = {f.name for f in fields(cls)}
        facts: dict[str, Any] = {k: tuple(v) if k == "slugs" else v for k, v in data.items() if k in known}
        try:
            return cls(**facts)
        except TypeError as error:
            raise BadInput(f"not a run header of this version: {error}") from None


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain JSON values.

    Raises:
        ValueError: a value is not finite, not a number, boolean, or row of booleans.
    """
    clean: dict[str, Any] = {}
    for name, value in metrics.items():
        item = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        if isinstance(item, bool) or (isinstance(item, int | float) and math.isfinite(item)):
            clean[name] = item
        elif isinstance(item, list | tuple) or hasattr(item, "tolist"):
            row = item.tolist() if hasattr(item, "tolist") else list(item)
            if not all(isinstance(v, bool) for v in row):
                raise ValueError(f"metric {name}: a row may hold only booleans, one a shot")
            clean[name] = row
        else:
            raise ValueError(f"metric {name} is {item!r}; expected a finite number, a boolean or a row of booleans")
    return clean


class RecordWriter:
    """Appends records to a file, each flushed to disk before the next begins."""

    def __init__(self, path: Path, header: RunHeader, kept: Sequence[TrialRecord] = ()) -> None:
        """Creates the file with its header, and with the records that a resumed run has already.

        Raises:
            BadInput: the file cannot be written.
        """
        self.path = path
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = part.open("w", encoding="utf-8")
            self._write({"format": FORMAT, **header.to_json()})
            for record in kept:
                self._write(record.to_json())
            part.replace(path)
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}") from None

    def append(self, record: TrialRecord) -> None:
        """Writes one record."""
        self._write(record.to_json())

    def _write(self, data: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(data, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> tuple[RunHeader, list[TrialRecord]]:
    """Reads a record file, JSON lines or the JSON that ``check --output`` writes.

    A last line cut short by a crash is left out; any other damage is an error.

    Raises:
        BadInput: unreadable, or not a record file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the record {path}: {error}") from None
    lines = text.split("\n")
    documents: list[Any] = []
    if text.lstrip().startswith("{\n"):
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path} is not a record: {error}") from None
        documents = [whole.get("header", {}), *whole.get("trials", [])]
    else:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                documents.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines) and number > 1:
                    break
                raise BadInput(f"{path}, line {number}: not JSON: {error}") from None
    if not documents or not isinstance(documents[0], dict) or documents[0].get("format") != FORMAT:
        raise BadInput(f'{path} is not a record of heliograph: its first line must carry "format": "{FORMAT}"')
    return RunHeader.from_json(documents[0]), [TrialRecord.from_json(d) for d in documents[1:]]


def failed_record(trial: Any, status: Status, reason: str, **facts: Any) -> TrialRecord:
    """The record of a :class:`~heliograph.trials.plan.Trial` that left none itself."""
    return TrialRecord(
        trial=trial.id,
        slug=trial.slug,
        experiment=trial.experiment,
        workload=trial.workload.name,
        block=trial.block,
        seed=trial.seed,
        contender=trial.contender,
        status=status,
        tail=reason,
        **facts,
    )


def _each_metric(metrics: Mapping[str, Mapping[str, Any]], change: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    return {arm: {name: change(value) for name, value in found.items()} for arm, found in metrics.items()}


def _pack(value: Any) -> Any:
    if not isinstance(value, list) or len(value) <= LONGEST_PLAIN_ROW:
        return value
    bits = int("".join("1" if item else "0" for item in value), 2).to_bytes((len(value) + 7) // 8, "big")
    return {"rows": len(value), "bits": base64.b64encode(zlib.compress(bits, 9)).decode("ascii")}


def _unpack(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        count, packed = int(value["rows"]), base64.b64decode(value["bits"], validate=True)
        size = (count + 7) // 8
        unpacker = zlib.decompressobj()
        bits = unpacker.decompress(packed, max(1, size))  # never more than the row can hold
        bits += unpacker.decompress(unpacker.unconsumed_tail, 1)  # and there should be none left
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise BadInput(f"a packed row of outcomes is damaged: {error}") from None
    text = f"{int.from_bytes(bits, 'big'):0{count}b}" if 0 < size == len(bits) else ""
    if not text or len(text) != count:
        raise BadInput(f"a packed row of outcomes is damaged: {len(bits)} bytes for {count} outcomes")
    return [bit == "1" for bit in text]
