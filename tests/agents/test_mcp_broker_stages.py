import asyncio
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import AuditLog, Chain, Envelope, Rejected
from heliograph.agents.core.audit import verify
from heliograph.agents.core.identity import IdentityError, Principal
from heliograph.agents.core.interceptor import interceptor, transparency_faults
from heliograph.agents.core.stages import build_stage
from heliograph.agents.mcp_broker import (
    AccessControl,
    AuditStage,
    CircuitBreaker,
    ContextCarrier,
    IdempotentReplay,
    RateLimit,
    ResponseSanitizer,
    TokenIdentity,
    ToolCatalog,
    verify_context,
)
from heliograph.agents.mcp_broker.access import ArgumentTest, Rule
from heliograph.agents.mcp_broker.context import CONTEXT_KEY
from heliograph.agents.mcp_broker.rate import parse_rate
from heliograph.agents.mcp_broker.replay import IDEMPOTENCY_KEY
from heliograph.agents.mcp_broker.sanitize import RecordRule
from heliograph.agents.mcp_broker.tokens import TOKEN_KEY, ReloadingKeys, caller_of
from heliograph.checks.agents.mcp_broker_parts.exact import reference_decision
from heliograph.checks.agents.mcp_broker_parts.isolation import AUDIENCE, ISSUER, KeyPair
from heliograph.clock import VirtualClock, run_virtual
from heliograph.errors import BadInput

KEYS = KeyPair()


def message(method="tools/call", meta=None, tenant="a", sender="ann", **params):
    if method == "tools/call":
        params = {"name": "crm.get", "arguments": {}, **params}
    body = {**params, "_meta": meta} if meta else params
    payload = {"jsonrpc": "2.0", "id": 1, "method": method, "params": body}
    return Envelope(topic="m", kind="request", sender=sender, tenant=tenant, payload=payload)


def reply(result):
    async def handle(env):
        handle.seen.append(env)
        return env.answer({"jsonrpc": "2.0", "id": env.payload["id"], "result": result})

    handle.seen = []
    return handle


def through(stages, env, result=None):
    handle = reply({"content": []} if result is None else result)
    return asyncio.run(Chain(stages if isinstance(stages, list) else [stages])(env, handle)), handle.seen


def refusal(stages, env, result=None):
    with pytest.raises(Rejected) as caught:
        through(stages, env, result)
    return caught.value


# identity


def test_a_token_in_the_message_names_the_caller_and_does_not_go_on():
    env = message(meta={TOKEN_KEY: KEYS.token("acme"), "kept": 1}, tenant="", sender="claims-to-be-root")
    _, seen = through(TokenIdentity(KEYS.verifier()), env)
    assert (seen[0].tenant, seen[0].sender) == ("acme", "agent-acme")
    assert seen[0].payload["params"]["_meta"] == {"kept": 1}


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (lambda: "x", "token"),
        (lambda: KEYS.token("a", exp=time.time() - 900), "expired"),
        (lambda: KEYS.token("a", aud="https://other"), "audience"),
        (lambda: KeyPair(7).token("a"), "token"),
        (lambda: None, "anonymous"),
    ],
)
def test_without_a_good_token_a_request_is_refused_with_a_reason(token, reason):
    given_token = token()
    env = message(meta={TOKEN_KEY: given_token} if given_token else None)
    found = refusal(TokenIdentity(KEYS.verifier()), env)
    assert (found.code, found.data["reason"]) == (-32600, reason)


def test_a_token_is_checked_again_on_every_request():
    class Once:
        calls = 0

        def verify(self, token):
            self.calls += 1
            if self.calls > 1:
                raise IdentityError("the token has expired", "expired")
            return Principal("ann", "a")

    stage = TokenIdentity(Once())
    through(stage, message(meta={TOKEN_KEY: "t"}))
    assert refusal(stage, message(meta={TOKEN_KEY: "t"})).data["reason"] == "expired"


def test_tokens_in_messages_are_refused_where_nobody_can_check_them():
    assert refusal(TokenIdentity(anonymous="allow"), message(meta={TOKEN_KEY: "t"})).data["reason"] == "token"


def test_a_caller_without_a_tenant_is_refused_where_one_is_needed():
    env = message(meta={TOKEN_KEY: KEYS.token("a", tenant_id=None)})
    assert refusal(TokenIdentity(KEYS.verifier(), require_tenant=True), env).data["reason"] == "tenant"


