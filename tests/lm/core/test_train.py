"""Training learns, goes on where it was cut, and gives folders that transformers reads."""

from pathlib import Path

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.lm.core.decoder import CachedAttention
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.lm.core.save import save_model
from heliograph.lm.core.tokens import train_tokenizer
from heliograph.lm.core.train import (
    TrainingPlan,
    TrainingPoint,
    encode_documents,
    new_model,
    small_config,
    text_loss,
    train_model,
)

TEXTS = [f"the {animal} says {sound}, and {sound} says the {animal}.\n" * 3
         for animal in ("cat", "dog", "cow") for sound in ("miau", "wuff", "muh")]  # fmt: skip
PLAN = TrainingPlan(steps=30, batch=8, length=24, learning_rate=1e-2, warmup=3, evaluate_every=10)


def fresh(seed: int = 0) -> LanguageModel:
    tokenizer = train_tokenizer(TEXTS, 300)
    return new_model(small_config(tokenizer.size, layers=2, hidden=32, heads=2, context=64), tokenizer, seed=seed)


def weights(model: LanguageModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.decoder.parameters()])


def test_loss_falls_on_text_that_was_held_out() -> None:
    model = fresh()
    tokens = encode_documents(model.tokenizer, TEXTS)
    before = text_loss(model, tokens, length=24)
    points = train_model(model, tokens, PLAN, validation=tokens)
    assert [point.step for point in points] == [10, 20, 30]
    assert points[-1].validation_loss is not None
    assert points[-1].validation_loss < before / 2


def test_a_run_that_was_cut_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, cut = fresh(), fresh()
    tokens = encode_documents(whole.tokenizer, TEXTS)
    points = train_model(whole, tokens, PLAN)

    def stop(point: TrainingPoint) -> None:
        if point.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(cut, tokens, PLAN, folder=tmp_path, progress=stop)
    again = fresh(seed=5)  # its weights come from the folder
    resumed = train_model(again, tokens, PLAN, folder=tmp_path)
    assert [(p.step, p.train_loss) for p in resumed] == [(p.step, p.train_loss) for p in points]
    assert torch.equal(weights(again), weights(whole))


def test_a_folder_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    model = fresh()
    tokens = encode_documents(model.tokenizer, TEXTS)
    train_model(model, tokens, PLAN, folder=tmp_path)
    with pytest.raises(BadInput, match="another run"):
        train_model(fresh(), tokens[:-5], PLAN, folder=tmp_path)
    state = tmp_path / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(BadInput, match="damaged"):
        train_model(fresh(), tokens, PLAN, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(torch.arange(10), "too few"), (torch.full((99,), 9999), "knows"), (torch.full((99,), -1), "knows")],
)
def test_text_that_does_not_fit_is_refused(tokens: torch.Tensor, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        train_model(fresh(), tokens, PLAN)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    model = fresh()
    with pytest.raises(BadInput, match="learning rate"):
        train_model(
            model, encode_documents(model.tokenizer, TEXTS), PLAN, loss=lambda d, w: d.norm.weight.sum() * torch.inf
        )


def test_the_tokenizer_writes_every_text_and_ends_documents() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "Jürgen <|end|> 日本 \x00 the cat"
    assert tokenizer.decode(tokenizer.encode(text, special=False), special=True) == text
    assert encode_documents(tokenizer, ["cat", "dog"]).tolist().count(tokenizer.end_tokens[0]) == 2
    with pytest.raises(BadInput, match="257"):
        train_tokenizer(TEXTS, 256)


@torch.no_grad()
def test_a_saved_folder_gives_the_same_logits_here_and_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = fresh()
    train_model(model, encode_documents(model.tokenizer, TEXTS), PLAN)
    folder = save_model(model, tmp_path / "saved")
    tokens = torch.tensor([model.tokenizer.encode("the cow says")])
    hidden = model.decoder(model.decoder.embed(tokens), torch.arange(tokens.shape[1])[None], CachedAttention())
    logits = model.decoder.logits(hidden)
    again = load_model(folder)
    assert again.tokenizer.end_tokens == model.tokenizer.end_tokens
    params = SamplingParams(max_tokens=12, temperature=0)
    assert generate(again, ["the cow says"], params) == generate(model, ["the cow says"], params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(theirs(tokens).logits, logits, atol=1e-4, rtol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(folder)("the cow says")["input_ids"] == tokens[0].tolist()
    with pytest.raises(BadInput, match="exists"):
        save_model(model, folder)
