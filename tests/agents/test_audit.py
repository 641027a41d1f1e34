from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import AuditInterceptor, AuditLog, Chain, Envelope, Rejected
from heliograph.agents.core.audit import AuditError, Receipt, verify
from heliograph.errors import BadInput


def written(path, count=5):
    with AuditLog(path, wall_time=lambda: 1.5) as log:
        return [log.append({"event": "x", "n": n}) for n in range(count)]


def test_untouched_log_verifies_and_goes_on_after_reopening(tmp_path):
    path = tmp_path / "audit.jsonl"
    receipts = written(path)
    with AuditLog(path) as log:
        last = log.append({"event": "again"})
    found = verify(path, head=last)
    assert (found.ok, found.lines, found.head) == (True, 6, last)
    assert verify(path, head=receipts[2]).ok


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_edit_deletion_swap_and_insertion_is_found_at_its_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("a") / "audit.jsonl"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, 3))
    kind = data.draw(st.sampled_from(["edit", "delete", "swap", "insert"]))
    if kind == "edit":
        record = json.loads(lines[at])
        record[data.draw(st.sampled_from(["n", "time", "seq", "event"]))] = 77
        lines[at] = json.dumps(record).encode() + b"\n"
    elif kind == "delete":
        del lines[at]
    elif kind == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    else:
        lines.insert(at, lines[4])
    path.write_bytes(b"".join(lines))
    found = verify(path)
    assert not found.ok
    assert found.bad_line == at + 1
    assert found.lines == at


def test_cut_end_is_found_with_the_acknowledged_head(tmp_path):
    path = tmp_path / "audit.jsonl"
    head = written(path)[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert verify(path).ok
    assert not verify(path, head=head).ok
    assert verify(path, head=head).bad_line == 4


def test_rewritten_chain_is_found_with_the_acknowledged_head(tmp_path):
    path = tmp_path / "audit.jsonl"
    head = written(path)[-1]
    path.unlink()
    with AuditLog(path, wall_time=lambda: 9.0) as log:
        for n in range(5):
            log.append({"event": "forged", "n": n})
    assert verify(path).ok
    assert verify(path, head=head).bad_line == 5


def test_torn_last_line_is_reported_and_cut_off_on_reopening(tmp_path):
    path = tmp_path / "audit.jsonl"
    head = written(path)[-1]
    with path.open("ab") as file:
        file.write(b'{"seq":6,"ti')
    assert (verify(path).ok, verify(path).torn_bytes) == (True, 12)
    with AuditLog(path) as log:
        assert log.recovered == 12
        assert log.head == head
        log.append({"event": "next"})
    assert verify(path).lines == 6


def test_broken_chain_is_not_continued(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path)
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":3'))
    with pytest.raises(BadInput, match="line 3 is bad"):
        AuditLog(path)


def test_second_writer_is_refused(tmp_path):
    with AuditLog(tmp_path / "audit.jsonl"), pytest.raises(AuditError, match="another process"):
        AuditLog(tmp_path / "audit.jsonl")


def test_own_fields_cannot_be_overwritten(tmp_path):
    with AuditLog(tmp_path / "audit.jsonl") as log, pytest.raises(BadInput, match="hash"):
        log.append({"hash": "x"})


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path = tmp_path / "audit.jsonl"
    script = (
        "import sys\nfrom heliograph.agents import AuditLog\nlog = AuditLog(sys.argv[1])\n"
        "for n in range(10**9):\n r = log.append({'n': n, 'pad': 'x' * (n % 3000)})\n"
        " print(r.seq, r.hash, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    acknowledged = [writer.stdout.readline().split() for _ in range(200)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [line.split() for line in writer.stdout.read().splitlines() if len(line.split()) == 2]
    writer.wait()
    writer.stdout.close()
    last = next(Receipt(int(a), b) for a, b in reversed(acknowledged) if len(b) == 64)
    found = verify(path, head=last)
    assert found.ok
    assert found.lines >= last.seq
    with AuditLog(path) as log:
        assert log.head.seq >= last.seq


def call(**arguments):
    params = {"name": "t", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return Envelope.from_jsonrpc(message, sender="ann")


async def answers(env):
    return env.answer({"jsonrpc": "2.0", "id": 1, "result": {"content": []}})


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_interceptor_records_request_and_outcome_without_the_arguments(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        asyncio.run(Chain([AuditInterceptor(log)])(call(secret="hunter2"), answers))
    request, outcome = records(path)
    assert (request["method"], request["name"], request["sender"]) == ("tools/call", "t", "ann")
    assert len(request["arguments_hash"]) == 64
    assert "hunter2" not in path.read_text()
    assert (outcome["status"], outcome["id"]) == ("ok", request["id"])


def test_interceptor_records_refusals_and_failures(tmp_path):
    path = tmp_path / "audit.jsonl"

    async def refuse(env):
        raise Rejected("no", by="guard")

    async def break_down(env):
        raise ConnectionError

    with AuditLog(path) as log:
        chain = Chain([AuditInterceptor(log)])
        for handler, error in ((refuse, Rejected), (break_down, ConnectionError)):
            with pytest.raises(error):
                asyncio.run(chain(call(), handler))
    assert [(r["status"], r["error"]) for r in records(path) if r["event"] == "outcome"] == [
        ("rejected", "Rejected"),
        ("failed", "ConnectionError"),
    ]


def test_request_that_cannot_be_recorded_is_not_sent(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.close()
    with pytest.raises(Rejected, match="cannot be recorded"):
        asyncio.run(Chain([AuditInterceptor(log)])(call(), answers))
    assert asyncio.run(Chain([AuditInterceptor(log, fail_open=True)])(call(), answers)).kind == "reply"
