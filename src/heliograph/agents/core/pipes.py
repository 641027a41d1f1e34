"""A server as a child process: messages as lines on its standard input and output, each of bounded length.

The official SDK's transport puts no bound on a line; a server that floods would fill the gateway's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TextIO

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from heliograph.agents.core.child import child_process

__all__ = ["pipe_transport"]


@asynccontextmanager
async def pipe_transport(
    command: str,
    args: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    errlog: TextIO,
    max_line_bytes: int,
    trouble: list[str],
) -> AsyncIterator[tuple[Any, Any]]:
    """Starts a server and yields its streams; ends it, and what it started, on the way out.

    Args:
        command, args: the program; found on the PATH.
        env: added to the few variables that are safe to inherit.
        cwd: folder to run in; "" for ours.
        errlog: gets its standard error.
        max_line_bytes: a longer line ends the connection.
        trouble: gets a line if that happened.

    Raises:
        BadInput: the program cannot be started.
    """
    async with child_process(
        [command, *args],
        env={**get_default_environment(), **env},
        cwd=cwd or None,
        stderr=errlog,
        max_line_bytes=max_line_bytes,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        into_read, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, from_write = anyio.create_memory_object_stream[SessionMessage](0)

        async def reader() -> None:
            async with into_read:
                while True:
                    try:
                        line = await stdout.readuntil(b"\n")
                    except asyncio.IncompleteReadError:
                        return  # the end, perhaps in the middle of a line
                    except asyncio.LimitOverrunError:
                        # Nothing after an unread flood can be trusted to be the start of a line.
                        trouble.append(f"more than {max_line_bytes} bytes, the limit of this gateway")
                        return
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        continue  # servers print stray lines; nobody waits for those
                    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                        await into_read.send(SessionMessage(message))

        async def writer() -> None:
            async with from_write:
                async for item in from_write:
                    try:
                        stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                        await stdin.drain()
                    except (ConnectionError, RuntimeError):
                        await into_read.aclose()
                        return

        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            group.start_soon(writer)
            yield read, write
            group.cancel_scope.cancel()
