import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct import (
    RULES,
    DoesNotFit,
    ServingAdvisor,
    ServingRule,
    plan_memory,
    studied_model,
    studied_models,
)
from heliograph.serving.amd_instinct.rules import EngineVersion, Setting
from heliograph.workload import DeviceSpec, LlmShape
from tests.workload.test_shape import GEMMA3, SMOLLM2

EIGHT = DeviceSpec.mi325x(8)


def plan_of(name, device=EIGHT, engine="vllm==0.14.1", **options):
    return ServingAdvisor().recommend(studied_model(name), device, engine, **options)


def test_latent_models_get_pages_of_one_token_and_no_offloading():
    for name in ("kimi_k25", "deepseek_v32"):
        plan = plan_of(name)
        assert plan.block_size == 1
        assert plan.offload_forbidden
        assert "--block-size 1" in plan.command()
        assert "offload" not in plan.command()


def test_head_counts_decide_the_vendors_kernels_and_the_degree():
    kimi, deepseek = plan_of("kimi_k25"), plan_of("deepseek_v32")
    assert (kimi.tensor_parallel, kimi.value("VLLM_ROCM_USE_AITER")) == (4, 0)
    assert (deepseek.tensor_parallel, deepseek.value("VLLM_ROCM_USE_AITER")) == (8, 1)
    assert any("8 heads a rank" in rejected.reason for rejected in kimi.rejected)


def test_overruled_rules_are_kept_with_the_winner_and_untried_alternatives_are_shown():
    winner, loser = plan_of("kimi_k25").explain("VLLM_ROCM_USE_AITER")
    assert (winner.rule, winner.overruled_by) == ("R4", "")
    assert (loser.rule, loser.overruled_by) == ("R8", "R4")
    assert "may be faster" in winner.alternative


def test_another_engine_version_leaves_rules_unverified():
    later = plan_of("kimi_k25", engine="vllm==0.30.1")
    assert not any(why.verified for why in later.why if why.rule in ("R1", "R2", "R4"))
    assert any("not verified for vllm==0.30.1" in text for text in later.unknowns)
    assert any("version of vllm is not given" in text for text in plan_of("kimi_k25", engine="vllm").unknowns)


def test_offloading_is_recommended_only_where_the_load_needs_it():
    assert plan_of("llama31_405b", concurrency=2000).offloads
    calm = plan_of("llama31_405b", concurrency=8)
    assert not calm.offloads
    assert not calm.offload_forbidden


def test_steady_latency_turns_the_optional_kernels_off_for_dense_models():
    assert plan_of("llama31_405b").value("VLLM_ROCM_USE_AITER") == 1
    assert plan_of("llama31_405b", steady=True).value("VLLM_ROCM_USE_AITER") == 0


def test_unknown_architectures_get_plain_settings_and_say_so():
    shape = LlmShape.from_config({**SMOLLM2, "model_type": "never_seen"})
    plan = ServingAdvisor().recommend(shape, DeviceSpec.mi325x(1))
    assert (plan.attention, plan.block_size, plan.value("VLLM_ROCM_USE_AITER")) == ("unknown", 16, 0)
    assert any("never_seen" in text for text in plan.unknowns)


def test_a_model_that_does_not_fit_is_refused_with_its_three_largest_consumers():
    with pytest.raises(DoesNotFit, match=r"weights .* GiB, .*activations .* GiB, cache of one sequence"):
        plan_of("llama31_405b", DeviceSpec.named("h100:1"))


def test_an_impossible_degree_is_refused():
    with pytest.raises(DoesNotFit, match="3 ranks do not divide 8 devices"):
        plan_of("llama31_405b", tensor_parallel=3)


@pytest.mark.parametrize("engine", ["", "vllm==new", "==1"])
def test_an_engine_that_cannot_be_read_is_refused(engine):
    with pytest.raises(BadInput, match=r"write it as vllm==0\.14\.1"):
        plan_of("llama31_405b", engine=engine)


def test_ones_own_rule_takes_part_and_can_win():
    mine = ServingRule(
        "X1", lambda f: True, lambda f: (Setting("flag", "block-size", 128),), "mine", "inferred", priority=99
    )
    plan = ServingAdvisor((*RULES, mine)).recommend(studied_model("kimi_k25"), EIGHT)
    assert plan.block_size == 128
    assert {why.overruled_by for why in plan.explain("block-size")} == {"", "X1"}
    with pytest.raises(BadInput, match="share an id"):
        ServingAdvisor((*RULES, RULES[0]))


@given(
    name=st.sampled_from(studied_models()),
    device=st.sampled_from(["mi325x:8", "mi300x:8", "h200:8"]),
    concurrency=st.integers(1, 4000),
    prompt=st.integers(1, 8000),
)
@settings(max_examples=25, deadline=None)
def test_every_plan_fits_its_devices_and_explains_each_setting_once(name, device, concurrency, prompt):
    try:
        plan = plan_of(name, DeviceSpec.named(device), concurrency=concurrency, prompt=prompt)
    except DoesNotFit:
        return
    memory = plan.memory
    used = memory.weight_bytes + memory.activation_bytes + memory.blocks * memory.block_size * memory.kv_bytes_per_token
    assert used <= memory.usable_bytes
    assert plan.max_concurrency(prompt + 512) >= 1
    names = [setting.name for setting in plan.settings]
    assert len(set(names)) == len(names)
    for setting in plan.settings:
        winners = [why for why in plan.explain(setting.name) if not why.overruled_by]
        assert {why.setting.value for why in winners} == {setting.value}


def test_a_windowed_model_holds_more_long_sequences_than_its_blocks_alone_would_say():
    shape = LlmShape.from_config(GEMMA3)
    plan = plan_memory(shape, DeviceSpec.named("h100:1"))
    assert plan.max_concurrency(32768) < plan.blocks * plan.block_size / 32768
    assert plan.sequence_bytes(32768) == shape.kv_bytes(32768)


def test_a_plan_is_plain_data():
    data = plan_of("kimi_k25").to_json()
    assert data["tensor_parallel"] == 4
    assert plan_of("kimi_k25").flags["tensor-parallel-size"] == 4
    assert plan_of("kimi_k25").env["VLLM_ROCM_USE_AITER"] == 0
    assert data["memory"]["blocks"] > 0


def test_versions_compare_by_number():
    assert EngineVersion.parse("vllm==0.9.2").parts < EngineVersion.parse("vllm==0.14").parts
    assert str(EngineVersion.parse("VLLM==0.14.1")) == "vllm==0.14.1"
