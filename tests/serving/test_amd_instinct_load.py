import asyncio
import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.load import (
    CompletionClient,
    LoadRequest,
    LoadRun,
    RequestRecord,
    compare_runs,
    launch_server,
    make_requests,
    run_closed_loop,
    run_open_loop,
    run_trace,
    summarise,
)
from heliograph.serving.load.compare import power
from heliograph.serving.load.echo import EchoServer, EchoSettings
from heliograph.serving.load.launch import ServerFailed, echo_command, free_port
from heliograph.serving.load.summary import latencies_are_alike, quantile
from heliograph.workload import RequestTrace, TraceRequest

PROMPT = (11, 12, 13)


def with_echo(use, settings=None, **options):
    """Runs ``use(client, server)`` against an echo server."""

    async def run():
        async with EchoServer(settings) as server, CompletionClient(server.url, **options) as client:
            return await use(client, server)

    return asyncio.run(run())


def ask(fault="", tokens=6, endpoint="completions", settings=None, **options):
    prompt = "one two three" if endpoint == "chat" else PROMPT
    request = LoadRequest(prompt, tokens, extra={"echo_fault": fault} if fault else {})
    return with_echo(lambda client, _: client.send(request), settings, endpoint=endpoint, **options)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_healthy_request_is_counted_token_by_token(endpoint):
    record = ask(endpoint=endpoint)
    assert record.ok
    assert (record.output_tokens, record.prompt_tokens, record.finish) == (6, 3, "length")
    assert len(record.chunk_times_s) == 6
    assert len(record.itl_s()) == 5
    assert record.intended_s <= record.sent_s <= record.first_s <= record.end_s


@pytest.mark.parametrize(
    ("fault", "kind", "handled"),
    [
        ("drop", "truncated", False),
        ("no_end", "truncated", False),
        ("no_finish", "truncated", False),
        ("short", "wrong_length", False),
        ("error_event", "protocol", False),
        ("garbage", "protocol", False),
        ("http_500", "http", False),
        ("refuse", "refused", True),
        ("refuse_bare", "http", False),
    ],
)
def test_each_fault_ends_as_its_own_kind(fault, kind, handled):
    record = ask(fault)
    assert (record.failure, record.handled) == (kind, handled)
    assert record.error


def test_a_server_that_is_not_there_is_a_failed_connection():
    async def run():
        async with CompletionClient(f"http://127.0.0.1:{free_port()}", "m") as client:
            return await client.send(LoadRequest("x", 1))

    assert asyncio.run(run()).failure == "connection"


def test_a_server_that_never_ends_is_a_timeout():
    settings = EchoSettings(step_s=30.0)
    assert ask(settings=settings, timeout_s=0.2).failure == "timeout"


def test_another_length_counts_as_success_only_where_that_is_allowed():
    assert ask("short", check_length=False).ok


def test_several_tokens_a_chunk_are_not_taken_for_one():
    record = ask(tokens=10, settings=EchoSettings(tokens_per_chunk=4))
    assert record.chunk_tokens == (4, 4, 2)
    assert len(record.itl_s()) == 9
    assert sum(gap == 0.0 for gap in record.itl_s()) >= 7


def test_where_the_server_does_not_say_how_many_tokens_a_chunk_has_gaps_are_not_invented():
    record = ask(tokens=10, settings=EchoSettings(tokens_per_chunk=4, usage_each=False))
    assert record.ok
    assert not record.tokens_known
    assert record.itl_s() == ()
    assert record.tpot_s is not None


def test_a_chunk_that_names_only_a_role_is_not_the_first_token():
    def respond(request):
        events = [
            '{"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
            '{"choices": [{"delta": {"content": "hi"}, "finish_reason": "length"}]}',
            '{"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": '
            '{"cached_tokens": 3}}}',
            "[DONE]",
        ]
        return httpx.Response(200, text="".join(f"data: {event}\r\n\r\n" for event in events))

    async def run():
        transport = httpx.MockTransport(respond)
        async with CompletionClient("http://x/v1/", "m", endpoint="chat", transport=transport) as client:
            return await client.send(LoadRequest("hello", 1))

    record = asyncio.run(run())
    assert record.ok
    assert len(record.chunk_times_s) == 1
    assert record.cached_tokens == 3


