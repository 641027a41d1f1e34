"""A gateway before one server, with a rule of your own: no tool whose name says delete.

python examples/agents/gateway_with_a_rule.py http://127.0.0.1:9001/mcp
"""

from __future__ import annotations

import sys

import uvicorn

from heliograph.agents import AuditInterceptor, AuditLog, Envelope, Gateway, Rejected
from heliograph.agents.core.http_front import HttpFront
from heliograph.agents.core.interceptor import CallNext, interceptor


@interceptor("no_deletes")
async def no_deletes(env: Envelope, call_next: CallNext) -> Envelope:
    if env.payload["method"] == "tools/call" and "delete" in env.payload["params"]["name"]:
        raise Rejected("deleting is not allowed here", data={"suggested_actions": ["ask the owner"]})
    return await call_next(env)


def main(url: str) -> None:
    with AuditLog("audit.jsonl") as log:
        gateway = Gateway({"server": url}, [AuditInterceptor(log), no_deletes])
        uvicorn.run(HttpFront(gateway), port=8080, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1])
