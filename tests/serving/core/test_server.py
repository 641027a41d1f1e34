"""What clients of the OpenAI interface see: answers, streams, limits, errors, draining."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import AsyncEngine
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.server import EngineBackend, Server, ServerConfig, create_app

OPEN = ServerConfig()
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
Call = Callable[..., Any]


def tokens(model: LanguageModel, prompt: str, count: int = 8) -> str:
    params = SamplingParams(max_tokens=count, temperature=0, ignore_end=True)
    return generate(model, [prompt], params)[0].text


@asynccontextmanager
async def serving(
    model: LanguageModel, config: ServerConfig = OPEN, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Server, AsyncEngine]]:
    engine = AsyncEngine(Engine(model, **({"block_size": 4, "num_blocks": 64} | settings)), max_waiting=8)
    server = Server(EngineBackend(engine, "tiny"), config)
    transport = httpx.ASGITransport(create_app(server))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, server, engine
        await engine.check()
    finally:
        engine.close()


def run(model: LanguageModel, action: Call, config: ServerConfig = OPEN, **settings: Any) -> Any:
    async def whole() -> Any:
        async with asyncio.timeout(60), serving(model, config, **settings) as parts:
            return await action(*parts)

    return asyncio.run(whole())


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion_is_what_a_plain_forward_pass_gives(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        return (await client.post("/v1/completions", json={"prompt": ["one", "two"], **GREEDY})).json()

    body = run(tiny, ask)
    assert [choice["text"] for choice in body["choices"]] == [tokens(tiny, "one"), tokens(tiny, "two")]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "length"]
    assert body["usage"]["completion_tokens"] == 16


def test_a_stream_adds_up_to_the_whole_answer(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        whole = {"prompt": "stream me", "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
        return chunks((await client.post("/v1/completions", json=whole)).text)

    found = run(tiny, ask)
    assert "".join(c["choices"][0]["text"] for c in found if c["choices"]) == tokens(tiny, "stream me")
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 8


def test_choices_of_one_seed_are_repeated_and_differ_from_each_other(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        body = {"prompt": "draw", "n": 3, "seed": 5, "max_tokens": 8, "ignore_eos": True}
        return [(await client.post("/v1/completions", json=body)).json()["choices"] for _ in range(2)]

    first, second = run(tiny, ask)
    assert [c["text"] for c in first] == [c["text"] for c in second]
    assert len({c["text"] for c in first}) > 1


def test_copies_of_a_prompt_find_its_blocks(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, _: Server, engine: AsyncEngine) -> Any:
        await client.post("/v1/completions", json={"prompt": "a shared prompt!", "n": 3, **GREEDY})
        return await engine.stats()

    assert run(tiny, ask).hit_tokens == 2 * 12


def test_echo_gives_the_log_probabilities_of_the_prompt(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        body = {"prompt": list(b"score"), "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}
        return (await client.post("/v1/completions", json=body)).json()["choices"][0]

    choice = run(tiny, ask)
    found = choice["logprobs"]
    assert (choice["text"], found["tokens"]) == ("score", list("score"))
    assert found["token_logprobs"][0] is None
    assert all(value < 0 for value in found["token_logprobs"][1:])
    assert found["text_offset"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v1/completions", {"prompt": ""}, 400, "empty"),
        ("/v1/completions", {"prompt": "x" * 600}, 400, "600 tokens"),
        ("/v1/completions", {"prompt": "x" * 300}, 400, "300 tokens; the cache holds 256"),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "temperature": "hot"}, 400, "temperature"),
        ("/v1/completions", {"prompt": [999]}, 400, "token 999"),
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404, "'other' is not served"),
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "json_object"}}, 400, "response_format"),
        ("/v1/completions", {"prompt": "x", "n": 1000}, 400, "n: "),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400, "tools"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_clients_own_form(
    tiny: LanguageModel, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        return await client.post(path, json=body)

    response = run(tiny, ask)
    assert response.status_code == status
    assert text in response.json()["error"]["message"]


def test_a_stream_that_cannot_begin_is_an_error_and_no_stream(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        return await client.post("/v1/completions", json={"prompt": "x" * 300, "stream": True})

    assert run(tiny, ask).status_code == 400


def test_invalid_json_is_refused(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        return await client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})

    assert run(tiny, ask).status_code == 400


def test_a_body_above_the_limit_is_refused_even_without_a_length(tiny: LanguageModel) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        declared = await client.post("/v1/completions", json={"prompt": "x" * 5000})
        chunked = await client.post("/v1/completions", content=endless())
        return declared.status_code, chunked.status_code

    assert run(tiny, ask, ServerConfig(max_body_bytes=4096)) == (413, 413)


def test_a_key_is_asked_for_but_not_for_health(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        with_key = {"Authorization": "Bearer right"}
        return [
            (await client.get("/v1/models")).status_code,
            (await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code,
            (await client.get("/v1/models", headers=with_key)).status_code,
            (await client.get("/health")).status_code,
        ]

    assert run(tiny, ask, ServerConfig(api_keys=("right",))) == [401, 401, 200, 200]


def test_too_many_requests_are_told_when_to_come_again(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        return await client.post("/v1/completions", json={"prompt": "x", "n": 3, **GREEDY})

    response = run(tiny, ask, ServerConfig(max_requests=2))
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1


def test_a_draining_server_ends_what_it_has_and_takes_nothing_new(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, server: Server, *_: Any) -> Any:
        body = {"prompt": "long", **GREEDY, "max_tokens": 100}
        under_way = asyncio.create_task(client.post("/v1/completions", json=body))
        while not server.active:
            await asyncio.sleep(0)
        draining = asyncio.create_task(server.drain())
        while server.phase == "ready":
            await asyncio.sleep(0)
        late = await client.post("/v1/completions", json=body)
        health = await client.get("/health")
        return (await under_way).json(), late, health, await draining, server.phase

    done, late, health, ended, phase = run(tiny, ask)
    assert done["usage"]["completion_tokens"] == 100
    assert (late.status_code, health.status_code, health.json()["status"]) == (503, 503, "draining")
    assert (ended, phase) == (0, "stopped")


def test_what_does_not_end_in_time_is_told_so(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, server: Server, *_: Any) -> Any:
        body = {"prompt": "long", **GREEDY, "max_tokens": 240}
        under_way = asyncio.create_task(client.post("/v1/completions", json=body))
        while not server.active:
            await asyncio.sleep(0)
        ended = await server.drain()
        return (await under_way).json(), ended

    done, ended = run(tiny, ask, ServerConfig(drain_timeout_s=0.0))
    assert (done["choices"][0]["finish_reason"], ended) == ("abort", 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(tiny: LanguageModel, stream: bool) -> None:
    async def ask(_: httpx.AsyncClient, server: Server, engine: AsyncEngine) -> Any:
        app = create_app(server)
        body = json.dumps({"prompt": "left alone", **GREEDY, "max_tokens": 240, "stream": stream}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        leave = asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "headers": headers,
            "http_version": "1.1",
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        working = asyncio.create_task(app(scope, receive, send))
        while (await engine.stats()).generated_tokens < 2:
            await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(working, return_exceptions=True)
        stats = await engine.stats()
        while stats.running:  # the command to end it is in the engine's queue
            stats = await engine.stats()
        return stats

    stats = run(tiny, ask)
    assert stats.kv_usage == 0
    assert stats.generated_tokens < 240


def test_metrics_count_every_request_under_both_names(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        await client.post("/v1/completions", json={"prompt": ["one", "two"], **GREEDY})
        first = (await client.get("/metrics")).text
        return first, (await client.get("/metrics")).text

    first, second = run(tiny, ask)
    for family in ("heliograph_", "vllm:"):
        label = '{model_name="tiny"}'
        assert f"{family}time_to_first_token_seconds_count{label} 2.0" in first
        assert f"{family}generation_tokens_total{label} 16.0" in first
        assert f"{family}num_requests_running{label} 0.0" in first
        assert f'{family}time_to_first_token_seconds_bucket{{le="480.0",model_name="tiny"}} 2.0' in first
    assert [line for line in first.splitlines() if "_created" not in line] == [
        line for line in second.splitlines() if "_created" not in line
    ]


def test_the_prefix_cache_can_be_emptied(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, _: Server, engine: AsyncEngine) -> Any:
        await client.post("/v1/completions", json={"prompt": "remember me", **GREEDY})
        blocks = (await client.post("/reset_prefix_cache")).json()["blocks"]
        await client.post("/v1/completions", json={"prompt": "remember me", **GREEDY})
        return blocks, (await engine.stats()).hit_tokens

    blocks, hits = run(tiny, ask)
    assert blocks > 0
    assert hits == 0


def test_tokens_there_and_back(tiny: LanguageModel) -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> Any:
        found = (await client.post("/tokenize", json={"prompt": "abc"})).json()
        return found, (await client.post("/detokenize", json={"tokens": found["tokens"]})).json()

    there, back = run(tiny, ask)
    assert there["tokens"] == [97, 98, 99]
    assert back == {"prompt": "abc"}
