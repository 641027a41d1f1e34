"""A child process that leaves nothing behind: neither itself, nor what it started, nor the pipes to it.

:func:`asyncio.create_subprocess_exec` keeps a pipe open until its end is read, which never comes while a grandchild
holds the other end, or while nobody reads. Its transport has a public ``close``, but no public way to it; therefore
the process is put together here from the public parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO

import anyio

from heliograph.errors import BadInput

__all__ = ["child_process"]

POLL_S = 0.01


@asynccontextmanager
async def child_process(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stderr: int | IO[str] | None = None,
    max_line_bytes: int = 65536,
    grace_s: float = 2.0,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts a program in a session of its own, with pipes to its standard input and output.

    On the way out its input is closed; it then has ``grace_s`` to end, as much again after SIGTERM, and is killed
    after that, together with every process of its session. The pipes are closed in any case.

    Args:
        argv: command line, run without a shell; the program is found on the PATH.
        env: its whole environment; None for ours.
        cwd: folder to run in; None for ours.
        stderr: where its standard error goes, as in :func:`asyncio.create_subprocess_exec`.
        max_line_bytes: the longest line that can be read from it.
        grace_s: see above, seconds; 0 to kill it at once.

    Raises:
        BadInput: it cannot be started.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: asyncio.subprocess.SubprocessStreamProtocol(limit=max_line_bytes, loop=loop),
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"cannot start {argv[0]}: {why}") from None
    process = asyncio.subprocess.Process(transport, protocol, loop)
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await _stop(process, grace_s)
            finally:
                transport.close()
                await asyncio.sleep(0)  # the pipes are closed in the loop's next turn


async def _stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if grace_s > 0 and not await _ended(process, grace_s):
        _signal(process.pid, signal.SIGTERM)
        await _ended(process, grace_s)
    _signal(process.pid, signal.SIGKILL)  # and children that outlived it
    await _ended(process, 2.0)


async def _ended(process: asyncio.subprocess.Process, within_s: float) -> bool:
    # Not process.wait(), which in some Python versions also waits for the ends of the pipes.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while process.returncode is None and loop.time() < deadline:
        await asyncio.sleep(POLL_S)
    return process.returncode is not None


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
