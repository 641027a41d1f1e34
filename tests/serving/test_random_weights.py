"""A shape alone is enough to serve and to measure speed."""

import json

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.lm.core.load import load_model
from heliograph.lm.core.tokens import NumberTokenizer
from heliograph.serving.core.run_server import ServeOptions, bind, serve_model

from .test_serve_command import served

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE))
    return path


def test_a_folder_and_its_config_give_the_same_model(config):
    one, other = (load_model(path, random_weights=True, layers=2) for path in (config, config.parent))
    assert one.config.layers == 2
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.decoder.embedding.weight, other.decoder.embedding.weight)
    assert one.tokenizer.encode("7 300 299 A") == [7, *b"300", 299, *b"A"]


def test_numbers_come_back_as_texts():
    numbers = NumberTokenizer(50)
    assert numbers.decode(numbers.encode("1 2 49")) == " 1 2 49"
    assert max(numbers.encode("anything at all \u00e9 99999999999")) < 50
    assert (numbers.text_of(3), numbers.text_of(None)) == ("3", "")


def test_what_has_no_shape_is_refused(tmp_path, config):
    with pytest.raises(BadInput, match=r"config\.json"):
        load_model(tmp_path / "nowhere", random_weights=True)
    config.write_text("[1]")
    with pytest.raises(BadInput, match="an object is expected"):
        load_model(config, random_weights=True)
    options = ServeOptions(str(config), random_weights=True, roles={"mix": 2})
    with bind("127.0.0.1", 0) as listening, pytest.raises(BadInput, match="without roles"):
        serve_model(options, listening, lambda *_: None)


def test_it_is_served(config):
    import httpx

    with served(str(config), "--random-weights", model=None) as (url, _):
        asked = {"model": "random", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=asked).json()
    assert answer["usage"] == answer["usage"] | {"prompt_tokens": 3, "completion_tokens": 4}
    assert len(answer["choices"][0]["text"].split()) == 4