def test_inner_stages_see_roles_and_forget_them_afterwards():
    seen = []

    @interceptor("look")
    async def look(env, call_next):
        seen.append(caller_of(env))
        return await call_next(env)

    through([TokenIdentity(KEYS.verifier()), look], message(meta={TOKEN_KEY: KEYS.token("a")}))
    assert seen[0].roles == {"agent"}
    assert caller_of(message()).roles == frozenset()


def test_new_keys_are_read_once_an_unknown_key_id_comes(tmp_path):
    path, clock, new = tmp_path / "jwks.json", VirtualClock(), KeyPair(3)
    path.write_text(json.dumps(KEYS.jwks))
    verifier = ReloadingKeys(path, audience=AUDIENCE, issuer=ISSUER, least_s=10, clock=clock)
    path.write_text(json.dumps({"keys": [{**new.jwks["keys"][0], "kid": "k2"}]}))
    with pytest.raises(IdentityError):
        verifier.verify(new.token("a", kid="k2"))
    clock.sleep(11)
    assert verifier.verify(new.token("a", kid="k2")).tenant == "a"
    path.write_text("half a file")
    clock.sleep(11)
    with pytest.raises(IdentityError):
        verifier.verify(new.token("a", kid="k9"))
    assert verifier.verify(new.token("a", kid="k2")).tenant == "a"


# access


def test_nothing_is_allowed_without_a_rule():
    assert refusal(AccessControl([]), message()).code == -32010
    assert refusal(AccessControl([]), message("prompts/get", name="p")).code == -32010
    assert refusal(AccessControl([]), message("resources/read", uri="file:///x")).code == -32010


def test_denying_wins_whatever_the_order():
    allow, deny = Rule("allow", tool="*"), Rule("deny", tool="crm.*")
    for rules in ([allow, deny], [deny, allow]):
        refusal(AccessControl(rules), message())
        through(AccessControl(rules), message(name="mail.send"))


words = st.sampled_from(["a", "b", "*"])
rules = st.lists(
    st.builds(
        Rule,
        effect=st.sampled_from(["allow", "deny"]),
        tool=st.sampled_from(["*", "crm.*", "crm.?et", "mail.send"]),
        tenant=words,
        role=words,
        subject=words,
    ),
    max_size=5,
)


@given(rules, st.sampled_from("ab"), st.sampled_from("ab"), st.frozensets(st.sampled_from("ab")))
@settings(deadline=None)
def test_decisions_are_those_of_the_reference(some_rules, subject, tenant, roles):
    who = Principal(subject, tenant, roles=roles)
    for tool in ("crm.get", "crm.set", "mail.send"):
        decided = AccessControl(some_rules).decide(who, "tool", tool)[0]
        assert decided == reference_decision(some_rules, who, tool)


def test_arguments_decide_in_calls():
    tests = [ArgumentTest("/to", matches=r".*@acme\.example"), ArgumentTest("/n/0", one_of=[1, 2])]
    control = AccessControl([Rule("allow", tool="send", arguments=tests)])
    through(control, message(name="send", arguments={"to": "x@acme.example", "n": [2]}))
    for arguments in ({"to": "x@acme.example.evil", "n": [2]}, {"to": "x@acme.example", "n": [True]}, {"n": [1]}):
        refusal(control, message(name="send", arguments=arguments))


def test_lists_show_what_their_reader_may_use_and_nothing_else():
    catalog = ToolCatalog()
    control = AccessControl([Rule("allow", tool="*", access="read"), Rule("deny", tool="secret*")], catalog=catalog)
    tools = [
        {"name": "get", "annotations": {"readOnlyHint": True}},
        {"name": "set"},
        {"name": "secret_get", "annotations": {"readOnlyHint": True}},
    ]
    answer, _ = through(control, message("tools/list"), {"tools": tools, "cacheScope": "public"})
    assert [tool["name"] for tool in answer.payload["result"]["tools"]] == ["get"]
    assert answer.payload["result"]["cacheScope"] == "private"
    assert (
        refusal(control, message(name="secret_get")).reason.replace("secret_get", "nothing")
        == refusal(control, message(name="nothing")).reason
    )


def test_a_missing_scope_is_named():
    control = AccessControl([Rule("allow", tool="crm.*", scope="crm:read")])
    assert refusal(control, message()).data["scopes"] == ["crm:read"]


@pytest.mark.parametrize(
    ("rule", "where"),
    [
        ({"effect": "allow"}, r"rules\[0\]"),
        ({"effect": "allow", "tool": "*", "prompt": "*"}, r"rules\[0\]"),
        ({"effect": "allow", "tool": "*", "tol": "x"}, "tol"),
        ({"effect": "maybe", "tool": "*"}, r"\[0\]\.effect"),
        ({"effect": "deny", "tool": "*", "arguments": [{"at": "/x", "matches": "("}]}, "matches"),
        ({"effect": "deny", "tool": "*", "arguments": [{"at": "x", "equals": 1}]}, r"arguments\[0\]"),
    ],
)
def test_mistakes_in_rules_are_refused_with_their_place(rule, where):
    with pytest.raises(BadInput, match=where):
        AccessControl.from_mappings([rule])


