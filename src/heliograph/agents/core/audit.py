"""A log that shows when it was tampered with: JSON lines, each holding the hash of the one before.

Every line is ``{"seq", "time", ..., "prev", "hash"}``; ``hash`` is BLAKE2b-256 over the canonical JSON (RFC 8785) of
the line without it, and ``prev`` is the hash of the line before. Editing, deleting, inserting or reordering lines
breaks the chain at a line that :func:`verify` names. Cutting off the end leaves a valid shorter chain: compare with a
head kept elsewhere (``verify(path, head=...)``). Whoever can write the file can also write a new chain; the head, kept
apart or signed, is what such a chain cannot match.

A line is handed to the operating system in one write before :meth:`AuditLog.append` returns, so it survives the death
of the process. Whether it survives a power cut is the ``fsync`` policy.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from heliograph.agents.core.canonical import canonical_bytes, canonical_hash
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput, HeliographError

__all__ = ["GENESIS", "AuditError", "AuditInterceptor", "AuditLog", "Receipt", "TakesAudit", "Verification", "verify"]

GENESIS = "0" * 64
"""The hash before the first line."""

_OWN = ("seq", "time", "prev", "hash")
_MAX_LINE_BYTES = 16 * 1024 * 1024


class AuditError(HeliographError):
    """The audit log cannot be written or continued."""

    exit_code = 1


@dataclass(frozen=True)
class Receipt:
    """Proof that a line was written.

    Attributes:
        seq: number of the line, from 1.
        hash: of the line; keep it apart to show later that nothing before was cut or changed.
    """

    seq: int
    hash: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        ok: every line is as it was written, and the end is where ``head`` says.
        lines: good lines from the start.
        bad_line: number of the first bad line, from 1; None if there is none.
        reason: what is wrong with it; empty if nothing.
        torn_bytes: of an unfinished last line, which a killed writer leaves. It was never acknowledged, and is no
            fault.
        head: the last good line.
    """

    ok: bool
    lines: int
    bad_line: int | None
    reason: str
    torn_bytes: int
    head: Receipt


def verify(path: str | Path, *, head: Receipt | None = None) -> Verification:
    """Checks a log from its first line to its last.

    Args:
        path: of the file.
        head: the last line as the writer acknowledged it; without it a cut end cannot be seen.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; open's error is another than read's
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    last = Receipt(0, GENESIS)
    torn = 0
    seen_head = head is None or head == last
    with file:
        while line := file.readline(_MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                if len(line) >= _MAX_LINE_BYTES:
                    return Verification(False, last.seq, last.seq + 1, "longer than a line can be", 0, last)
                torn = len(line)
                break
            reason = _fault(line, last)
            if reason:
                return Verification(False, last.seq, last.seq + 1, reason, 0, last)
            last = Receipt(last.seq + 1, json.loads(line)["hash"])
            if head is not None and last.seq == head.seq:
                if last.hash != head.hash:
                    return Verification(
                        False, last.seq - 1, last.seq, "its hash is not the one that was acknowledged", 0, last
                    )
                seen_head = True
    if not seen_head and head is not None:
        reason = f"the log ends at line {last.seq}, but line {head.seq} was acknowledged"
        return Verification(False, last.seq, last.seq + 1, reason, torn, last)
    return Verification(True, last.seq, None, "", torn, last)


def _fault(line: bytes, last: Receipt) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict) or not isinstance(record.get("hash"), str):
        return "not an audit record"
    if record.get("seq") != last.seq + 1:
        return f"its number is {record.get('seq')} instead of {last.seq + 1}: lines are missing, added or out of order"
    if record.get("prev") != last.hash:
        return "it does not follow from the line before"
    said = record.pop("hash")
    try:
        if canonical_hash(record) != said:
            return "its content does not match its hash"
    except BadInput:
        return "its content has no canonical form"
    return ""


class AuditLog:
    """Appends to a hash-chained file; one writer at a time.

    An existing file is continued. A torn last line, left by a killed writer, is cut off and reported in ``recovered``.

    Args:
        path: of the file; made if absent, readable by its owner only.
        fsync: "always" before each acknowledgement, "interval" at most every ``interval_s``, or "never".
        interval_s: seconds, for "interval".
        clock: that decides when the interval is over.
        wall_time: seconds since 1970, written into each line.

    Raises:
        AuditError: another process writes the file.
        BadInput: the file cannot be opened, or its chain is broken; the message names the line.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fsync: Literal["always", "interval", "never"] = "interval",
        interval_s: float = 1.0,
        clock: Clock | None = None,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        if fsync not in ("always", "interval", "never") or not interval_s > 0:
            raise BadInput(
                f"fsync is always, interval or never, and interval_s above 0; got {fsync!r} and {interval_s:g}"
            )
        self.path = Path(path)
        self._fsync, self._interval_s = fsync, interval_s
        self._clock, self._wall_time = clock or WallClock(), wall_time
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise BadInput(f"cannot write the audit log {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise AuditError(
                f"{self.path} is being written by another process; give each gateway an audit file of its own"
            ) from None
        found = verify(self.path)
        if not found.ok:
            os.close(self._descriptor)
            raise BadInput(
                f"{self.path}: line {found.bad_line} is bad: {found.reason}. Keep the file as evidence and start anew"
            )
        self.recovered = found.torn_bytes
        if found.torn_bytes:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - found.torn_bytes)
            os.fsync(self._descriptor)
        self.head = found.head
        self._synced = self._clock.now()

    def append(self, fields: Mapping[str, Any]) -> Receipt:
        """Writes one line and returns its receipt.

        Args:
            fields: JSON values; seq, time, prev and hash are the log's own.

        Raises:
            BadInput: a field has one of those names, or is not JSON.
            AuditError: the line could not be written whole; nothing of it stays.
        """
        taken = [name for name in _OWN if name in fields]
        if taken:
            raise BadInput(f"an audit record's {', '.join(taken)} are written by the log itself")
        with self._lock:
            record = {"seq": self.head.seq + 1, "time": round(self._wall_time(), 6), **fields, "prev": self.head.hash}
            digest = canonical_hash(record)
            self._write(canonical_bytes({**record, "hash": digest}) + b"\n")
            self.head = Receipt(self.head.seq + 1, digest)
            return self.head

    def _write(self, line: bytes) -> None:
        if self._descriptor < 0:
            raise AuditError(f"the audit log {self.path} is closed")
        if len(line) > _MAX_LINE_BYTES:
            raise BadInput(f"an audit record may have {_MAX_LINE_BYTES} bytes; this one has {len(line)}")
        start = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(0, "the disk took only a part of the line")
            now = self._clock.now()
            if self._fsync == "always" or (self._fsync == "interval" and now - self._synced >= self._interval_s):
                os.fsync(self._descriptor)
                self._synced = now
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise AuditError(f"cannot write the audit log {self.path}: {error.strerror}") from None

    def sync(self) -> None:
        """Asks the disk to keep what was written."""
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                self._synced = self._clock.now()

    def close(self) -> None:
        """Syncs and closes; closing twice is fine."""
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class TakesAudit(Protocol):
    """An interceptor that writes lines of its own to the gateway's log, if there is one."""

    def take_audit(self, log: AuditLog) -> None:
        """The log to write; again after a reload with another file."""
        ...


