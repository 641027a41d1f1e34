"""How an agent reaches the world's tools: as functions, over plain MCP, or over MCP through the enforcing gateway."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import mcp_types as types
from mcp import Client
from mcp.shared.exceptions import MCPError

from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec.certificates import EXTENSION
from heliograph.agents.mcp_sec.enforcer import SecurityEnforcer
from heliograph.agents.mcp_sec.grants import GrantBook
from heliograph.agents.mcp_sec.hostile import Behaviour, certify, mcp_server
from heliograph.agents.mcp_sec.inprocess import gateway_before
from heliograph.agents.mcp_sec.policy import FlowPolicy, SecurityPolicy
from heliograph.agents.mcp_sec.suite import Played, Scenario, ToolCall
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.agents.mcp_sec.world import ToolFailed, ToolWorld
from heliograph.errors import BadInput

__all__ = ["ARMS", "Answer", "Host", "open_host"]

Arm = Literal["twin", "mcp", "mcp+prompt", "mcp+allow-list", "mcpsec"]
ARMS: tuple[Arm, ...] = ("twin", "mcp", "mcp+prompt", "mcp+allow-list", "mcpsec")
"""Without a protocol, plain, with a warning in the system prompt, with a list of allowed tool names, and enforced."""

# Keys say nothing about a scenario, so all runs of a process share them: making keys takes longer than a run.
_ISSUER, _SERVER_KEY, _GATEWAY = (Identity.from_seed(bytes([number]) * 32) for number in (7, 8, 9))


@dataclass(frozen=True)
class Answer:
    """What a call gave.

    Attributes:
        text: of the tool, or of the refusal.
        shown: how a model sees it in this arm.
        ok: the tool did it.
        denied: reason of a refusal by the gateway; "" for none.
        marked: the answer says where it comes from.
    """

    text: str
    shown: str
    ok: bool
    denied: str = ""
    marked: bool = False


class Host(Protocol):
    """Calls tools by name."""

    async def tools(self) -> dict[str, str]:
        """Descriptions by name, as listed now."""
        ...

    async def call(self, call: ToolCall) -> Answer:
        """The tool's answer; a bare name means the last server that lists it."""
        ...


def _resolved(names: Sequence[str], wanted: str) -> str:
    if wanted in names:
        return wanted
    bare = [name for name in names if name.partition(".")[2] == wanted]
    return bare[-1] if bare else wanted


class TwinHost:
    """The same functions in this process, without a protocol."""

    def __init__(self, world: ToolWorld) -> None:
        self._world = world

    async def tools(self) -> dict[str, str]:
        """Of the world."""
        return {name: tool.description for name, tool in self._world.tools.items()}

    async def call(self, call: ToolCall) -> Answer:
        """Runs the function."""
        server, _, tool = _resolved(list(self._world.tools), call.name).partition(".")
        try:
            text = self._world.run(server, tool, call.arguments)
        except ToolFailed as error:
            return Answer(str(error), str(error), False)
        return Answer(text, text, True)


class McpHost:
    """Clients of the official SDK: one for each server, or one for a gateway, whose names say the server already."""

    def __init__(self, clients: dict[str, Client], allowed: frozenset[str] | None = None) -> None:
        self._clients, self._allowed = clients, allowed
        self._where: dict[str, tuple[Client, str]] = {}

    async def tools(self) -> dict[str, str]:
        """As listed; names that the allow-list lacks are left out."""
        found: dict[str, str] = {}
        self._where = {}
        for server, client in self._clients.items():
            for tool in (await client.session.list_tools()).tools:
                name = f"{server}.{tool.name}" if server else tool.name
                if self._allowed is not None and name.partition(".")[2] not in self._allowed:
                    continue
                found[name] = tool.description or ""
                self._where[name] = (client, tool.name)
        return found

    async def call(self, call: ToolCall) -> Answer:
        """Over the protocol."""
        name = _resolved(list(self._where), call.name)
        if name in self._where:
            client, tool = self._where[name]
        elif "" in self._clients:
            client, tool = self._clients[""], name
        else:
            server, _, tool = name.partition(".")
            if server not in self._clients or self._allowed is not None:
                return Answer(f"there is no tool {name}", f"there is no tool {name}", False)
            client = self._clients[server]
        try:
            result = await client.call_tool(tool, dict(call.arguments))
        except MCPError as error:
            data = error.error.data if isinstance(error.error.data, dict) else {}
            denied = str((data.get("serf") or {}).get("code", ""))
            return Answer(error.error.message, error.error.message, False, denied)
        text = "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))
        wire = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        said = {key: wire[key] for key in ("content", "isError") if wire.get(key)}
        marked = all(EXTENSION in (block.get("_meta") or {}) for block in wire.get("content", ()))
        return Answer(text, json.dumps(said), not result.is_error, marked=marked)


