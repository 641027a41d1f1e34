"""An engine gives the tokens that a plain forward pass gives, whatever it does to the requests on the way."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliograph.clock import VirtualClock
from heliograph.errors import BadInput
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.blocks import KVManager
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.paged_attention import BlockCache, PagedAttention, PagedBatch, attend_rows
from heliograph.serving.core.request import Request, RequestState

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_end=True)
PROMPTS = ["a short one", "b", "the quick brown fox jumps over the lazy dog", "the quick brown fox sleeps", "zzz"]


def engine(model: LanguageModel, **settings: object) -> Engine:
    return Engine(model, **({"block_size": 4, "num_blocks": 64} | settings))  # type: ignore[arg-type]


def tokens(completions: Sequence[object]) -> list[tuple[int, ...]]:
    return [c.tokens for c in completions]  # type: ignore[attr-defined]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("blocks", [64, 17])
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 16])
def test_same_tokens_as_a_plain_forward_pass(
    tiny: LanguageModel, overlap: bool, blocks: int, prefix_cache: bool, chunk: int | None
) -> None:
    with engine(
        tiny, overlap=overlap, num_blocks=blocks, prefix_cache=prefix_cache, chunk_limit=chunk, max_tokens_per_step=24
    ) as served:
        plain = generate(tiny, PROMPTS, GREEDY)
        assert served.generate(PROMPTS, GREEDY) == plain
        assert served.generate(PROMPTS, GREEDY) == plain  # now with a warm prefix cache
        assert served.stats().kv_usage == 0
        served.core.kv.check()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [None, 3])
def test_layers_that_see_a_window_give_the_same_tokens(
    sliding: LanguageModel, overlap: bool, chunk: int | None
) -> None:
    plain = generate(sliding, PROMPTS, GREEDY)
    with engine(sliding, overlap=overlap, num_blocks=17, chunk_limit=chunk, max_tokens_per_step=24) as served:
        assert served.generate(PROMPTS, GREEDY) == plain
        assert served.generate(PROMPTS, GREEDY) == plain
        served.core.kv.check()


def test_a_small_pool_does_preempt(tiny: LanguageModel) -> None:
    served = engine(tiny, num_blocks=17)
    served.generate(PROMPTS, GREEDY)
    assert served.stats().preemptions > 0


def test_sampled_tokens_do_not_depend_on_the_batch(tiny: LanguageModel) -> None:
    params = [SamplingParams(max_tokens=9, temperature=0.9, top_p=0.9, seed=seed) for seed in range(len(PROMPTS))]
    plain = [generate(tiny, [prompt], own)[0] for prompt, own in zip(PROMPTS, params, strict=True)]
    for overlap in (False, True):
        with engine(tiny, num_blocks=20, overlap=overlap, chunk_limit=5) as served:
            assert tokens(served.generate(PROMPTS, params)) == tokens(plain)


def test_penalties_see_the_token_in_flight(tiny: LanguageModel) -> None:
    params = SamplingParams(max_tokens=16, temperature=0, frequency_penalty=1.5, repetition_penalty=1.3)
    with engine(tiny, overlap=True) as served:
        assert served.generate(PROMPTS, params) == generate(tiny, PROMPTS, params)


@pytest.mark.parametrize("overlap", [False, True])
def test_an_end_token_ends_the_answer_and_drops_the_step_too_many(tiny: LanguageModel, overlap: bool) -> None:
    greedy = SamplingParams(max_tokens=40, temperature=0)
    drawn = generate(tiny, PROMPTS, greedy)[0].tokens
    tiny.tokenizer.end_tokens = (drawn[3],)
    try:
        with engine(tiny, overlap=overlap) as served:
            assert served.generate(PROMPTS, greedy) == generate(tiny, PROMPTS, greedy)
            while served.has_work:
                served.step()
            assert served.stats().kv_usage == 0
            served.core.kv.check()
    finally:
        tiny.tokenizer.end_tokens = (255,)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stop_text_that_spans_tokens_ends_the_answer(tiny: LanguageModel, overlap: bool) -> None:
    text = generate(tiny, ["stop me"], GREEDY)[0].text
    params = SamplingParams(max_tokens=12, temperature=0, ignore_end=True, stop=(text[4:7],))
    with engine(tiny, overlap=overlap) as served:
        (cut,) = served.generate(["stop me"], params)
    assert (cut.text, cut.finish) == (text[: text.index(text[4:7])], "stop")


def test_a_second_request_with_the_same_beginning_computes_less(tiny: LanguageModel) -> None:
    served = engine(tiny)
    first = served.generate(["the quick brown fox jumps"], GREEDY)
    before = served.stats().prompt_tokens
    assert served.generate(["the quick brown fox jumps"], GREEDY) == first
    assert served.stats().prompt_tokens - before == 25 - 24
    assert served.stats().hit_tokens == 24


def test_an_answer_stops_where_the_cache_ends(tiny: LanguageModel) -> None:
    served = engine(tiny, num_blocks=4)
    (answer,) = served.generate(["0123456789"], SamplingParams(max_tokens=100, temperature=0, ignore_end=True))
    assert (len(answer.tokens), answer.finish) == (16 - 10 + 1, "length")


@pytest.mark.parametrize(
    ("prompt", "numbers"), [("", "empty prompt"), ("x" * 512, "512 tokens.*context is 512"), ("x" * 300, "300.*256")]
)
def test_a_prompt_that_can_never_run_is_refused_with_the_numbers(
    tiny: LanguageModel, prompt: str, numbers: str
) -> None:
    served = engine(tiny)
    with pytest.raises(BadInput, match=numbers):
        served.generate(["fine", prompt], GREEDY)
    assert not served.has_work
    assert served.generate(["fine"], GREEDY) == generate(tiny, ["fine"], GREEDY)


def test_a_duplicate_id_is_refused(tiny: LanguageModel) -> None:
    served = engine(tiny)
    served.add(served.request("a", GREEDY, request_id="one"))
    with pytest.raises(BadInput, match="'one' is being served"):
        served.add(served.request("b", GREEDY, request_id="one"))


def test_no_tokens_asked_for_is_an_empty_answer(tiny: LanguageModel) -> None:
    (answer,) = engine(tiny).generate(["a"], SamplingParams(max_tokens=0))
    assert (answer.tokens, answer.text, answer.finish) == ((), "", "length")


def test_a_token_outside_the_vocabulary_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(BadInput, match="token 256 is outside"):
        engine(tiny).generate([[1, 256]], GREEDY)


def test_an_aborted_request_frees_its_blocks_and_its_text_can_be_found(tiny: LanguageModel) -> None:
    served = engine(tiny)
    request = served.add(served.request("the quick brown fox", GREEDY))
    served.step()
    served.abort(request.id)
    assert served.stats().kv_usage == 0
    assert request.finish == "abort"
    assert served.core.kv.match(Request("other", list(b"the quick brown fox")))


def test_a_request_past_its_deadline_ends(tiny: LanguageModel) -> None:
    clock = VirtualClock()
    served = engine(tiny, clock=clock)
    request = served.add(served.request("slow", GREEDY, deadline_s=1.0))
    served.step()
    clock.sleep(2.0)
    (output,) = served.step()
    assert (output.request, output.finish, output.sample) == (request, "abort", None)


def test_a_failing_step_ends_its_requests_and_nobody_else(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    served = engine(tiny)
    request = served.add(served.request("a", GREEDY))
    with monkeypatch.context() as patch:
        patch.setattr(
            served.core.executor.decoder, "logits", lambda hidden: torch.full((len(hidden), 256), float("nan"))
        )
        with pytest.raises(BadInput, match="NaN"):
            served.step()
    assert request.finish == "error"
    assert served.generate(["b"], GREEDY) == generate(tiny, ["b"], GREEDY)
    served.core.kv.check()


def test_online_requests_go_before_offline_ones(tiny: LanguageModel) -> None:
    served = engine(tiny, max_sequences=1)
    offline = served.add(served.request("off", GREEDY, priority=1))
    online = served.add(served.request("on", GREEDY))
    served.step()
    assert (online.state, offline.state) == (RequestState.RUNNING, RequestState.WAITING)


def test_offline_work_yields_its_blocks_first(tiny: LanguageModel) -> None:
    served = engine(tiny, num_blocks=12)
    offline = served.add(served.request("offline prompt", GREEDY, priority=1))
    online = served.add(served.request("online prompt.", GREEDY))
    while served.has_work:
        served.step()
    assert offline.preemptions > 0
    assert online.preemptions == 0


def test_prompt_logprobs_are_those_of_a_plain_forward_pass(tiny: LanguageModel) -> None:
    from heliograph.lm.core.generate import score_tokens

    served = engine(tiny, chunk_limit=4)
    served.generate(["score these tokens"], GREEDY)  # warms the cache, which must not be used below
    params = SamplingParams(max_tokens=1, temperature=0)
    request = served.add(served.request("score these tokens", params, logprobs=2, prompt_logprobs=True))
    while served.has_work:
        served.step()
    found = torch.tensor([sample.logprob for sample in served.prompt_samples(request.id)])
    torch.testing.assert_close(found, score_tokens(tiny, list(b"score these tokens")), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_paged_attention_equals_attention_over_whole_sequences(compiled: bool, data: st.DataObject) -> None:
    heads, groups = data.draw(st.sampled_from([(4, 2), (3, 1), (2, 2)]))
    size = data.draw(st.integers(1, 5))
    contexts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    blocks = [-(-c // size) for c in contexts]
    order = torch.randperm(sum(blocks)).split(blocks)
    cache = BlockCache(1, sum(blocks), size, groups, 8)
    tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
    q, k, v = (torch.randn(len(contexts), n, 8) for n in (heads, groups, groups))
    wanted = []
    for row, (context, own) in enumerate(zip(contexts, order, strict=True)):
        tables[row, : len(own)] = own
        keys, values = torch.randn(2, context, groups, 8)
        keys[-1], values[-1] = k[row], v[row]
        slots = torch.tensor([own[t // size] * size + t % size for t in range(context)])
        cache.keys[0][slots[:-1]], cache.values[0][slots[:-1]] = keys[:-1], values[:-1]
        grouped = torch.nn.functional.scaled_dot_product_attention(
            q[row][:, None], keys.transpose(0, 1), values.transpose(0, 1), enable_gqa=True
        )
        wanted.append(grouped[:, 0])
    last = torch.tensor([own[(c - 1) // size] * size + (c - 1) % size for c, own in zip(contexts, order, strict=True)])
    context = torch.tensor(contexts, dtype=torch.int32)
    batch = PagedBatch(last, tables, context, (1,) * len(contexts), len(contexts))
    heard = PagedAttention(cache, batch, compiled=compiled).attend(0, q, k, v)
    torch.testing.assert_close(heard, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    again = attend_rows(q, cache.keys[0], cache.values[0], tables, context, size)
    torch.testing.assert_close(again, heard, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (14, 2, 24), (8, 1, 8), (4, 4, 128), (3, 1, 56)])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_loops_equal_plain_attention(dtype, heads, groups, width, window, threads, monkeypatch) -> None:
    monkeypatch.setattr("heliograph.lm.core.vector_numba.PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    contexts, size = [1, 16, 17, 90, 3], 16
    torch.manual_seed(heads)
    blocks = [-(-c // size) for c in contexts]
    tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
    for row, own in enumerate(torch.randperm(sum(blocks)).split(blocks)):
        tables[row, : len(own)] = own
    last = [int(tables[row, (c - 1) // size]) * size + (c - 1) % size for row, c in enumerate(contexts)]
    batch = PagedBatch(torch.tensor(last), tables, torch.tensor(contexts, dtype=torch.int32), (1,) * 5, 5)
    together = torch.randn(5, heads + 2 * groups, width).to(dtype)  # as the decoder gives them: parts of one tensor
    q, k, v = together.split([heads, groups, groups], dim=1)
    found, filled = [], []
    for compiled in (True, False):
        cache = BlockCache(1, sum(blocks), size, groups, width, dtype)
        cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(1)))
        attention = PagedAttention(cache, batch, compiled=compiled)
        assert (attention._loops is not None) == compiled
        found.append(attention.attend(0, q, k, v, window).float())
        filled.append(cache.data)
    assert torch.equal(*filled)
    near = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(*found, atol=near, rtol=near)


def test_a_width_that_vectors_do_not_divide_is_served_too() -> None:
    cache = BlockCache(1, 2, 4, 1, 12)
    batch = PagedBatch(torch.tensor([2]), torch.tensor([[0]], dtype=torch.int32), torch.tensor([3]), (1,), 1)
    attention = PagedAttention(cache, batch)
    q, k, v = torch.randn(1, 2, 12), torch.randn(1, 1, 12), torch.randn(1, 1, 12)
    assert attention._loops is None
    assert attention.attend(0, q, k, v).isfinite().all()


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_of_arrivals_and_aborts_changes_tokens_or_loses_a_block(
    tiny: LanguageModel, data: st.DataObject
) -> None:
    overlap = data.draw(st.booleans())
    served = engine(
        tiny,
        num_blocks=data.draw(st.integers(10, 30)),
        overlap=overlap,
        chunk_limit=data.draw(st.sampled_from([None, 2, 7])),
        max_tokens_per_step=data.draw(st.sampled_from([4, 16, 64])),
        max_sequences=data.draw(st.integers(1, 5)),
    )
    with served:
        live: list[Request] = []
        kept: list[Request] = []
        for _ in range(data.draw(st.integers(1, 25))):
            action = data.draw(st.sampled_from(["add", "step", "step", "abort", "preempt"]))
            if action == "add":
                text = "abcabcabc"[: data.draw(st.integers(1, 9))] + "xy"[: data.draw(st.integers(0, 2))]
                limit = data.draw(st.integers(1, 9))
                params = SamplingParams(max_tokens=limit, temperature=0, ignore_end=True)
                live.append(served.add(served.request(text, params, priority=data.draw(st.integers(0, 1)))))
                kept.append(live[-1])
            elif action == "abort" and live:
                gone = live.pop(data.draw(st.integers(0, len(live) - 1)))
                served.abort(gone.id)
            elif action == "preempt" and served.core.scheduler.running:
                served.core.scheduler.preempt(data.draw(st.sampled_from(served.core.scheduler.running)))
            else:
                served.step()
            served.core.kv.check()
        while served.has_work:
            served.step()
            served.core.kv.check()
        assert served.stats().kv_usage == 0
        for request in kept:
            if request.finish != "abort":
                plain = generate(tiny, [request.prompt], request.params)[0]
                assert tuple(request.output) == plain.tokens


def test_a_pool_counts_tokens_of_all_requests(tiny: LanguageModel) -> None:
    served = engine(tiny)
    assert isinstance(served.core.kv, KVManager)
    served.generate(PROMPTS, GREEDY)
    stats = served.stats()
    assert stats.generated_tokens == 12 * len(PROMPTS)
    assert stats.queried_tokens == sum(map(len, PROMPTS))
