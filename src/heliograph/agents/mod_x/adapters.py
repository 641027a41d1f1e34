"""Unlike agents behind one interface: rules, models, logic programs, old programs, people, devices, MCP and A2A.

Each has ``offers()`` and ``call(name, arguments)``, which is what :meth:`ModXPeer.attach` takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heliograph.agents.core.child import child_process
from heliograph.agents.core.envelope import new_id
from heliograph.agents.core.lm import LM
from heliograph.agents.mod_x.discovery import Capability
from heliograph.agents.mod_x.peer import CallFailed
from heliograph.errors import BadInput, MissingExtra

__all__ = [
    "A2aAgent",
    "DeviceAgent",
    "HumanAgent",
    "LegacyAgent",
    "McpAgent",
    "NeuralAgent",
    "Rule",
    "RuleAgent",
    "SymbolicAgent",
]

MAX_ANSWER_BYTES = 8 * 1024 * 1024
A2A_HEADERS = {"A2A-Version": "1.0"}


class _One:
    """An agent with one capability."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability

    async def offers(self) -> Sequence[Capability]:
        """Its capability."""
        return [self.capability]

    def _check(self, name: str) -> None:
        if name != self.capability.name:
            raise CallFailed(f"this agent does {self.capability.name}, not {name}", "unknown")


@dataclass(frozen=True)
class Rule:
    """A condition and what follows.

    Attributes:
        name: of it.
        when: whether it fires on these facts.
        then: new facts by name.
    """

    name: str
    when: Callable[[Mapping[str, Any]], bool]
    then: Callable[[Mapping[str, Any]], Mapping[str, Any]]


class RuleAgent(_One):
    """Forward chaining: rules in their order, each at most once a round, until nothing changes.

    Args:
        capability: offered; its arguments are the first facts, its answer all facts or the output ``answer``.
        rules: in order.
        answer: fact that is the answer; "" for all facts.
        max_rounds: after which it gives up.
    """

    def __init__(
        self, capability: Capability, rules: Iterable[Rule], *, answer: str = "", max_rounds: int = 100
    ) -> None:
        super().__init__(capability)
        self.rules, self.answer, self.max_rounds = tuple(rules), answer, max_rounds

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Fires rules until nothing changes."""
        self._check(name)
        facts = dict(arguments)
        for _ in range(self.max_rounds):
            before = dict(facts)
            for rule in self.rules:
                if rule.when(facts):
                    facts.update(rule.then(facts))
            if facts == before:
                break
        else:
            raise CallFailed(f"the rules of {name} are not at rest after {self.max_rounds} rounds")
        if self.answer and self.answer not in facts:
            raise CallFailed(f"no rule of {name} gave {self.answer}")
        return facts[self.answer] if self.answer else facts


class NeuralAgent(_One):
    """A language model, or any function of numbers, as a capability.

    Args:
        capability: offered.
        model: an :class:`~heliograph.agents.core.lm.LM`, asked with ``prompt``, or a function of the arguments.
        prompt: with ``{argument}`` in it; for a model.
        max_tokens: of an answer.
    """

    def __init__(
        self, capability: Capability, model: LM | Callable[..., Any], *, prompt: str = "", max_tokens: int = 128
    ) -> None:
        super().__init__(capability)
        if isinstance(model, LM) and not prompt:
            raise BadInput("a language model needs a prompt; name the arguments in it as {argument}")
        self._model, self._prompt, self._max_tokens = model, prompt, max_tokens

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Asks the model, in a thread."""
        self._check(name)
        model = self._model
        if not isinstance(model, LM):
            result = await asyncio.to_thread(model, **arguments)
            return result.tolist() if hasattr(result, "tolist") else result
        prompt = self._prompt
        for argument, value in arguments.items():
            prompt = prompt.replace("{" + argument + "}", str(value))
        generated = await asyncio.to_thread(model.generate, prompt, max_tokens=self._max_tokens)
        return generated.text


Atom = tuple[Any, ...]


