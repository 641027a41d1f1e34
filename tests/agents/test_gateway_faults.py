# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""Servers that die, hang, flood or answer out of order, clocks that jump, and a gateway that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import httpx2
import pytest
from mcp import Client, MCPError

from heliograph.agents import Gateway, UpstreamSpec
from heliograph.agents.core.audit import verify
from heliograph.agents.core.interceptor import interceptor
from heliograph.agents.core.links import LinkLost
from heliograph.agents.core.upstream import Caller, Upstream
from heliograph.clock import VirtualClock
from tests.agents.fixture_server import Fixture, http_app
from tests.agents.serving import FIXTURE, fixture_process, free_port, gateway_before, run, serving

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
KINDS = pytest.mark.parametrize("kind", ["http", "stdio"])


def stdio(**limits):
    return UpstreamSpec(command=sys.executable, args=(str(FIXTURE), "stdio"), **limits)


def said(result):
    return result.content[0].text


async def fails(call):
    with pytest.raises(MCPError) as caught:
        await call
    return caught.value.error


@ERAS
def test_server_killed_in_the_middle_of_many_calls_fails_each_and_serves_again_after_its_restart(mode):
    async def scenario():
        port = free_port()
        spec = UpstreamSpec(url=f"http://127.0.0.1:{port}/mcp", timeout_s=20)
        gateway = None
        with fixture_process(port) as process:
            async with gateway_before({"up": spec}) as (gateway, url), Client(url, mode=mode) as client:
                await client.call_tool("echo", {})
                calls = [asyncio.create_task(fails(client.call_tool("hang", {}))) for _ in range(50)]
                while gateway.in_flight < 50:
                    await asyncio.sleep(0.01)
                process.kill()
                errors = await asyncio.gather(*calls)
                assert {error.code for error in errors} == {-32005}
                assert all(error.data["upstream"] == "up" for error in errors)
                process.wait()
                with fixture_process(port):
                    while True:  # refused until the delay after the failure is over
                        try:
                            assert said(await client.call_tool("echo", {"value": 1})) == "1"
                            break
                        except MCPError:
                            await asyncio.sleep(0.05)

    run(scenario)


@ERAS
def test_child_process_that_dies_is_started_again(mode):
    async def scenario():
        async with gateway_before({"up": stdio()}) as (gateway, url), Client(url, mode=mode) as client:
            await client.call_tool("echo", {})
            assert (await fails(client.call_tool("die", {}))).code == -32005
            assert said(await client.call_tool("echo", {"value": 2})) == "2"
            assert gateway.upstreams["up"].opened == 2

    run(scenario)


@ERAS
@KINDS
def test_hanging_call_times_out_alone_and_is_cancelled_at_the_server(mode, kind):
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up:
            spec = UpstreamSpec(url=up, timeout_s=1) if kind == "http" else stdio(timeout_s=1)
            async with gateway_before({"up": spec}) as (gateway, url), Client(url, mode=mode) as client:
                await client.call_tool("echo", {})
                opened = gateway.upstreams["up"].opened
                hung = asyncio.create_task(fails(client.call_tool("hang", {})))
                for number in range(5):
                    assert said(await client.call_tool("echo", {"value": number})) == str(number)
                error = await hung
                assert error.code == -32001
                assert error.data == {"upstream": "up", "retryable": True, "timeout_ms": 1000}
                assert said(await client.call_tool("echo", {"value": 9})) == "9"
                assert gateway.upstreams["up"].opened == opened
                while kind == "http" and not fixture.cancelled:
                    await asyncio.sleep(0.01)

    run(scenario)


def test_interceptor_can_shorten_a_callers_time():
    @interceptor("hurry")
    async def hurry(env, call_next):
        from heliograph.agents import Meta

        return await call_next(env.replace(meta=Meta(deadline_ms=50)))

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}, [hurry]) as (_, url), Client(url) as client:
            error = await fails(client.call_tool("hang", {}))
            assert error.data["timeout_ms"] == 50

    run(scenario)


@ERAS
def test_caller_who_gives_up_cancels_the_call_at_the_server(mode):
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (gateway, url):
            async with Client(url, mode=mode) as client:
                task = asyncio.create_task(client.call_tool("hang", {}))
                while not gateway.in_flight:
                    await asyncio.sleep(0.01)
                while gateway.upstreams["up"].info is None:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # the call is on its way to the server
                task.cancel()
                while not fixture.cancelled or gateway.in_flight:
                    await asyncio.sleep(0.01)

    run(scenario)


