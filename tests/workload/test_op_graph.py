import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct.studied import studied_model
from heliograph.workload import LlmShape, Operator, OpGraph, TensorUse, gemms, step_graph
from tests.workload.test_shape import GEMMA3, SMOLLM2

MODELS = {name: studied_model(name) for name in ("deepseek_v32", "llama31_405b")}
MODELS |= {"smollm2": LlmShape.from_config(SMOLLM2), "gemma3": LlmShape.from_config(GEMMA3)}


@pytest.mark.parametrize("name", MODELS)
@given(context=st.integers(0, 3000), batch=st.integers(1, 9))
@settings(max_examples=10, deadline=None)
def test_a_decoding_graph_has_the_operations_of_the_shape(name, context, batch):
    shape = MODELS[name]
    graph = step_graph(shape, new_tokens=1, context=context, batch=batch)
    assert graph.flops == pytest.approx(shape.decode_flops(context + 1, batch))


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_graph_has_the_operations_of_the_shape(name):
    shape = MODELS[name]
    assert step_graph(shape, new_tokens=300, context=40).flops == pytest.approx(shape.prefill_flops(300, 40))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_the_weights_that_its_tokens_touch(name):
    shape = MODELS[name]
    read = step_graph(shape, new_tokens=1, batch=7).nbytes("weight")
    rows = 7 * shape.hidden * shape.weights.plain_bits / 8  # of the embedding
    assert read == pytest.approx(shape.step_weight_bytes(7) + rows, rel=1e-2)


def test_gemms_add_up_to_the_dense_operations():
    shape = MODELS["smollm2"]
    assert sum(gemm.flops for gemm in gemms(shape, 5)) == 2 * 5 * shape.active_parameters
    assert gemms(shape, 5)[0].flops == max(gemm.flops for gemm in gemms(shape, 5))


def test_edges_lead_from_writers_to_readers_and_every_layer_is_reached():
    graph = step_graph(MODELS["smollm2"], new_tokens=4)
    place = {operator.name: index for index, operator in enumerate(graph.operators)}
    edges = list(graph.edges())
    assert all(place[a] < place[b] for a, b in edges)
    assert {operator.name for operator in graph.operators} == {name for edge in edges for name in edge}


def test_the_roofline_falls_as_the_rates_rise():
    graph = step_graph(MODELS["smollm2"], new_tokens=1, context=100)
    assert graph.roofline_s(1e12, 1e11) > graph.roofline_s(2e12, 2e11) > 0
    with pytest.raises(BadInput, match="rates must be positive"):
        graph.roofline_s(0, 1)


def test_reading_what_nobody_wrote_is_refused():
    lonely = Operator("a", "gemm", 0, 1.0, (TensorUse("ghost", 4, "activation"),), ())
    with pytest.raises(BadInput, match="reads ghost"):
        OpGraph((lonely,))
    one = Operator("a", "gemm", 0, 1.0, (), ())
    with pytest.raises(BadInput, match="share a name"):
        OpGraph((one, one))