class SymbolicAgent(_One):
    """Facts and rules without negation (Datalog); a query gives all bindings.

    An atom is a tuple ``(predicate, term, ...)``; a term that is text with a leading ``?`` is a variable.

    Args:
        capability: offered; it takes ``query``, a list such as ``["near", "?hotel", "station"]``.
        facts: atoms without variables.
        rules: pairs of a head and its body; each variable of the head stands in the body.
        max_facts: derived at most.
    """

    def __init__(
        self,
        capability: Capability,
        facts: Iterable[Atom],
        rules: Iterable[tuple[Atom, Sequence[Atom]]] = (),
        *,
        max_facts: int = 100_000,
    ) -> None:
        super().__init__(capability)
        self._rules = [(tuple(head), [tuple(atom) for atom in body]) for head, body in rules]
        for head, body in self._rules:
            bound = {term for atom in body for term in atom if _is_variable(term)}
            loose = [term for term in head if _is_variable(term) and term not in bound]
            if loose:
                raise BadInput(f"the rule for {head[0]} does not bind {', '.join(loose)} in its body")
        self._facts = self._closure({tuple(fact) for fact in facts}, max_facts)

    def _closure(self, facts: set[Atom], limit: int) -> set[Atom]:
        new = facts
        while new:
            found: set[Atom] = set()
            for head, body in self._rules:
                for binding in _matches(body, facts):
                    found.add(tuple(binding.get(term, term) if _is_variable(term) else term for term in head))
            new = found - facts
            facts = facts | new
            if len(facts) > limit:
                raise BadInput(f"these rules give more than {limit} facts; raise max_facts or say less")
        return facts

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """All bindings of the query's variables, sorted."""
        self._check(name)
        query = arguments.get("query")
        if not isinstance(query, list) or not query:
            raise CallFailed('a query is a list such as ["near", "?hotel", "station"]', "refused")
        found = _matches([tuple(query)], self._facts)
        rows = [{term[1:]: value for term, value in binding.items()} for binding in found]
        return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def _is_variable(term: Any) -> bool:
    return isinstance(term, str) and term.startswith("?")


def _matches(body: Sequence[Atom], facts: set[Atom]) -> list[dict[str, Any]]:
    bindings: list[dict[str, Any]] = [{}]
    for atom in body:
        grown = []
        for binding, fact in itertools.product(bindings, facts):
            if len(fact) != len(atom):
                continue
            extended: dict[str, Any] | None = dict(binding)
            for term, value in zip(atom, fact, strict=True):
                if not _is_variable(term):
                    good = term == value
                else:
                    good = extended is not None and extended.setdefault(term, value) == value
                if not good:
                    extended = None
                    break
            if extended is not None:
                grown.append(extended)
        bindings = grown
    return bindings


