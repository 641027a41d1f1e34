"""Children that do not end, children of children, and pipes that nobody reads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from heliograph.agents.core.child import child_process
from heliograph.errors import BadInput
from tests.agents.serving import all_closed, run

# Starts a child in a session of its own, which no signal to the group reaches and which holds the pipes.
ESCAPED = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
"""


def python(program):
    return [sys.executable, "-c", program]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    "program",
    [
        "import sys; print(sys.stdin.read())",
        "import time; print(1, flush=True); time.sleep(60)",
        "import os\nwhile True: os.write(1, bytes(65536))",  # more than is read: its pipe is paused
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
    ],
    ids=["obeys", "sleeps", "floods", "ignores SIGTERM"],
)
def test_child_ends_and_its_pipes_are_closed(program):
    async def scenario():
        before = open_files()
        async with child_process(python(program), grace_s=0.3) as process:
            if "print(1" in program:
                await process.stdout.readline()
            elif "bytes" in program:
                await process.stdout.read(10)
                await asyncio.sleep(0.1)
        assert process.returncode is not None
        assert not alive(process.pid)
        assert open_files() == before

    with all_closed():
        run(scenario)


def test_grandchild_that_holds_the_pipes_holds_nobody_up():
    async def scenario():
        before = open_files()
        started = time.monotonic()
        async with child_process(python(ESCAPED)) as process:
            escaped = int(await process.stdout.readline())
        try:
            assert alive(escaped)
            assert process.returncode == 0
            assert open_files() == before
            assert time.monotonic() - started < 30
        finally:
            os.kill(escaped, signal.SIGKILL)

    with all_closed():
        run(scenario)


def test_children_of_its_session_end_with_it():
    program = ESCAPED.replace(", start_new_session=True", "")

    async def scenario():
        async with child_process(python(program)) as process:
            child = int(await process.stdout.readline())
        deadline = time.monotonic() + 10
        while alive(child) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert not alive(child)

    run(scenario)


def test_child_ends_when_the_caller_is_cancelled():
    async def scenario():
        pids = []

        async def caller():
            async with child_process(python("import time; time.sleep(60)"), grace_s=0.2) as process:
                pids.append(process.pid)
                await asyncio.sleep(60)

        task = asyncio.create_task(caller())
        while not pids:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(pids[0])

    run(scenario)


@pytest.mark.parametrize(
    ("argv", "why"), [(["no such program"], "No such file"), (["a\0b"], "null"), ([__file__], "denied")]
)
def test_what_cannot_be_started_is_named(argv, why):
    async def scenario():
        async with child_process(argv):
            pytest.fail("started")

    with pytest.raises(BadInput, match=f"cannot start {argv[0]}.*{why}"):
        run(scenario)