# rate


def test_quota_is_a_callers_own_and_refusals_by_rules_cost_nothing():
    clock = VirtualClock()
    stages = [AccessControl([Rule("deny", tool="bad"), Rule("allow", tool="*")]), RateLimit("2/min", clock=clock)]
    for _ in range(5):
        refusal(stages, message(name="bad"))
    for _ in range(2):
        through(stages, message())
    found = refusal(stages, message())
    assert found.data["retry_after_ms"] == 30_000
    through(stages, message(tenant="b"))
    clock.sleep(30)
    through(stages, message())


def test_rates_are_read_and_nonsense_is_refused():
    assert parse_rate("60/min") == (1.0, 60.0)
    assert parse_rate("5/s burst 20") == (5.0, 20.0)
    for text in ("5", "x/s", "0/s", "5/day", "5/s burst 0", "nan/s"):
        with pytest.raises(BadInput, match="60/min"):
            parse_rate(text)


# replay


def test_a_call_with_a_key_runs_once_and_the_answer_has_the_new_id():
    async def scenario():
        stage, handle = IdempotentReplay(clock=VirtualClock()), reply({"content": [], "n": 1})
        first = message(meta={IDEMPOTENCY_KEY: "k"})
        second = first.replace(payload={**first.payload, "id": 2})
        both = await asyncio.gather(stage(first, handle), stage(second, handle))
        return both, handle.seen

    both, seen = asyncio.run(scenario())
    assert len(seen) == 1
    assert [answer.payload["id"] for answer in both] == [1, 2]
    assert "_meta" not in seen[0].payload["params"] or IDEMPOTENCY_KEY not in seen[0].payload["params"]["_meta"]


def test_keys_belong_to_their_caller_and_to_their_arguments():
    async def scenario():
        stage, handle = IdempotentReplay(clock=VirtualClock()), reply({"content": []})
        await stage(message(meta={IDEMPOTENCY_KEY: "k"}), handle)
        await stage(message(meta={IDEMPOTENCY_KEY: "k"}, tenant="b"), handle)
        with pytest.raises(Rejected, match="other arguments"):
            await stage(message(meta={IDEMPOTENCY_KEY: "k"}, arguments={"x": 1}), handle)
        return len(handle.seen)

    assert asyncio.run(scenario()) == 2


def test_failures_are_not_kept_and_old_answers_are_forgotten():
    async def scenario():
        clock = VirtualClock()
        stage, bad, good = IdempotentReplay(60, clock=clock), reply({"isError": True}), reply({"content": []})
        env = message(meta={IDEMPOTENCY_KEY: "k"})
        await stage(env, bad)
        await stage(env, good)
        await stage(env, good)
        clock.sleep(61)
        await stage(env, good)
        return len(bad.seen), len(good.seen)

    assert asyncio.run(scenario()) == (1, 2)


# breaker


def test_the_breaker_opens_after_five_failures_and_lets_one_probe_through():
    failing = {"code": -32001, "message": "late"}

    async def fail(env):
        return env.answer({"jsonrpc": "2.0", "id": 1, "error": failing}, kind="error")

    async def scenario():
        clock, good = VirtualClock(), reply({"content": []})
        breaker = CircuitBreaker(clock=clock)
        for _ in range(5):
            await breaker(message(), fail)
        states = [breaker.state("crm.get"), breaker.state("other")]
        with pytest.raises(Rejected) as caught:
            await breaker(message(), good)
        clock.sleep(30)
        states.append(breaker.state("crm.get"))
        await breaker(message(), fail)
        states.append(breaker.state("crm.get"))
        clock.sleep(30)
        await breaker(message(), good)
        return [*states, breaker.state("crm.get")], caught.value.data

    states, data = asyncio.run(scenario())
    assert states == ["open", "closed", "half_open", "open", "closed"]
    assert data["retry_after_ms"] == 30_000


def test_failures_far_apart_and_a_tools_own_errors_do_not_open_it():
    async def scenario():
        clock = VirtualClock()
        breaker = CircuitBreaker(clock=clock)

        async def fail(env):
            return env.answer({"jsonrpc": "2.0", "id": 1, "error": {"code": -32001, "message": "m"}}, kind="error")

        for _ in range(8):
            await breaker(message(), fail)
            await breaker(message(), reply({"isError": True, "content": []}))
            clock.sleep(10)
        return breaker.state("crm.get")

    assert asyncio.run(scenario()) == "closed"


