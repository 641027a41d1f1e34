import importlib.util
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct.studied import studied_model
from heliograph.workload import AttentionShape, LayerShape, LlmShape, MoeShape
from heliograph.workload.shape import WeightFormat

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
}
FAMILIES = {
    "llama": {"num_hidden_layers": 3, "num_key_value_heads": 8},
    "qwen2": {"num_hidden_layers": 3, "num_key_value_heads": 4},
    "qwen3_moe": {"num_hidden_layers": 3},
    "mixtral": {"num_hidden_layers": 2},
    "deepseek_v2": {"num_hidden_layers": 3, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "deepseek_v3": {"num_hidden_layers": 5},
    "deepseek_v32": {"num_hidden_layers": 5},
    "minicpm3": {"num_hidden_layers": 3},
    "gpt_oss": {"num_hidden_layers": 4},
    "gemma3_text": {"num_hidden_layers": 6},
    "qwen3_next": {"num_hidden_layers": 4},
    "mimo_v2_flash": {"num_hidden_layers": 6},
    "llama4_text": {"num_hidden_layers": 4},
    "starcoder2": {"num_hidden_layers": 3},
    "falcon": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_parameters_are_those_of_the_published_implementation(kind):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    assert LlmShape.from_config(config.to_dict()).parameters == pytest.approx(counted, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("llama31_405b", 405.8, 405), ("deepseek_v32", 671, 37), ("kimi_k25", 1027, 32), ("qwen3_vl_235b", 235, 22)],
)
def test_the_studied_models_have_their_published_sizes(name, billions, active):
    shape = studied_model(name)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.03)


def test_cache_bytes_of_grouped_latent_and_hybrid_attention():
    assert LlmShape.from_config(SMOLLM2).kv_bytes_per_token() == 23_040
    gemma = LlmShape.from_config(GEMMA3)
    assert gemma.kv_bytes_per_token() == 3 * 1024
    assert gemma.kv_bytes(32768) == 32768 * 3 * 1024 + 7.5 * 2**20
    assert gemma.attention_class == "hybrid"
    assert studied_model("kimi_k25").kv_bytes_per_token() == 61 * (512 + 64) * 2


def test_grouped_heads_are_divided_then_repeated_and_a_latent_is_kept_whole():
    qwen, kimi = studied_model("qwen3_vl_235b"), studied_model("kimi_k25")
    one = qwen.kv_bytes_per_token(ranks=1)
    assert [one / qwen.kv_bytes_per_token(ranks=ranks) for ranks in (2, 4, 8)] == [2, 4, 4]
    assert kimi.kv_bytes_per_token(ranks=8) == kimi.kv_bytes_per_token()
    with pytest.raises(BadInput, match="3 ranks do not divide 64 heads"):
        qwen.kv_bytes_per_token(ranks=3)


@given(tokens=st.integers(1, 400), past=st.integers(0, 400), window=st.sampled_from([None, 1, 7, 100]))
def test_a_prefill_attends_to_what_its_tokens_would_one_by_one(tokens, past, window):
    attention = AttentionShape("gqa", 4, 2, 8, 8, window)
    shape = LlmShape("x", 32, 64, 1000, (LayerShape(attention, 64),))
    scores = sum(attention.score_flops(context) for context in range(past + 1, past + tokens + 1))
    head = shape.vocabulary * shape.hidden
    expected = 2 * (shape.active_parameters - head) * tokens + 2 * head + scores
    assert shape.prefill_flops(tokens, past) == expected


@given(length=st.integers(0, 5000))
def test_the_cache_never_shrinks_and_grows_by_its_bytes_a_token_once_windows_are_full(length):
    shape = LlmShape.from_config(GEMMA3)
    grown = shape.kv_bytes(length + 1) - shape.kv_bytes(length)
    assert grown >= shape.kv_bytes_per_token()
    assert length < 512 or grown == shape.kv_bytes_per_token()


def test_a_step_of_many_tokens_reads_all_experts_and_of_one_the_chosen_ones():
    moe = MoeShape(64, 4, 128)
    assert moe.touched(1) == pytest.approx(4)
    assert moe.touched(10_000) == pytest.approx(64)
    attention = AttentionShape("mha", 2, 2, 16, 16)
    shape = LlmShape("x", 32, 64, 100, (LayerShape(attention, moe=moe),), weights=WeightFormat(8, 16))
    assert shape.step_weight_bytes(1) < shape.step_weight_bytes(100) <= shape.weight_bytes()


def test_experts_only_formats_leave_attention_at_its_own_bits():
    kimi = studied_model("kimi_k25")
    assert kimi.weights.experts_only
    assert kimi.weights.bits == 4.5
    assert kimi.weight_bytes() > kimi.parameters * 4.5 / 8


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="key heads must divide heads"):
        AttentionShape("gqa", 9, 2, 64, 64)
    with pytest.raises(BadInput, match="6 of 4 experts"):
        MoeShape(4, 6, 8)
    with pytest.raises(BadInput, match="kv_lora_rank"):
        AttentionShape("mla", 4, 4, 8, 8)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_shapes_and_traces_import_no_torch():
    code = (
        "import heliograph.workload as w, sys; w.LlmShape, w.step_graph, w.read_trace\n"
        "w.generate_requests, w.DeviceSpec\n"
        "import heliograph.serving.amd_instinct as a; a.ServingAdvisor, a.LoadBenchmark, a.ablate_flag\n"
        "print([n for n in ('torch', 'scipy.stats', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