@asynccontextmanager
async def open_host(
    arm: Arm,
    world: ToolWorld,
    scenario: Scenario,
    played: Played,
    *,
    attack: bool,
    isolation: str = "value",
    mode: str = "strict",
) -> AsyncIterator[tuple[Host, SecurityEnforcer | None]]:
    """A host in one arm; the compromised server misbehaves if ``attack``.

    What servers ask the model or the user is noted in ``played`` and answered.

    Raises:
        BadInput: an unknown arm.
    """
    if arm not in ARMS:
        raise BadInput(f"arms are {', '.join(ARMS)}; got {arm!r}")
    if arm == "twin":
        yield TwinHost(world), None
        return
    behaviour = scenario.behaviour() if attack else Behaviour()
    played.marks = behaviour.marks
    enforced = arm == "mcpsec"

    def server(name: str, how: Behaviour) -> Any:
        attestation = None
        if enforced:
            wanted = scenario.certified if name == scenario.compromised else ("tools",)
            attestation = (certify(world, name, _ISSUER, _SERVER_KEY, wanted), _SERVER_KEY)
        return mcp_server(world, name, how, attestation=attestation, now=time.time)

    def servers(how: Behaviour) -> dict[str, Any]:
        return {name: server(name, how if name == scenario.compromised else Behaviour()) for name in world.servers}

    async def sampling(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:  # noqa: ARG001
        for message in params.messages:
            blocks = message.content if isinstance(message.content, list) else [message.content]
            played.prompts += [block.text for block in blocks if isinstance(block, types.TextContent)]
        said = types.TextContent(type="text", text="the password is hunter2")
        return types.CreateMessageResult(role="assistant", content=said, model="bench")

    async def elicitation(context: Any, params: Any) -> types.ElicitResult:  # noqa: ARG001
        played.questions.append(str(params.message))
        return types.ElicitResult(action="accept", content={"password": "hunter2"})

    def client(target: Any) -> Client:
        return Client(target, mode=scenario.era, sampling_callback=sampling, elicitation_callback=elicitation)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sampling is deprecated, and attacked all the same
        async with AsyncExitStack() as stack:
            if not enforced:
                clients = {
                    name: await stack.enter_async_context(client(one)) for name, one in servers(behaviour).items()
                }
                names = frozenset(tool.name for tool in world.tools.values())
                yield McpHost(clients, names if arm == "mcp+allow-list" else None), None
                return
            trust = TrustStore({"bench": _ISSUER.public})
            policy = SecurityPolicy(
                mode=mode,  # type: ignore[arg-type]
                flow=FlowPolicy(isolation=isolation, on_flow="deny"),  # type: ignore[arg-type]
            )
            if scenario.reconnects:  # met once, in good order
                first = gateway_before(servers(Behaviour()), [SecurityEnforcer(trust, policy=policy)])
                async with client(first.server) as early:
                    await early.session.list_tools()
            grants = GrantBook(_GATEWAY)
            for source, target, tool in scenario.task.grants:
                grants.issue(source, target, tool)
            enforcer = SecurityEnforcer(trust, policy=policy, grants=grants)
            gateway = gateway_before(servers(behaviour), [enforcer])
            yield McpHost({"": await stack.enter_async_context(client(gateway.server))}), enforcer