@ERAS
@KINDS
def test_flood_of_100_mb_is_refused_and_others_go_on(mode, kind):
    async def scenario():
        with fixture_process(free_port()) as process:
            port = process.args[-1]
            limits = {"max_response_bytes": 1024 * 1024, "timeout_s": 30}
            spec = UpstreamSpec(url=f"http://127.0.0.1:{port}/mcp", **limits) if kind == "http" else stdio(**limits)
            async with gateway_before({"up": spec}) as (_, url), Client(url, mode=mode) as client:
                error = await fails(client.call_tool("flood", {"bytes": 100_000_000}))
                assert error.code == -32004
                assert "1048576 bytes" in error.message
                assert said(await client.call_tool("flood", {"bytes": 500_000})) == "x" * 500_000

    run(scenario)


def test_body_that_is_too_long_is_refused():
    async def scenario():
        listen = {"max_body_bytes": 10_000}
        async with serving(http_app()) as up, gateway_before({"up": up}, listen=listen) as (_, url):
            async with httpx2.AsyncClient() as http:
                answer = await http.post(url, content=b"x" * 20_000, headers={"mcp-protocol-version": "2026-07-28"})
        assert answer.status_code == 413

    run(scenario)


@ERAS
@KINDS
def test_answers_out_of_order_reach_their_callers(mode, kind):
    async def scenario():
        async with serving(http_app()) as up:
            async with gateway_before({"up": up if kind == "http" else stdio()}) as (_, url):
                async with Client(url, mode=mode) as client:
                    values = range(20)
                    answers = await asyncio.gather(
                        *(client.call_tool("echo", {"value": n, "delay_ms": (19 - n) * 10}) for n in values)
                    )
        assert [said(answer) for answer in answers] == [str(n) for n in values]

    run(scenario)


def test_one_slow_server_does_not_hold_up_another():
    async def scenario():
        async with serving(http_app()) as slow, serving(http_app()) as fast:
            specs = {"slow": UpstreamSpec(url=slow, max_concurrency=2, timeout_s=5), "fast": fast}
            async with gateway_before(specs) as (_, url), Client(url) as client:
                hung = [asyncio.create_task(fails(client.call_tool("slow.hang", {}))) for _ in range(6)]
                for number in range(10):
                    assert said(await client.call_tool("fast.echo", {"value": number})) == str(number)
                assert not any(task.done() for task in hung)
                for task in hung:
                    task.cancel()
                await asyncio.gather(*hung, return_exceptions=True)

    run(scenario)


def test_failed_connection_is_not_tried_again_before_a_delay_that_doubles_up_to_its_limit():
    async def scenario():
        clock = VirtualClock()
        upstream = Upstream("up", UpstreamSpec(url="http://127.0.0.1:1/mcp"), clock=clock, max_backoff_s=1.0)
        caller = Caller(None, "2026-07-28")
        for delay in (0.25, 0.5, 1.0, 1.0):
            with pytest.raises(LinkLost, match="cannot reach"):
                await upstream.link(caller)
            clock.sleep(delay - 0.01)
            with pytest.raises(LinkLost, match=r"next try is in 1[01] ms"):
                await upstream.link(caller)
            clock.sleep(0.02)
        await upstream.close()

    run(scenario)


def test_jump_of_the_clock_neither_ends_nor_prolongs_calls(monkeypatch):
    import time

    async def scenario():
        async with serving(http_app()) as up:
            spec = UpstreamSpec(url=up, timeout_s=2)
            async with gateway_before({"up": spec}) as (_, url), Client(url) as client:
                call = asyncio.create_task(client.call_tool("echo", {"value": 1, "delay_ms": 200}))
                monkeypatch.setattr(time, "time", lambda: 0.0)  # the date, not the monotonic clock
                assert said(await call) == "1"
                assert (await fails(client.call_tool("hang", {}))).code == -32001

    run(scenario)


def configured(tmp_path, port, **policy):
    path = tmp_path / "gateway.json"
    own = {"audit": {"path": "audit.jsonl"}, "listen": {"port": 0}, **policy}
    path.write_text(json.dumps({"mcpServers": {"up": {"url": f"http://127.0.0.1:{port}/mcp"}}, "heliograph": own}))
    return path


