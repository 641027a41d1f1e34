import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import Chain, Envelope, Rejected
from heliograph.agents.core.interceptor import interceptor
from heliograph.agents.mcp_broker import (
    Category,
    ErrorRecovery,
    StructuredError,
    StructuredErrors,
    ToolCall,
    ToolCatalog,
)
from heliograph.agents.mcp_broker.errors import (
    _JSONRPC,
    classify_exception,
    classify_http,
    classify_jsonrpc,
    classify_text,
    schema_hints,
)
from heliograph.agents.mcp_broker.recovery import repair_arguments
from heliograph.clock import run_virtual
from heliograph.errors import BadInput

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "mode": {"enum": ["a", "b"], "default": "a"}},
    "required": ["n", "mode"],
    "additionalProperties": False,
}


def call(**arguments):
    params = {"name": "t", "arguments": arguments}
    payload = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    return Envelope(topic="m", kind="request", payload=payload)


def stage_answer(stage, handle, env=None):
    return asyncio.run(Chain([stage, handle] if hasattr(handle, "name") else [stage])(env or call(n=1), handle))


def answering(**body):
    async def handle(env):
        return env.answer({"jsonrpc": "2.0", "id": 5, **body}, kind="error" if "error" in body else "reply")

    return handle


def raising(error):
    @interceptor("raise")
    async def fail(env, call_next):
        raise error

    return fail


def failed(**body):
    answer = stage_answer(StructuredErrors(), answering(**body))
    return StructuredError.from_result(answer.payload["result"])


@given(st.integers(-40000, 40000))
def test_every_code_has_exactly_one_category_and_unknown_ones_are_internal(code):
    found = classify_jsonrpc({"code": code, "message": "m"})
    assert found.category == _JSONRPC.get(code, (Category.INTERNAL_ERROR, ""))[0]


@pytest.mark.parametrize("status", range(400, 600))
def test_every_http_status_has_a_category(status):
    assert classify_http(status).category in set(Category)


@pytest.mark.parametrize(
    ("status", "category", "retryable"),
    [
        (400, "INVALID_INPUT", False),
        (401, "PERMISSION_DENIED", False),
        (404, "RESOURCE_NOT_FOUND", False),
        (429, "RESOURCE_EXHAUSTED", True),
        (503, "UPSTREAM_FAILURE", True),
        (500, "INTERNAL_ERROR", False),
    ],
)
def test_well_known_statuses(status, category, retryable):
    found = classify_http(status, retry_after_s=2)
    assert (found.category, found.retryable, found.retry_after_ms) == (category, retryable, 2000)


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (TimeoutError(), "UPSTREAM_FAILURE"),
        (ConnectionResetError(), "UPSTREAM_FAILURE"),
        (PermissionError(), "PERMISSION_DENIED"),
        (KeyError("x"), "RESOURCE_NOT_FOUND"),
        (ValueError("secret text"), "INVALID_INPUT"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
        (RuntimeError("secret text"), "INTERNAL_ERROR"),
    ],
)
def test_exceptions_have_categories_and_keep_their_text_to_themselves(error, category):
    found = classify_exception(error)
    assert found.category == category
    assert "secret" not in json.dumps(found.to_record())


def test_words_of_a_tool_are_read_with_their_time_to_wait():
    found = classify_text("Rate limit exceeded, please retry after 1.5 seconds")
    assert (found.category, found.retry_after_ms) == ("RESOURCE_EXHAUSTED", 1500)
    assert classify_text("something odd").category == "INTERNAL_ERROR"


records = st.builds(
    StructuredError,
    st.sampled_from(Category),
    st.text(max_size=8),
    st.text(max_size=20),
    st.booleans(),
    st.none() | st.integers(0, 10**9),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.lists(st.text(max_size=5), max_size=2).map(tuple),
    st.integers(1, 9),
    st.none() | st.integers(0, 10**6),
    st.text(max_size=8),
    st.sampled_from(["none", "possible", "committed"]),
)


