from __future__ import annotations

import json

import httpx2
import numpy as np
import pytest

from heliograph.agents import LM, LocalGGUF, OpenAICompatible, Scripted, StaticEmbedding
from heliograph.agents.core.lm import LMError
from heliograph.errors import BadInput, MissingData


@pytest.fixture(scope="module")
def local():
    try:
        return LocalGGUF()
    except MissingData as error:
        pytest.skip(str(error))


def test_local_model_answers_and_prefers_the_likely_candidate(local):
    assert isinstance(local, LM)
    answer = local.generate([{"role": "user", "content": "Say yes."}], max_tokens=8)
    assert answer.text
    assert 0 < answer.answer_tokens <= 8
    assert answer == local.generate([{"role": "user", "content": "Say yes."}], max_tokens=8)
    scores = local.score("The capital of France is", [" Paris", " purple"])
    assert scores.shape == (2,)
    assert scores[0] > scores[1]
    assert (scores < 0).all()


def test_local_embeddings_are_unit_vectors_and_order_does_not_matter(local):
    both = local.embed(["a cat", "stock market"])
    assert np.allclose(np.linalg.norm(both, axis=1), 1)
    assert np.allclose(both[::-1], local.embed(["stock market", "a cat"]))
    with pytest.raises(BadInput, match="empty"):
        local.embed([""])


def test_embedding_table_puts_meanings_that_are_close_closer():
    try:
        table = StaticEmbedding(64)
    except MissingData as error:
        pytest.skip(str(error))
    cat, kitten, bond = table.embed(["cat", "kitten", "government bond"])
    assert cat @ kitten > cat @ bond
    with pytest.raises(LMError, match="embeds only"):
        table.generate("x")


def test_script_gives_its_answers_in_order_then_fails():
    model = Scripted(["one two three", "b END c"])
    assert model.generate("p", max_tokens=2).text == "one two"
    assert model.generate([{"role": "user", "content": "q"}], stop=["END"]).text == "b "
    assert model.prompts == ["p", "user: q"]
    with pytest.raises(LMError, match="number 3"):
        model.generate("r")
    with pytest.raises(LMError, match="score="):
        model.score("a", ["b"])


def remote(handler):
    return OpenAICompatible("http://x/v1", "m", client=httpx2.Client(transport=httpx2.MockTransport(handler)))


def test_remote_model_speaks_the_openai_interface():
    seen = []

    def handler(request):
        body = json.loads(request.content)
        seen.append((request.url.path, body))
        if request.url.path.endswith("/embeddings"):
            rows = [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 0]}]
            return httpx2.Response(200, json={"data": rows})
        if body.get("echo"):
            found = {"text_offset": [0, 2, 4], "token_logprobs": [None, -1.0, -3.0]}
            return httpx2.Response(200, json={"choices": [{"logprobs": found}]})
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        choice = {"message": {"content": "hi"}, "finish_reason": "length"}
        return httpx2.Response(200, json={"choices": [choice], "usage": usage})

    model = remote(handler)
    answer = model.generate([{"role": "user", "content": "q"}], stop=["."], seed=4)
    assert (answer.text, answer.prompt_tokens, answer.finish) == ("hi", 3, "length")
    assert seen[0][0] == "/v1/chat/completions"
    assert seen[0][1]["stop"] == ["."]
    assert model.score("ab", ["cdef"]).tolist() == [-2.0]
    assert model.embed(["a", "b"]).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "handler",
    [
        lambda request: httpx2.Response(500, text="broken"),
        lambda request: httpx2.Response(200, text="not json"),
        lambda request: httpx2.Response(200, json={"choices": []}),
    ],
)
def test_broken_server_is_an_error_of_ours(handler):
    with pytest.raises(LMError):
        remote(handler).generate("x")