# sanitiser

ITEMS = {"items": [{"tenant_id": "a", "v": 1}, {"tenant_id": "b", "v": 2}, {"v": 3}, "x"]}
OWN = {"items": [{"tenant_id": "a", "v": 1}]}


def sanitizer(**options):
    return ResponseSanitizer([RecordRule("/items", "/tenant_id", tool="crm.*")], **options)


def test_records_of_others_and_of_nobody_are_left_out_in_both_forms():
    result = {"content": [{"type": "text", "text": json.dumps(ITEMS)}], "structuredContent": ITEMS}
    stage = sanitizer()
    answer, _ = through(stage, message(), result)
    cleaned = answer.payload["result"]
    assert cleaned["structuredContent"] == json.loads(cleaned["content"][0]["text"]) == OWN
    assert stage.counts.records == 6


@pytest.mark.parametrize(
    "text", ["tenant b has v=2", json.dumps({"rows": ITEMS["items"]}), json.dumps(ITEMS["items"]), "{"]
)
def test_what_cannot_be_checked_is_withheld(text):
    for failed in (False, True):
        result = {"content": [{"type": "text", "text": text}], "isError": failed}
        answer, _ = through(sanitizer(), message(), result)
        assert answer.payload["result"]["content"][0]["text"].startswith("[withheld")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["items", "tenant_id", "v"]), x),
        max_leaves=8,
    )
)
@settings(deadline=None, max_examples=60)
def test_no_shape_of_answer_lets_a_foreign_record_through(shape):
    document = {"items": [{"tenant_id": "b", "v": "FOREIGN"}, shape]}
    for carrier in (document, {"items": {"tenant_id": "b", "v": "FOREIGN"}, "x": shape}):
        result = {"content": [{"type": "text", "text": json.dumps(carrier)}], "structuredContent": carrier}
        answer, _ = through(sanitizer(), message(), result)
        assert "FOREIGN" not in json.dumps(answer.payload)


def test_what_the_sdk_wraps_as_result_is_cleaned_inside():
    for inner, outer in ((json.dumps(ITEMS), json.dumps(OWN)), (ITEMS, OWN)):
        answer, _ = through(sanitizer(), message(), {"content": [], "structuredContent": {"result": inner}})
        assert answer.payload["result"]["structuredContent"] == {"result": outer}


def test_a_structure_of_another_shape_is_refused():
    for shape in ({"rows": ITEMS["items"]}, {"result": "b has v=2"}, [ITEMS]):
        found = refusal(sanitizer(), message(), {"content": [], "structuredContent": shape})
        assert found.data["reason"] == "withheld"


def test_a_caller_without_a_tenant_owns_nothing():
    mine = {"items": [{"tenant_id": "", "v": 1}]}
    answer, _ = through(sanitizer(), message(tenant=""), {"content": [], "structuredContent": mine})
    assert answer.payload["result"]["structuredContent"] == {"items": []}


def test_resources_are_cleaned_too_and_nested_lists_are_reached():
    stage = ResponseSanitizer([RecordRule("/groups/*/items", "/owner/id", resource="crm://*")])
    text = json.dumps({"groups": [{"items": [{"owner": {"id": "a"}}, {"owner": {"id": "b"}}]}, {"items": []}]})
    result = {"contents": [{"uri": "crm://x", "text": text}]}
    answer, _ = through(stage, message("resources/read", uri="crm://x"), result)
    kept = json.loads(answer.payload["result"]["contents"][0]["text"])
    assert kept == {"groups": [{"items": [{"owner": {"id": "a"}}]}, {"items": []}]}


def test_secrets_are_removed_wherever_they_stand():
    key = "AKIA" + "A" * 16
    result = {"content": [{"type": "text", "text": f"use {key} now"}], "structuredContent": {"deep": [{key: key}]}}
    answer, _ = through(ResponseSanitizer(), message(), result)
    assert key not in json.dumps(answer.payload)


def test_long_text_is_cut_with_a_mark_and_long_structures_are_refused():
    stage = ResponseSanitizer(max_bytes=10)
    answer, _ = through(stage, message(), {"content": [{"type": "text", "text": "é" * 20}]})
    assert answer.payload["result"]["content"][0]["text"].startswith("ééééé\n[cut: 40 bytes")
    assert refusal(stage, message(), {"content": [], "structuredContent": {"x": "y" * 20}}).code == -32004


