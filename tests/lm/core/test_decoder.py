"""The decoder against ``transformers`` with the same weights, its cache against whole passes, and bad files."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import CachedAttention, Decoder, KVCache, apply_rope, fingerprint
from heliograph.lm.core.load import load_model
from heliograph.lm.core.masks import MaskSpec

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama, tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab={chr(33 + n): n for n in range(97)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    config_name, model_name, extra = KINDS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**SIZES, **extra)
    theirs = getattr(transformers, model_name)(config).eval()
    for weight in theirs.parameters():  # norms and biases start as constants; the test should see them
        torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, theirs


@torch.no_grad()
def test_logits_are_those_of_transformers(saved):
    folder, theirs = saved
    model = load_model(folder)
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))
    hidden = model.decoder(model.decoder.embed(tokens), torch.arange(20).expand(2, -1), CachedAttention())
    torch.testing.assert_close(model.decoder.logits(hidden), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[20], [1] * 20, [7, 1, 5, 7]])
def test_pieces_with_a_cache_give_what_the_whole_gives(saved, cuts):
    model = load_model(saved[0])
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(20).expand(2, -1)
    whole = model.decoder(model.decoder.embed(tokens), positions, CachedAttention())
    cache, parts, start = KVCache(model.fingerprint), [], 0
    for size in cuts:
        part = slice(start, start + size)
        parts.append(
            model.decoder(model.decoder.embed(tokens[:, part]), positions[:, part], CachedAttention(cache=cache))
        )
        start += size
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert len(cache) == 20
    joined = KVCache.concat([cache.slice(0, 8), cache.slice(8, 20)])
    assert all(torch.equal(a, b) for a, b in zip(joined.keys, cache.keys, strict=True))
    assert joined.nbytes == cache.nbytes == 2 * 3 * 2 * 20 * 2 * model.config.head_dim * 4


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(saved):
    model = load_model(saved[0])
    tokens = torch.randint(97, (1, 6), generator=torch.Generator().manual_seed(3))
    alone = model.decoder(model.decoder.embed(tokens), torch.arange(6)[None], CachedAttention())
    padded = torch.cat([torch.full((1, 4), 9), tokens], dim=1).expand(2, -1)
    positions = torch.cat([torch.full((1, 4), -1), torch.arange(6)[None]], dim=1).expand(2, -1)
    mask = MaskSpec(positions, positions)
    beside = model.decoder(model.decoder.embed(padded), positions.clamp(min=0), CachedAttention(mask))
    torch.testing.assert_close(beside[:1, 4:], alone, atol=1e-5, rtol=1e-4)
    assert bool(beside.isfinite().all())


@pytest.mark.parametrize("damage", ["truncated", "missing", "shape", "nan", "no weights", "architecture", "json"])
def test_folder_that_does_not_fit_is_refused(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    theirs.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no weights":
        path.unlink()
    elif damage in ("architecture", "json"):
        config = json.loads((tmp_path / "config.json").read_text())
        text = json.dumps(config | {"model_type": "mystery"}) if damage == "architecture" else "{"
        (tmp_path / "config.json").write_text(text)
    else:
        name = "model.layers.1.mlp.up_proj.weight"
        changed = {"missing": None, "shape": weights[name][:-1].clone(), "nan": weights[name] * torch.nan}[damage]
        weights.pop(name)
        save_file(weights if changed is None else weights | {name: changed}, path)
    words = {
        "truncated": "truncated or damaged",
        "missing": "up_proj.weight is missing",
        "shape": "up_proj.weight has shape",
        "nan": "up_proj.weight holds NaN",
        "no weights": "no .safetensors file",
        "architecture": "'mystery' is not built",
        "json": "no readable config.json",
    }
    with pytest.raises(BadInput, match=words[damage]):
        load_model(tmp_path)


def test_rope_turns_pairs_and_keeps_the_rest():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.arange(5).expand(2, -1)
    for interleaved in (False, True):
        spec = RopeSpec(100.0, 6, interleaved)
        turned = apply_rope(x, positions, spec)
        torch.testing.assert_close(turned[..., 6:], x[..., 6:])
        torch.testing.assert_close(turned[:, 0], x[:, 0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(turned.square().sum(-1), x.square().sum(-1), atol=1e-5, rtol=1e-5)
    # products depend on the distance alone
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    spec = RopeSpec(10_000.0, 8)
    near, far = (
        (apply_rope(q, torch.tensor([[a]]), spec) * apply_rope(k, torch.tensor([[b]]), spec)).sum()
        for a, b in ((5, 3), (45, 43))
    )
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


def test_masks_hide_later_far_and_foreign_tokens_in_both_forms():
    position = torch.tensor([[-1, 0, 1, 2, 0, 1]])
    document = torch.tensor([[0, 0, 0, 0, 1, 1]])
    spec = MaskSpec(position, position, document, document, window=2)
    dense = spec.dense()[0]
    assert dense[3].tolist() == [False, False, True, True, False, False]
    assert dense[5].tolist() == [False, False, False, False, True, True]
    predicate = spec.mask_mod()
    zero = torch.tensor(0)
    for q in range(6):
        for k in range(6):
            assert bool(predicate(zero, zero, torch.tensor(q), torch.tensor(k))) == bool(dense[q, k])


def test_fingerprint_tells_models_apart():
    config = DecoderConfig("llama", 11, 2, 8, 16, 2, 1, 4, 32, 1e-5, RopeSpec(1e4, 4))
    torch.manual_seed(0)
    first, second = Decoder(config), Decoder(config)
    assert fingerprint(first) == fingerprint(first)
    others = second, Decoder(replace(config, context=64)), copy.deepcopy(first).half()
    assert len({fingerprint(m) for m in (first, *others)}) == 4
    with pytest.raises(BadInput, match="caches of one model"):
        KVCache.concat([KVCache("a"), KVCache("b")])
    with pytest.raises(BadInput, match="outside the vocabulary"):
        second.embed(torch.tensor([11]))
    with pytest.raises(BadInput, match="do not fit"):
        replace(config, kv_heads=3)