class LegacyAgent(_One):
    """An old program: started for each call, arguments on standard input, the answer on standard output.

    Args:
        capability: offered.
        argv: command line, run without a shell.
        codec: "json" (an object in, any value out), "csv" (a header and one row in, rows out as objects) or "line"
            (``name=value`` lines in, text out).
        timeout_s: after which the program is killed.
    """

    def __init__(
        self,
        capability: Capability,
        argv: Sequence[str],
        *,
        codec: Literal["json", "csv", "line"] = "json",
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(capability)
        if not argv or codec not in ("json", "csv", "line") or not timeout_s > 0:
            raise BadInput("a legacy program has a command line, a codec json, csv or line, and a timeout above 0")
        self._argv, self._codec, self._timeout_s = list(argv), codec, timeout_s
        self._program = Path(self._argv[0]).name

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Runs the program."""
        self._check(name)
        words = self._encode(arguments)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                child_process(self._argv, stderr=asyncio.subprocess.PIPE, grace_s=0) as process,
            ):
                out, err = await _exchange(process, words)
                await process.wait()
        except BadInput as error:
            raise CallFailed(str(error)) from None
        except TimeoutError:
            raise CallFailed(f"{self._program} did not end within {self._timeout_s:g} s and was killed") from None
        if len(out) > MAX_ANSWER_BYTES:
            raise CallFailed(f"{self._program} wrote over {MAX_ANSWER_BYTES} bytes and was killed")
        if process.returncode:
            said = err.decode(errors="replace").strip()[:200]
            raise CallFailed(f"{self._program} ended with {process.returncode}: {said}")
        return self._decode(out)

    def _encode(self, arguments: Mapping[str, Any]) -> bytes:
        if self._codec == "json":
            return json.dumps(arguments).encode()
        if self._codec == "csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, list(arguments))
            writer.writeheader()
            writer.writerow(arguments)
            return text.getvalue().encode()
        for key, value in arguments.items():
            if "\n" in f"{key}{value}" or "=" in key:
                raise CallFailed("the line codec has no place for line breaks, nor for = in a name", "refused")
        return "".join(f"{key}={value}\n" for key, value in arguments.items()).encode()

    def _decode(self, out: bytes) -> Any:
        try:
            text = out.decode()
            if self._codec == "json":
                return json.loads(text)
            if self._codec == "csv":
                rows = list(csv.DictReader(io.StringIO(text), strict=True))
                if any(None in row or None in row.values() for row in rows):
                    raise ValueError("a row is longer or shorter than the header")
                return rows
            return text.strip()
        except (ValueError, csv.Error) as error:
            raise CallFailed(f"{self._program} did not write {self._codec}: {error}") from None


async def _exchange(process: asyncio.subprocess.Process, words: bytes) -> tuple[bytes, bytes]:
    """Gives a program its input; what it wrote to its output and its errors, not much more than the limit of each."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdin = process.stdin

    async def feed() -> None:
        with contextlib.suppress(ConnectionError):  # it need not read
            stdin.write(words)
            await stdin.drain()
        stdin.close()

    async def read(stream: asyncio.StreamReader) -> bytes:
        read = bytearray()
        while len(read) <= MAX_ANSWER_BYTES and (piece := await stream.read(65536)):
            read += piece
        if len(read) > MAX_ANSWER_BYTES:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return bytes(read)

    _, out, err = await asyncio.gather(feed(), read(process.stdout), read(process.stderr))
    return out, err


class HumanAgent(_One):
    """A person with an inbox: a call waits until somebody answers.

    Args:
        capability: offered.
        timeout_s: after which nobody has answered.
    """

    def __init__(self, capability: Capability, *, timeout_s: float = 3600.0) -> None:
        super().__init__(capability)
        self._timeout_s = timeout_s
        self._waiting: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}

    def inbox(self) -> dict[str, dict[str, Any]]:
        """What waits for an answer, by its id."""
        return {number: arguments for number, (arguments, _) in self._waiting.items()}

    def answer(self, number: str, value: Any) -> None:
        """Answers a question.

        Raises:
            BadInput: nobody waits for it.
        """
        self._future(number).set_result(value)

    def refuse(self, number: str, reason: str) -> None:
        """Says no."""
        self._future(number).set_exception(CallFailed(reason, "refused"))

    def _future(self, number: str) -> asyncio.Future[Any]:
        if number not in self._waiting:
            raise BadInput(f"nobody waits for an answer to {number}; waiting: {', '.join(self._waiting) or 'none'}")
        return self._waiting.pop(number)[1]

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Puts a question into the inbox, and waits."""
        self._check(name)
        number, future = new_id(), asyncio.get_running_loop().create_future()
        self._waiting[number] = (arguments, future)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError:
            raise CallFailed(f"nobody answered {name} within {self._timeout_s:g} s") from None
        finally:
            self._waiting.pop(number, None)


class DeviceAgent(_One):
    """A sensor: read now and then, its last readings are the answer.

    Args:
        capability: offered; it takes nothing.
        read: gives a reading.
        keep: readings kept.
    """

    def __init__(self, capability: Capability, read: Callable[[], Any], *, keep: int = 100) -> None:
        super().__init__(capability)
        if keep < 1:
            raise BadInput(f"a device keeps one reading or more; got {keep}")
        self._read = read
        self.readings: deque[Any] = deque(maxlen=keep)

    def sample(self) -> Any:
        """Reads once."""
        self.readings.append(self._read())
        return self.readings[-1]

    async def run(self, period_s: float, publish: Callable[[Any], Awaitable[Any]]) -> None:
        """Reads and tells, for ever."""
        if not period_s > 0:
            raise BadInput(f"a period is above 0 s; got {period_s}")
        while True:
            await publish(self.sample())
            await asyncio.sleep(period_s)

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:  # noqa: ARG002 - the interface
        """The last reading; a fresh one if there is none."""
        self._check(name)
        return self.readings[-1] if self.readings else self.sample()


class McpAgent:
    """An MCP server's tools as capabilities.

    Args:
        server: URL, stdio parameters or server object: what the official SDK's ``Client`` takes.
        effects: by tool name; tools marked read-only by their server read, and others count as "external".
        outputs: types by tool name.
        inputs: types by tool name and argument; the argument's own name by default.
    """

    def __init__(
        self,
        server: Any,
        *,
        effects: Mapping[str, Literal["read", "write", "external"]] | None = None,
        outputs: Mapping[str, Sequence[str]] | None = None,
        inputs: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._server, self._effects = server, dict(effects or {})
        self._outputs, self._inputs = dict(outputs or {}), dict(inputs or {})

    @contextlib.asynccontextmanager
    async def _client(self) -> Any:
        try:
            from mcp import Client
        except ModuleNotFoundError as error:
            raise MissingExtra("mcp", "agents") from error
        # A connection for each call: the SDK ties one to the task that opened it, and calls come from many.
        async with Client(self._server) as client:
            yield client

    async def offers(self) -> Sequence[Capability]:
        """One for each tool."""
        found: list[Capability] = []
        async with self._client() as client:
            cursor = None
            while True:
                page = await client.list_tools(cursor=cursor)
                found += [self._capability(tool) for tool in page.tools]
                cursor = page.next_cursor
                if not cursor:
                    return found

    def _capability(self, tool: Any) -> Capability:
        properties = tool.input_schema.get("properties", {})
        reads = tool.annotations is not None and bool(tool.annotations.read_only_hint)
        return Capability(
            name=tool.name,
            agent="",
            description=tool.description or "",
            inputs=dict(self._inputs.get(tool.name, {name: name for name in properties})),
            outputs=tuple(self._outputs.get(tool.name, ())),
            effects=self._effects.get(tool.name, "read" if reads else "external"),
            schema=dict(tool.input_schema),
        )

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Calls the tool; structured content where there is some, text otherwise."""
        async with self._client() as client:
            result = await client.call_tool(name, arguments)
        texts = [part.text for part in result.content if getattr(part, "type", "") == "text"]
        if result.is_error:
            raise CallFailed(" ".join(texts) or f"the tool {name} failed")
        structured = result.structured_content
        if structured is not None:
            only = isinstance(structured, dict) and set(structured) == {"result"}
            return structured["result"] if only else structured
        if len(texts) == len(result.content) == 1:
            return texts[0]
        return [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]