def test_answers_that_break_their_own_schema_are_refused():
    catalog = ToolCatalog()
    catalog.learn([{"name": "crm.get", "outputSchema": {"type": "object", "required": ["id"]}}])
    stage = ResponseSanitizer(catalog=catalog)
    through(stage, message(), {"content": [], "structuredContent": {"id": 1}})
    assert refusal(stage, message(), {"content": [], "structuredContent": {}}).data["reason"] == "output_schema"


# context


def test_a_server_can_tell_the_gateways_context_from_a_callers():
    secret = b"0123456789abcdef"
    env = message(meta={CONTEXT_KEY: {"tenant": "b", "sig": "x"}})
    _, seen = through(ContextCarrier(secret), env)
    meta = seen[0].payload["params"]["_meta"]
    assert verify_context(meta, secret).tenant == "a"
    with pytest.raises(BadInput, match="not that of the gateway"):
        verify_context({CONTEXT_KEY: {**meta[CONTEXT_KEY], "tenant": "b"}}, secret)
    with pytest.raises(BadInput, match="no signed"):
        verify_context({}, secret)


# audit


def test_a_line_before_and_a_line_after_with_the_identity_that_was_found(tmp_path):
    with AuditLog(tmp_path / "a.jsonl") as log:
        stages = [AuditStage(log), TokenIdentity(KEYS.verifier())]
        through(stages, message(meta={TOKEN_KEY: KEYS.token("acme")}, arguments={"q": "private"}, tenant=""))
        refusal(stages, message())
    before, after, _, refused = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (before["tool"], before["event"], after["tenant"], after["status"]) == ("crm.get", "request", "acme", "ok")
    assert (refused["status"], refused["by"]) == ("rejected", "token_identity")
    assert "private" not in (tmp_path / "a.jsonl").read_text()
    assert verify(tmp_path / "a.jsonl").ok


def test_where_the_log_fails_only_reads_pass_under_writes(tmp_path):
    log = AuditLog(tmp_path / "a.jsonl")
    log.close()
    stage = AuditStage(log, on_failure="writes", catalog=ToolCatalog({"get*": "read"}))
    through(stage, message(name="get_it"))
    assert refusal(stage, message(name="set_it")).code == -32013
    assert refusal(AuditStage(log), message(name="get_it")).code == -32013
    assert stage.unrecorded == 3


# the whole


def test_the_stages_leave_what_is_none_of_their_business_alone():
    options = {"identity": {"anonymous": "allow"}, "send_context": False}
    messages = [message("ping"), message("logging/setLevel", level="info"), message("tools/list")]
    assert asyncio.run(transparency_faults(Chain(build_stage("broker", options)), messages)) == []


def test_by_default_nobody_gets_in():
    chain = Chain(build_stage("broker", {}))
    with pytest.raises(Rejected) as caught:
        asyncio.run(chain(message(), reply({})))
    assert caught.value.code == -32600


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"budgets": {}}, "budgets"),
        ({"budget": {"policy": "guess"}}, r"\$\.budget\.policy"),
        ({"access": [{"effect": "allow", "tol": "*"}]}, r"\$\.access\[0\]"),
        ({"rate": {"per_tool": "fast"}}, "60/min"),
        ({"context_secret": "short"}, "16 bytes"),
        ({"identity": {"jwks": "/nowhere.json", "audience": "a", "issuer": "b"}}, "nowhere"),
    ],
)
def test_options_that_are_not_understood_are_refused_with_their_place(options, where):
    with pytest.raises(BadInput, match=where):
        build_stage("broker", options)


def test_the_chain_works_in_virtual_time():
    async def scenario():
        options = {"identity": {"anonymous": "allow"}, "access": [{"effect": "allow", "tool": "*"}]}
        return await Chain(build_stage("broker", options))(message(), reply({"content": []}))

    assert run_virtual(scenario()).kind == "reply"


def test_a_first_call_that_is_given_up_leaves_its_key_free():
    async def scenario():
        stage, entered = IdempotentReplay(clock=VirtualClock()), asyncio.Event()
        env = message(meta={IDEMPOTENCY_KEY: "k"})

        async def hang(_):
            entered.set()
            await asyncio.Event().wait()

        first = asyncio.create_task(stage(env, hang))
        await entered.wait()
        second = asyncio.create_task(stage(env, hang))
        await asyncio.sleep(0)
        first.cancel()
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        again = await stage(env, reply({"content": []}))
        return outcomes, again

    (first, second), again = asyncio.run(scenario())
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, Rejected)
    assert again.kind == "reply"
