"""What reads bytes from outside: each target takes any bytes and lets no exception out but the one that it promises."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from heliograph.agents.core.audit import verify
from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.config import read_config
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.tcp_bus import _FROM_CLIENT, _read_frame
from heliograph.agents.mcp_sec import CapabilityCertificate
from heliograph.errors import HeliographError
from heliograph.lm.core.gguf_file import GGUFFile
from heliograph.serving.core.frames import unpack
from heliograph.serving.core.openai_api import ChatRequest, CompletionRequest
from heliograph.serving.kv_serve import restore

__all__ = ["TARGETS"]

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def _file(data: bytes, name: str) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _json(data: bytes) -> Any:
    """Whatever JSON it is; None for none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def gguf(data: bytes) -> None:
    """A model file: its header, and the first tensor."""
    with GGUFFile(_file(data, "model.gguf")) as file:
        for name in list(file.tensors)[:1]:
            file.load(name)


def serving_frame(data: bytes) -> None:
    """A header between instances."""
    unpack(data)


def kv_frame(data: bytes) -> None:
    """Compressed keys and values."""
    restore(data, max_bytes=2**20)


def envelope(data: bytes) -> None:
    """A line of a log, and back."""
    found = Envelope.from_json(data)
    assert Envelope.from_json(found.to_json()) == found


def jsonrpc(data: bytes) -> None:
    """A message of MCP or A2A; what is taken leaves as it came."""
    message = _json(data)
    if isinstance(message, dict):
        assert Envelope.from_jsonrpc(message).to_jsonrpc() == message
        Envelope.from_jsonrpc(message, restore=True)


def a2a(data: bytes) -> None:
    """A message of A2A."""
    message = _json(data)
    if isinstance(message, dict):
        Envelope.from_a2a(message).to_a2a()


def canonical(data: bytes) -> None:
    """JSON in the form that is signed: reading and writing it again changes nothing."""
    value = _json(data)
    if value is not None:
        once = canonical_bytes(value)
        assert canonical_bytes(json.loads(once)) == once


def gateway_config(data: bytes) -> None:
    """A configuration file."""
    read_config(_file(data, "gateway.json"), {})


def certificate(data: bytes) -> None:
    """A capability certificate."""
    CapabilityCertificate.from_dict(_json(data))


def audit_log(data: bytes) -> None:
    """A log that somebody may have changed: judged, never trusted."""
    found = verify(_file(data, "audit.jsonl"))
    assert not found.ok or found.lines == 0  # an unfinished line at the end alone is no fault


def bus_frame(data: bytes) -> None:
    """What a client of the TCP bus sends."""

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        while await _read_frame(reader, _FROM_CLIENT) is not None:
            pass

    asyncio.run(read())


def openai_request(data: bytes) -> None:
    """The body of a request to the server."""
    for kind in (CompletionRequest, ChatRequest):
        try:
            kind.model_validate_json(data)
        except pydantic.ValidationError:
            continue


def _promised(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            target(data)
        except HeliographError:
            return

    return run


TARGETS = {
    each.__name__: _promised(each)
    for each in (
        gguf,
        serving_frame,
        kv_frame,
        envelope,
        jsonrpc,
        a2a,
        canonical,
        gateway_config,
        certificate,
        audit_log,
        bus_frame,
        openai_request,
    )
}