class A2aAgent:
    """An A2A agent's skills as capabilities, over the JSON-RPC binding of A2A 1.0.

    Args:
        url: of the agent; its card is at ``/.well-known/agent-card.json``, and names where messages go.
        client: an ``httpx2.AsyncClient`` to send with, for tests or proxies.
        timeout_s: for an answer.
    """

    def __init__(self, url: str, *, client: Any = None, timeout_s: float = 30.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"an A2A agent's url begins with http:// or https://; got {url!r}")
        self._url, self._client, self._timeout_s = url.rstrip("/"), client, timeout_s
        self._endpoint = ""

    @contextlib.asynccontextmanager
    async def _http(self) -> Any:
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingExtra("httpx2", "agents") from error
        try:
            if self._client is not None:
                yield self._client
            else:
                async with httpx2.AsyncClient(timeout=self._timeout_s) as client:
                    yield client
        except (httpx2.HTTPError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise CallFailed(f"{self._url} did not answer as an A2A agent: {error}", "unreachable") from None

    async def _card(self, client: Any) -> dict[str, Any]:
        answer = await client.get(f"{self._url}/.well-known/agent-card.json", headers=A2A_HEADERS)
        card = answer.json()
        if not isinstance(card, dict) or not isinstance(card.get("skills"), list):
            raise BadInput(f"{self._url} has no A2A agent card with skills")
        interfaces = card.get("supportedInterfaces")
        for one in interfaces if isinstance(interfaces, list) else ():
            spoken = isinstance(one, dict) and str(one.get("protocolVersion", "")).startswith("1.")
            if spoken and one.get("protocolBinding") == "JSONRPC" and isinstance(one.get("url"), str):
                self._endpoint = one["url"]
                return card
        raise BadInput(f"{self._url} does not speak A2A 1.x over JSON-RPC; its card names no such interface")

    async def offers(self) -> Sequence[Capability]:
        """One for each skill of its card."""
        async with self._http() as client:
            card = await self._card(client)
        return [
            Capability(
                name=str(skill["id"]),
                agent="",
                description=str(skill.get("description", "")),
                effects="external",
                schema={"type": "object"},
            )
            for skill in card["skills"]
            if isinstance(skill, dict) and skill.get("id")
        ]

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Sends a message that names the skill, and reads the message or the task that answers it."""
        from heliograph.agents.mod_x.wire import Exchange, read, write

        number = new_id()
        message = write(Exchange("call", arguments, name, number), "a2a")
        body = {"jsonrpc": "2.0", "id": number, "method": "SendMessage", "params": {"message": message}}
        async with self._http() as client:
            if not self._endpoint:
                await self._card(client)
            answer = (await client.post(self._endpoint, json=body, headers=A2A_HEADERS)).json()
        if not isinstance(answer, dict) or "error" in answer or not isinstance(answer.get("result"), dict):
            error = answer.get("error") if isinstance(answer, dict) else None
            said = error.get("message") if isinstance(error, dict) else "no result"
            raise CallFailed(f"{self._url}: {said}")
        exchange = read(_told(answer["result"]), "a2a")
        if exchange.kind == "failure":
            raise CallFailed(exchange.body["message"])
        return exchange.body


def _told(result: Mapping[str, Any]) -> Any:
    """The message in an answer; that of a finished task is made of its artifacts.

    Raises:
        CallFailed: the task ended otherwise, or waits for something.
    """
    task = result.get("task")
    if not isinstance(task, Mapping):
        return result.get("message")
    found = task.get("status")
    status: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if status.get("state") == "TASK_STATE_COMPLETED":
        artifacts = task.get("artifacts") or []
        parts = [part for artifact in artifacts for part in artifact.get("parts", [])]
        return {"messageId": str(task.get("id")), "role": "ROLE_AGENT", "parts": parts}
    said = status.get("message")
    texts = [part["text"] for part in said.get("parts", []) if "text" in part] if isinstance(said, Mapping) else []
    state = str(status.get("state", "no state")).removeprefix("TASK_STATE_").lower().replace("_", " ")
    raise CallFailed(f"the task is {state}: {' '.join(texts) or 'no reason given'}")