def started(path, *options):
    code = "from heliograph.agents.commands import gateway_app; gateway_app()"
    command = [sys.executable, "-c", code, "serve", str(path), "--watch", "0.05", "--verbose", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("gateway: "):
            return process, line.split()[1]
    raise AssertionError("the gateway did not start")


def test_gateway_killed_under_load_leaves_an_audit_log_that_verifies_to_the_last_answer(tmp_path):
    async def scenario():
        port = free_port()
        with fixture_process(port):
            path = configured(tmp_path, port)
            process, url = started(path)
            answered = 0

            async def load(client):
                nonlocal answered
                while True:
                    await client.call_tool("echo", {"value": "x"})
                    answered += 1
                    if answered == 200:
                        os.kill(process.pid, signal.SIGKILL)

            async def caller():
                async with Client(url) as client:
                    await load(client)

            await asyncio.gather(*(asyncio.create_task(caller()) for _ in range(4)), return_exceptions=True)
            process.wait()
            process.stderr.close()
            log = tmp_path / "audit.jsonl"
            assert verify(log).ok
            lines = log.read_bytes().split(b"\n")[:-1]
            outcomes = [json.loads(line) for line in lines if b'"event":"outcome"' in line]
            assert sum(outcome["status"] == "ok" for outcome in outcomes) >= answered >= 200
            again, url = started(path)
            async with Client(url) as client:
                await client.call_tool("echo", {})
            again.send_signal(signal.SIGTERM)
            assert again.wait(20) == 0
            again.stderr.close()
            assert verify(log).ok

    run(scenario)


def test_sigterm_lets_calls_in_flight_finish_and_takes_no_new_ones(tmp_path):
    async def scenario():
        port = free_port()
        with fixture_process(port):
            process, url = started(configured(tmp_path, port))
            async with Client(url) as client:
                await client.call_tool("echo", {})
                slow = asyncio.create_task(client.call_tool("echo", {"value": "kept", "delay_ms": 1500}))
                async with httpx2.AsyncClient() as http:
                    while "heliograph_in_flight 1.0" not in (await http.get(url.replace("/mcp", "/metrics"))).text:
                        await asyncio.sleep(0.01)
                    process.send_signal(signal.SIGTERM)
                    while (await http.get(url.replace("/mcp", "/health"))).status_code != 503:
                        await asyncio.sleep(0.01)
                assert (await fails(client.call_tool("echo", {}))).data == {"retryable": True}
                assert said(await slow) == '"kept"'
            assert await asyncio.to_thread(process.wait, 20) == 0
            process.stderr.close()

    run(scenario)


def test_changed_file_is_taken_over_with_sessions_and_a_bad_one_is_not(tmp_path):
    async def scenario():
        port, other = free_port(), free_port()
        with fixture_process(port), fixture_process(other):
            path = configured(tmp_path, port)
            process, url = started(path)
            async with Client(url, mode="legacy") as client:
                assert said(await client.call_tool("echo", {"value": 1})) == "1"
                whole = json.loads(path.read_text())
                path.write_text("{ not json")
                for line in process.stderr:
                    if "not taken over" in line:
                        break
                assert said(await client.call_tool("echo", {"value": 2})) == "2"
                whole["mcpServers"]["other"] = {"url": f"http://127.0.0.1:{other}/mcp"}
                path.write_text(json.dumps(whole))
                process.send_signal(signal.SIGHUP)
                for line in process.stderr:
                    if "configuration taken over" in line:
                        break
                assert said(await client.call_tool("other.echo", {"value": 3})) == "3"
                assert said(await client.call_tool("up.echo", {"value": 4})) == "4"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0
            process.stderr.close()

    run(scenario)


def test_two_calls_open_one_connection():
    async def scenario():
        async with serving(http_app()) as up:
            gateway = Gateway({"up": up})
            caller = Caller(None, "2026-07-28")
            links = await asyncio.gather(*(gateway.upstreams["up"].link(caller) for _ in range(20)))
            assert len({id(link) for link in links}) == 1
            assert gateway.upstreams["up"].opened == 1
            await gateway.close()

    run(scenario)


@ERAS
def test_calls_one_after_another_need_no_further_connections(mode):
    async def scenario():
        ports = []
        app = http_app()

        async def watched(scope, receive, send):
            if scope["type"] == "http" and scope["method"] == "POST":
                ports.append(scope["client"][1])
            await app(scope, receive, send)

        async with serving(watched) as up, gateway_before({"up": up}) as (_, url), Client(url, mode=mode) as client:
            await client.call_tool("echo", {"value": 0})
            before = len(ports)
            for number in range(10):
                assert said(await client.call_tool("echo", {"value": number})) == str(number)
        assert len(ports) - before == 10
        assert len(set(ports[before:])) <= 3

    run(scenario)