@given(records)
@settings(deadline=None)
def test_a_record_reads_back_equal_from_both_forms(error):
    result = error.to_result()
    assert StructuredError.from_result(result) == error
    assert StructuredError.from_result({"content": result["content"], "isError": True}) == error
    assert "\n" not in result["content"][0]["text"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
        max_leaves=6,
    )
)
def test_foreign_records_never_raise_and_doubtful_ones_count_as_having_run(record):
    whole = {"category": "UPSTREAM_FAILURE", "attempt": record, "param_hints": record, "retry_after_ms": record}
    for serf in (record, whole):
        found = StructuredError.from_result({"isError": True, "structuredContent": {"serf": serf}, "content": []})
    assert found is not None
    assert found.side_effect == "possible"


def test_refusals_and_protocol_errors_become_results_and_keep_the_id():
    answer = stage_answer(StructuredErrors(), raising(Rejected("no", code=-32010)))
    assert answer.payload["id"] == 5
    assert answer.payload["result"]["isError"] is True
    assert StructuredError.from_result(answer.payload["result"]).category == "PERMISSION_DENIED"
    lost = failed(error={"code": -32005, "message": "gone", "data": {"unsent": True}})
    assert (lost.category, lost.retryable, lost.side_effect) == ("UPSTREAM_FAILURE", True, "none")
    late = failed(error={"code": -32001, "message": "late"})
    assert late.side_effect == "possible"


def test_missing_identity_stays_a_protocol_error():
    with pytest.raises(Rejected):
        stage_answer(StructuredErrors(), raising(Rejected("who?", code=-32600)))


def test_a_stage_that_breaks_tells_the_caller_nothing_but_a_number():
    answer = stage_answer(StructuredErrors(), raising(RuntimeError("password=hunter2")))
    assert "hunter2" not in json.dumps(answer.payload)
    assert StructuredError.from_result(answer.payload["result"]).cause_id


def test_records_of_the_server_and_successes_pass_unchanged():
    own = StructuredError(Category.RESOURCE_NOT_FOUND, "mine").to_result()
    assert stage_answer(StructuredErrors(), answering(result=own)).payload["result"] == own
    fine = {"content": [], "structuredContent": {"serf": {"category": "INTERNAL_ERROR"}}}
    assert stage_answer(StructuredErrors(), answering(result=fine)).payload["result"] == fine


def test_other_methods_are_left_alone():
    env = call().replace(payload={"jsonrpc": "2.0", "id": 5, "method": "resources/read", "params": {"uri": "x"}})
    error = {"code": -32001, "message": "late"}
    assert stage_answer(StructuredErrors(), answering(error=error), env).payload["error"] == error


def test_bad_arguments_get_hints_from_the_schema_and_reads_are_known_to_be_harmless():
    catalog = ToolCatalog({"t": "read"})
    catalog.learn([{"name": "t", "inputSchema": SCHEMA}])
    stage = StructuredErrors(catalog, alternatives={"t": ("u",)})
    answer = stage_answer(stage, answering(error={"code": -32602, "message": "m"}), call(n="1", x=2))
    found = StructuredError.from_result(answer.payload["result"])
    assert found.param_hints == {"/n": "type integer", "/x": "unknown; drop it", "/mode": 'required; default "a"'}
    assert (found.side_effect, found.alternatives) == ("none", ("u",))


def test_fitting_arguments_have_no_hints():
    assert schema_hints(SCHEMA, {"n": 1, "mode": "b"}) == {}
    assert schema_hints(SCHEMA, {"n": True, "mode": "c"}) == {"/n": "type integer", "/mode": 'one of ["a", "b"]'}


def test_repair_coerces_drops_and_fills_in():
    fixed = repair_arguments(ToolCall("t", {"n": "7", "x": 1, "s": 3}, SCHEMA), {})
    assert fixed.arguments == {"n": 7, "s": "3", "mode": "a"}
    assert schema_hints(SCHEMA, fixed.arguments) == {}


@pytest.mark.parametrize("arguments", [{"mode": "a"}, {"n": "many", "mode": "a"}, {"n": 1, "mode": "a"}])
def test_repair_never_invents_a_value(arguments):
    assert repair_arguments(ToolCall("t", arguments, SCHEMA), {}) is None


def test_repair_follows_hints_where_no_schema_is_known():
    hints = {"/n": "type integer", "/x": "unknown; drop it", "/mode": 'required; default "a"'}
    assert repair_arguments(ToolCall("t", {"n": "7", "x": 1}), hints).arguments == {"n": 7, "mode": "a"}


