import json

import pytest

from heliograph.errors import BadInput
from heliograph.workload import read_shape
from tests.workload.test_shape import GEMMA3, SMOLLM2


def without(*names, **changes):
    return {key: value for key, value in {**SMOLLM2, **changes}.items() if key not in names}


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(name):
    with pytest.raises(BadInput, match=f"lacks {name}"):
        read_shape(without(name))


@pytest.mark.parametrize("value", ["12", -1, 2.5, True])
def test_a_size_that_is_no_whole_number_is_refused(value):
    with pytest.raises(BadInput, match="num_hidden_layers is"):
        read_shape({**SMOLLM2, "num_hidden_layers": value})


def test_key_heads_that_do_not_divide_are_refused():
    with pytest.raises(BadInput, match="2 key heads do not divide 9 heads"):
        read_shape({**SMOLLM2, "num_key_value_heads": 2})


def test_nested_text_configurations_and_vision_towers_are_found():
    shape = read_shape({"model_type": "qwen3_vl", "text_config": SMOLLM2, "vision_config": {"depth": 2}})
    assert shape.vision
    assert shape.hidden == 576
    assert shape.vision_parameters == 0


def test_an_unknown_model_type_is_marked_and_never_taken_for_grouped_attention():
    shape = read_shape({**SMOLLM2, "model_type": "never_seen"})
    assert shape.attention_class == "unknown"
    assert "never_seen" in shape.unknowns[0]
    assert read_shape(SMOLLM2).unknowns == ()


def test_an_unknown_layer_type_makes_the_attention_unknown_once():
    shape = read_shape({**SMOLLM2, "layer_types": ["holographic_attention"] * 30})
    assert shape.attention_class == "unknown"
    assert len(shape.unknowns) == 1


def test_layer_types_must_cover_the_layers():
    with pytest.raises(BadInput, match="3 entries for 30 layers"):
        read_shape({**SMOLLM2, "layer_types": ["full_attention"] * 3})


def test_sliding_layers_without_a_window_are_refused():
    with pytest.raises(BadInput, match="no sliding_window"):
        read_shape({**SMOLLM2, "layer_types": ["sliding_attention"] * 30})


def test_windows_follow_each_familys_pattern():
    def kinds(**config):
        return "".join("w" if layer.attention.window else "f" for layer in read_shape(config).layers)

    assert kinds(**GEMMA3) == "wwwwwf" * 3
    base = {**SMOLLM2, "num_hidden_layers": 6, "sliding_window": 64}
    assert kinds(**{**base, "model_type": "gpt_oss"}) == "wf" * 3
    assert kinds(**{**base, "model_type": "mistral"}) == "w" * 6
    assert kinds(**{**base, "model_type": "qwen2", "use_sliding_window": False}) == "f" * 6
    assert kinds(**{**base, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}) == "ffffww"


def test_experts_stand_where_the_configuration_puts_them():
    def sparse(**extra):
        moe = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hidden_layers": 6}
        shape = read_shape({**SMOLLM2, "model_type": "deepseek_v3", **moe, **extra})
        return "".join("s" if layer.moe else "d" for layer in shape.layers)

    assert sparse(first_k_dense_replace=3) == "dddsss"
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[3]) == "dsddds"
    assert sparse(mlp_layer_types=["dense", "sparse"] * 3) == "dsdsds"


def test_experts_without_their_number_a_token_are_refused():
    with pytest.raises(BadInput, match="no num_experts_per_tok"):
        read_shape({**SMOLLM2, "n_routed_experts": 8})


def test_a_latent_without_its_head_size_is_refused():
    with pytest.raises(BadInput, match="qk_nope_head_dim"):
        read_shape({**SMOLLM2, "model_type": "deepseek_v3", "kv_lora_rank": 64})


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.125),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}, 4.0),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.0),
    ],
)
def test_bits_of_quantised_weights(how, bits):
    assert read_shape({**SMOLLM2, "quantization_config": how}).weights.bits == bits


def test_a_quantisation_without_bits_is_marked():
    shape = read_shape({**SMOLLM2, "quantization_config": {"quant_method": "novel"}})
    assert any("novel" in text for text in shape.unknowns)


def test_encoder_decoders_are_refused():
    with pytest.raises(BadInput, match="encoder-decoder"):
        read_shape({**SMOLLM2, "is_encoder_decoder": True})


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ("[]", "holds list"), (None, "cannot read")])
def test_files_that_are_no_configuration_are_refused(tmp_path, text, reason):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=reason):
        read_shape(path)


def test_a_folder_stands_for_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    assert read_shape(tmp_path) == read_shape(SMOLLM2)