@given(cuts=st.lists(st.integers(1, 60), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(cuts):
    text = "".join(
        f'data: {{"choices": [{{"text": "é{i}", "finish_reason": {finish}}}]}}\n\n'
        for i, finish in enumerate(["null", "null", "null", '"stop"'])
    )
    data = (text + "data: [DONE]\n\n").encode()

    async def pieces():
        at = 0
        for cut in [*cuts, len(data)]:
            yield data[at : at + cut]
            at += cut

    async def run():
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=pieces()))
        async with CompletionClient("http://x", "m", transport=transport) as client:
            return await client.send(LoadRequest("a", 4))

    record = asyncio.run(run())
    assert (record.failure, record.output_tokens, len(record.chunk_times_s)) == ("", 4, 4)


def test_the_closed_loop_keeps_as_many_requests_in_flight_as_it_has_clients():
    seen = []

    async def use(client, server):
        send = client.send

        async def watched(request, intended_s=None):
            seen.append(1)
            try:
                running = sum(seen)
                assert running <= 5
                return await send(request, intended_s)
            finally:
                seen.append(-1)

        client.send = watched
        return await run_closed_loop(
            client, make_requests(23, prompt_tokens=4, output_tokens=2, salt=1, vocabulary=2000), 5
        )

    run = with_echo(use)
    assert len(run.records) == 23
    assert (run.loop, run.concurrency) == ("closed", 5)
    assert sum(seen) == 0


def test_the_open_loop_counts_latency_from_the_intended_sending():
    class Stuck:
        """A client whose sending is late by three seconds."""

        def __init__(self):
            self.time = 0.0

        def now(self):
            return self.time

        async def send(self, request, intended_s=None):
            self.time += 3.0
            return RequestRecord(intended_s, self.time, self.time + 1.0, self.time + 0.5, output_tokens=1)

    run = asyncio.run(run_open_loop(Stuck(), [LoadRequest("a", 1)] * 2, [0.0, 0.0]))
    assert [record.ttft_s for record in run.records] == [3.5, 6.5]
    assert run.late_s == 6.0


def test_times_that_do_not_fit_the_requests_are_refused():
    with pytest.raises(BadInput, match="as many times in order"):
        asyncio.run(run_open_loop(None, [LoadRequest("a", 1)], [1.0, 2.0]))


def test_no_prompt_is_sent_twice_unless_a_prefix_is_shared():
    def prompts(salt, shared=0):
        return [r.prompt for r in make_requests(40, prompt_tokens=16, output_tokens=1, salt=salt, vocabulary=49152,
                                                shared_prefix_tokens=shared)]  # fmt: skip

    first, second = prompts(1), prompts(2)
    assert len({p[:4] for p in first + second}) == 80
    assert all(len(p) == 16 and min(p) >= 256 for p in first)
    assert prompts(1) == first
    assert len({p[:8] for p in prompts(3, 8)}) == 1
    assert len(set(prompts(3, 8))) == 40


def test_a_trace_is_replayed_with_its_prefixes_turns_and_priorities():
    rows = (
        TraceRequest(arrival_s=0.0, prompt_tokens=12, output_tokens=2, prefix_id="p", prefix_tokens=8, session="a"),
        TraceRequest(arrival_s=0.0, prompt_tokens=12, output_tokens=2, prefix_id="p", prefix_tokens=8, priority=3),
        TraceRequest(arrival_s=0.0, prompt_tokens=600, output_tokens=2, prefix_block_ids=(7,), prefix_block_tokens=512),
        TraceRequest(arrival_s=0.0, prompt_tokens=700, output_tokens=2, prefix_block_ids=(7,), prefix_block_tokens=512),
        TraceRequest(after_s=0.0, prompt_token_ids=(5, 6), output_tokens=2, session="a"),
    )
    trace = RequestTrace(rows, "cumulative")

    async def use(client, server):
        return await run_trace(client, trace, vocabulary=4000), server.prompts

    run, prompts = with_echo(use)
    assert all(record.ok for record in run.records)
    by_length = {length: [p for p in prompts if len(p) == length] for length in (2, 12, 600, 700)}
    assert by_length[12][0][:8] == by_length[12][1][:8]
    assert by_length[12][0] != by_length[12][1]
    assert by_length[600][0][:512] == by_length[700][0][:512]
    assert [5, 6] in prompts
    ended = {record.tag: record for record in run.records}
    assert ended["4"].sent_s >= ended["0"].end_s


