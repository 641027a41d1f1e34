"""``heliograph serve`` as a process: ready, hostile clients, SIGTERM, and the official client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from heliograph.data.language_models import smollm2_file
from heliograph.errors import MissingData


@contextlib.contextmanager
def served(*options: str, model: str | None = "smollm2-135m") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "heliograph.cli", "serve", *filter(None, [model]), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--layers", "2", "--cache-gib", "0.1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield json.loads(line)["url"], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _model() -> None:
    try:
        smollm2_file()
    except MissingData as error:
        pytest.skip(str(error))


def test_the_official_client_runs_unmodified() -> None:
    openai = pytest.importorskip("openai")
    with served() as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        messages = [{"role": "user", "content": "Hello"}]
        ask = {"model": "smollm2-135m", "messages": messages, "temperature": 0, "max_tokens": 6}
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert streamed == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.completions.create(model="smollm2-135m", prompt="")


def test_sigterm_finishes_what_is_under_way_and_exits_cleanly() -> None:
    with served() as (url, process):
        body = {"prompt": "count", "max_tokens": 60, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0


def test_a_thousand_half_open_connections_do_not_stop_others_or_eat_memory() -> None:
    with served() as (url, process):
        httpx.post(f"{url}/v1/completions", json={"prompt": "warm", "max_tokens": 2}, timeout=60)
        before = psutil.Process(process.pid).memory_info().rss
        host, port = url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                half = stack.enter_context(socket.create_connection((host, int(port)), 20))
                half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            answer = httpx.post(f"{url}/v1/completions", json={"prompt": "hi", "max_tokens": 2}, timeout=60)
            assert answer.status_code == 200
            assert psutil.Process(process.pid).memory_info().rss - before < 200 * 2**20
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(smollm2_file().read_bytes()[:100_000])
    done = subprocess.run(
        [sys.executable, "-m", "heliograph.cli", "serve", str(file), "--port", "0"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "cut.gguf" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--roles", "prefill=1"], "prompts and answers both need"),
        (["--roles", "prefill=x"], "prefill=x"),
        (["--dtype", "int8"], "int8"),
        (["--cache-gib", "0"], "cache-gib"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], text: str) -> None:
    command = [sys.executable, "-m", "heliograph.cli", "serve", "smollm2-135m", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "heliograph.cli", "serve", "smollm2-135m", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "cannot listen" in done.stderr) == (2, True), done.stderr