class AuditInterceptor:
    """Interceptor: one line before a request goes on, and one with its outcome.

    The first line is on disk before the request reaches anybody; if it cannot be written the request is refused, unless
    ``fail_open``. Arguments are recorded as their hash, unless ``arguments="full"``: they may hold secrets.

    Args:
        log: to write.
        arguments: "hash" or "full".
        fail_open: let requests pass unrecorded when the log fails.
        name: in the chain.
        clock: to time requests.
    """

    def __init__(
        self,
        log: AuditLog,
        *,
        arguments: Literal["hash", "full"] = "hash",
        fail_open: bool = False,
        name: str = "audit",
        clock: Clock | None = None,
    ) -> None:
        if arguments not in ("hash", "full"):
            raise BadInput(f"arguments are recorded as hash or full; got {arguments!r}")
        self.log, self.name = log, name
        self._arguments, self._fail_open = arguments, fail_open
        self._clock = clock or WallClock()

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Records, passes on, records the outcome."""
        about = {"id": env.id, "sender": env.sender, "tenant": env.tenant, "conv": env.conv, "topic": env.topic}
        self._record({"event": "request", **about, **self._subject(env.payload)}, refuse=not self._fail_open)
        started = self._clock.now()
        try:
            answer = await call_next(env)
        except BaseException as error:
            outcome = {"status": "rejected" if isinstance(error, Rejected) else "failed", "error": type(error).__name__}
            if isinstance(error, Rejected):
                outcome["by"] = error.by
            self._record({"event": "outcome", "id": env.id, **outcome, **self._took(started)}, refuse=False)
            raise
        payload = answer.payload
        result = payload.get("result") if isinstance(payload, dict) else None
        failed = answer.kind == "error" or (isinstance(result, dict) and result.get("isError") is True)
        size = len(msgspec.json.encode(payload))
        done = {"status": "tool_error" if failed else "ok", "answer_bytes": size}
        self._record({"event": "outcome", "id": env.id, **done, **self._took(started)}, refuse=False)
        return answer

    def _took(self, started: float) -> dict[str, float]:
        return {"latency_ms": round((self._clock.now() - started) * 1000, 3)}

    def _subject(self, payload: Any) -> dict[str, Any]:
        if not isinstance(payload, dict):
            return {}
        params = payload.get("params") or {}
        subject: dict[str, Any] = {"method": payload.get("method", "")}
        for key in ("name", "uri"):
            if isinstance(params.get(key), str):
                subject[key] = params[key]
        if "arguments" in params:
            if self._arguments == "full":
                subject["arguments"] = params["arguments"]
            else:
                try:
                    subject["arguments_hash"] = canonical_hash(params["arguments"])
                except BadInput:  # an integer beyond 2**53: JSON, but without a canonical form
                    subject["arguments_hash"] = ""
        return subject

    def _record(self, fields: dict[str, Any], *, refuse: bool) -> None:
        try:
            self.log.append(fields)
        except (AuditError, BadInput) as error:
            if refuse:
                raise Rejected(f"this request cannot be recorded, so it is not sent: {error}", by=self.name) from None
