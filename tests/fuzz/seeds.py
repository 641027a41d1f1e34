"""Well-formed inputs to begin from: what is nearly right goes deepest."""

from __future__ import annotations

import json

import torch

from heliograph.agents.core.envelope import Envelope
from heliograph.serving.core.frames import pack
from heliograph.serving.kv_serve import KVPipeline

__all__ = ["SEEDS"]

CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "say", "arguments": {"n": 1}, "_meta": {}},
}
KV = torch.arange(2 * 2 * 3 * 1 * 4, dtype=torch.float32).view(2, 2, 3, 1, 4).bfloat16()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


SEEDS: dict[str, list[bytes]] = {
    "gguf": [b"GGUF\x03\x00\x00\x00" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\x01\x00"],
    "serving_frame": [pack({"op": "generate", "id": "a", "prompt": [1, 2]})],
    "kv_frame": [KVPipeline(name).compress(KV) for name in ("none", "lossless", "quarot")],
    "envelope": [Envelope(topic="a.b", kind="event", sender="ann", payload={"x": [1, "ä"]}).to_json()],
    "jsonrpc": [_json(CALL), _json({"jsonrpc": "2.0", "id": 1, "result": {}})],
    "a2a": [_json({"messageId": "m", "role": "user", "parts": [{"text": "hi"}], "contextId": "c"})],
    "canonical": [_json({"b": 1.5, "a": [None, True, "\u20ac"]})],
    "gateway_config": [_json({"mcpServers": {"a": {"command": "x"}}, "heliograph": {"listen": {"port": 1}}})],
    "certificate": [_json({"v": 1, "server_id": "a", "name": "a", "capabilities": ["tools"], "tools": []})],
    "audit_log": [b'{"seq":1,"prev":"","hash":""}\n'],
    "bus_frame": [b"\x00\x00\x00\x05\x93\xa5Hello"],
    "openai_request": [_json({"model": "m", "prompt": "hi", "max_tokens": 3}), _json({"messages": [], "stream": True})],
}