def run(call_, results, **options):
    sent = []

    async def send(one):
        sent.append((one, asyncio.get_running_loop().time()))
        return results.pop(0)

    async def main():
        return await ErrorRecovery(**options).run(call_, send, budget_ms=5000)

    return run_virtual(main()), sent


GOOD = {"content": []}


def error(category, **more):
    return StructuredError(category, "c", **more).to_result()


def test_a_rate_limit_is_waited_for_exactly():
    ended, sent = run(ToolCall("t"), [error(Category.RESOURCE_EXHAUSTED, retryable=True, retry_after_ms=1200), GOOD])
    assert ended.ok
    assert sent[1][1] == pytest.approx(1.2)


def test_a_wait_beyond_the_turn_is_deferred_or_done_by_another_tool():
    late = error(Category.RESOURCE_EXHAUSTED, retryable=True, retry_after_ms=60_000)
    ended, _ = run(ToolCall("t"), [late])
    assert (ended.ok, ended.last.kind) == (False, "defer")
    other = error(Category.RESOURCE_EXHAUSTED, retryable=True, retry_after_ms=60_000, alternatives=("u",))
    ended, sent = run(ToolCall("t"), [other, GOOD])
    assert ended.ok
    assert sent[1][0].tool == "u"


def test_what_has_run_is_not_sent_again_even_with_better_arguments():
    ended, sent = run(ToolCall("t", {"n": "7", "mode": "a"}, SCHEMA), [error("INVALID_INPUT", side_effect="committed")])
    assert (len(sent), ended.last.kind) == (1, "report")


@pytest.mark.parametrize("category", [Category.UPSTREAM_FAILURE, Category.INTERNAL_ERROR, Category.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("effect", ["possible", "committed"])
def test_what_may_have_run_is_not_sent_again(category, effect):
    ended, sent = run(ToolCall("t"), [error(category, retryable=True, side_effect=effect)])
    assert len(sent) == 1
    assert ended.last.kind == "report"
    ended, sent = run(ToolCall("t", repeatable=True), [error(category, retryable=True, side_effect=effect), GOOD])
    assert ended.ok


def test_permissions_are_never_tried_again():
    ended, sent = run(ToolCall("t", repeatable=True), [error(Category.PERMISSION_DENIED, retryable=True)])
    assert (len(sent), ended.last.kind) == (1, "request_grant")


def test_an_id_is_looked_up_if_exactly_one_fits():
    missing, lookups = error(Category.RESOURCE_NOT_FOUND), {"t": ("find", "id")}
    one = {"content": [], "structuredContent": {"ids": ["r1"]}}
    ended, sent = run(ToolCall("t", {"id": "report"}), [missing, one, GOOD], lookups=lookups)
    assert ended.ok
    assert (sent[1][0].arguments, sent[2][0].arguments) == ({"query": "report"}, {"id": "r1"})
    two = {"content": [{"type": "text", "text": '["r1", "r2"]'}]}
    ended, _ = run(ToolCall("t", {"id": "report"}), [missing, two], lookups=lookups)
    assert ended.last.kind == "ask"


def test_an_unknown_failure_is_tried_once_more_and_prose_is_left_to_the_model():
    ended, sent = run(ToolCall("t"), [error(Category.INTERNAL_ERROR)] * 2)
    assert (len(sent), ended.last.kind) == (2, "report")
    ended, _ = run(ToolCall("t"), [{"isError": True, "content": [{"type": "text", "text": "no"}]}])
    assert ended.last.kind == "ask"


@given(st.lists(records, min_size=6, max_size=6), st.booleans())
@settings(deadline=None, max_examples=100)
def test_recovery_ends_within_its_calls_whatever_it_is_told(errors, repeatable):
    results = [one.to_result() for one in errors]
    ended, sent = run(ToolCall("t", {"n": "1"}, SCHEMA, repeatable), results, most_calls=4, lookups={"t": ("f", "n")})
    assert not ended.ok
    assert ended.calls == len(sent) <= 5
    if not repeatable:
        again = [number for number, (one, _) in enumerate(sent) if number and one.tool == "t"]
        for number in again:
            assert (
                errors[number - 1].side_effect == "none"
                or errors[number - 1].category
                in (
                    Category.INVALID_INPUT,
                    Category.RESOURCE_NOT_FOUND,
                )
                or sent[number - 1][0].tool != "t"
            )


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(BadInput):
        ErrorRecovery(most_calls=0)