def test_incremental_turns_are_refused_where_they_cannot_be_replayed():
    with pytest.raises(BadInput, match="cumulative"):
        asyncio.run(run_trace(None, RequestTrace((), "incremental")))


def record(latency, ok=True, tokens=4):
    return RequestRecord(0.0, 0.0, latency, 0.1, 10, tokens, failure="" if ok else "http", cached_tokens=5)


def test_failures_count_neither_in_rates_nor_in_latencies():
    run = LoadRun((record(1.0), record(2.0), record(99.0, ok=False)), "closed", 1, 0.0, 4.0)
    summary = summarise(run)
    assert summary.failures == (("http", 1),)
    assert summary.output_token_rate == 2.0
    assert summary.at("latency_s", 0.99) < 2.1
    assert summary.cached_share == 0.5
    assert summary.success_share == pytest.approx(2 / 3)


@given(st.integers(1, 400), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_its_interval_and_small_samples_are_not_bounded(count, share):
    found = quantile([float(i) for i in range(count)], share)
    assert found.low <= found.value <= found.high
    if count * (1 - share) < 1:
        assert found.high == math.inf


def test_the_interval_of_a_quantile_covers_it_as_often_as_it_says():
    import numpy as np

    random = np.random.default_rng(5)
    covered = [quantile(random.exponential(size=60), 0.5) for _ in range(600)]
    share = sum(q.low <= math.log(2) <= q.high for q in covered) / 600
    assert 0.93 <= share <= 0.99


def test_runs_that_differ_are_not_pooled():
    def run(shift):
        return LoadRun(tuple(record(1 + shift + i / 100) for i in range(20)), "closed", 1, 0.0, 9.0)

    assert latencies_are_alike([run(0), run(0.001)])
    assert not latencies_are_alike([run(0), run(0.5)])


def test_a_difference_is_found_and_an_equal_pair_is_not():
    base = [100.0, 101.0, 99.0, 100.5, 99.5]
    same = compare_runs(base, [100.2, 100.9, 99.2, 100.1, 99.6])
    assert not same.differs
    assert "no difference" in str(same)
    faster = compare_runs(base, [value * 1.1 for value in base])
    assert faster.mean_differs
    assert not faster.spread_differs
    assert faster.ratio.estimate == pytest.approx(1.1)
    wilder = compare_runs(base, [60.0, 150.0, 90.0, 120.0, 100.0])
    assert wilder.spread_differs


def test_equal_measurements_differ_in_nothing():
    assert not compare_runs([5.0] * 5, [5.0] * 5).differs


@pytest.mark.parametrize("bad", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_runs_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(BadInput):
        compare_runs([1.0, 2.0], bad)


def test_power_grows_with_the_gain_and_falls_with_the_spread():
    assert power(0.005, 0.04, 5) > 0.99
    assert power(0.05, 0.04, 5) < 0.2
    assert power(0.02, 0.08, 5) > power(0.02, 0.04, 5)


def test_a_server_process_is_started_and_ended_with_the_block():
    port = free_port()
    with launch_server(echo_command(port), port) as server:
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        assert server.cpu_s() > 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/health", trust_env=False)


def test_a_server_that_ends_at_once_is_reported_with_what_it_printed():
    import sys

    command = [sys.executable, "-c", "print('no weights here'); raise SystemExit(3)"]
    with pytest.raises(ServerFailed, match=r"(?s)code 3.*no weights here"), launch_server(command, free_port()):
        pass


def test_a_command_that_does_not_exist_is_reported():
    with pytest.raises(ServerFailed, match="cannot start"), launch_server(["/nonexistent/server"], free_port()):
        pass


@pytest.mark.parametrize(
    "options",
    [{"url": "127.0.0.1:8000"}, {"url": "http://x", "endpoint": "embeddings"}, {"url": "http://x", "connections": 0}],
)
def test_a_client_that_cannot_work_is_refused(options):
    with pytest.raises(BadInput):
        CompletionClient(**options)


def test_token_ids_for_chat_are_refused():
    client = CompletionClient("http://x", "m", endpoint="chat", connections=1)
    with pytest.raises(BadInput, match="completions endpoint"):
        client.body(LoadRequest((1, 2), 4))


def test_a_missing_http_library_is_answered_with_the_install_line():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from heliograph.serving import load\n"
        "try:\n    load.CompletionClient\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'heliograph[serving]'" in done.stdout, done.stderr
