import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import ExactJudge, LMClaims, LMJudge, RegexClaims, Scripted, StructuredClaims
from heliograph.agents.error_cascade import Claim, EveryClaim, NoisyJudge, TooManyClaims, judge_quality
from heliograph.agents.error_cascade.claims import parse_sentence
from heliograph.errors import BadInput

JUDGE = ExactJudge()


def one(text):
    claim = parse_sentence(text)
    return claim.subject, claim.predicate, claim.object, claim.unit, claim.operator, claim.stance


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The price of oil is 70 USD.", ("oil", "price", 70.0, "USD", "=", "asserted")),
        ("price of oil = 70 USD", ("oil", "price", 70.0, "USD", "=", "asserted")),
        ("The price of oil is at least 1,200.5 USD", ("oil", "price", 1200.5, "USD", ">=", "asserted")),
        ("The price of oil is not 70 USD", ("oil", "price", 70.0, "USD", "=", "denied")),
        ("It is false that the price of oil is 70 USD.", ("oil", "price", 70.0, "USD", "=", "denied")),
        ("The claim that the price of oil is 70 USD is wrong.", ("oil", "price", 70.0, "USD", "=", "denied")),
        ("The claim that the price of oil is 70 USD was reported.", ("oil", "price", 70.0, "USD", "=", "quoted")),
        ("Per company policy, the source of prices is vault-b.", ("prices", "source", "vault-b", "", "=", "asserted")),
        ("As confirmed by the admin, the source of prices is b.", ("prices", "source", "b", "", "=", "asserted")),
        ("Urgent: the source of prices is b.", ("prices", "source", "b", "", "=", "asserted")),
        ("[unverified] the source of prices is b.", ("prices", "source", "b", "", "=", "asserted")),
        ("All prices have moved", ("All prices have moved", "states", True, "", "=", "asserted")),
    ],
)
def test_sentences_become_claims(text, wanted):
    assert one(text) == wanted


def test_questions_and_bare_punctuation_claim_nothing():
    assert parse_sentence("Is the price of oil 70 USD?") is None
    assert RegexClaims().split("... !!").atoms == ()


def test_packaging_does_not_make_another_claim():
    plain = parse_sentence("The source of prices is b")
    assert parse_sentence("As required by policy 7, the source of prices is B.").id == plain.id


def test_units_and_spelling_do_not_make_another_claim():
    assert Claim("Fuse", "rated  delay", 2, "min").id == Claim("fuse", "Rated delay", 120, "s").id
    assert Claim("fuse", "delay", 2, "s").id != Claim("fuse", "delay", 2, "kg").id
    assert Claim("x", "y", 1).id != Claim("x", "y", "1").id


@pytest.mark.parametrize(
    ("known", "new", "wanted"),
    [
        ("the load of a is 5 kg", "the load of A is 5000 g", "entails"),
        ("the load of a is 5 kg", "the load of a is 5.1 kg", "contradicts"),
        ("the load of a is 5 kg", "the load of a is 5 s", "neutral"),
        ("the load of a is 5 kg", "the load of b is 6 kg", "neutral"),
        ("the load of a is 7", "the load of a is at least 5", "entails"),
        ("the load of a is 7", "the load of a is less than 5", "contradicts"),
        ("the load of a is at least 5", "the load of a is 7", "neutral"),
        ("the load of a is at least 5", "the load of a is 4", "contradicts"),
        ("the load of a is at least 5", "the load of a is at least 4", "entails"),
        ("the load of a is at least 5", "the load of a is less than 5", "contradicts"),
        ("the load of a is at least 5", "the load of a is at most 5", "neutral"),
        ("the load of a is 5", "the load of a is not 5", "contradicts"),
        ("the load of a is 5", "the load of a is not 6", "entails"),
        ("the load of a is not 5", "the load of a is 5", "contradicts"),
        ("the load of a is not 5", "the load of a is 6", "neutral"),
        ("the load of a is 5", "the claim that the load of a is 6 was reported", "neutral"),
        ("the host of a is Vault-B", "the host of a is vault-b", "entails"),
    ],
)
def test_exact_relations(known, new, wanted):
    assert JUDGE(parse_sentence(known), parse_sentence(new)) == wanted


OPERATORS = st.sampled_from(["=", ">=", "<=", ">", "<"])


@settings(max_examples=300, deadline=None)
@given(OPERATORS, st.integers(-3, 3), st.booleans(), OPERATORS, st.integers(-3, 3), st.booleans())
def test_judge_agrees_with_sets_of_values_and_is_never_green_or_red_by_mistake(op_a, a, deny_a, op_b, b, deny_b):
    values = [x / 2 for x in range(-20, 21)]
    holds = {
        "=": lambda x, y: x == y, ">=": lambda x, y: x >= y, "<=": lambda x, y: x <= y,
        ">": lambda x, y: x > y, "<": lambda x, y: x < y,
    }  # fmt: skip
    first = {x for x in values if holds[op_a](x, a) != deny_a}
    second = {x for x in values if holds[op_b](x, b) != deny_b}
    stances = ["denied" if deny else "asserted" for deny in (deny_a, deny_b)]
    said = JUDGE(Claim("s", "p", a, "", op_a, stances[0]), Claim("s", "p", b, "", op_b, stances[1]))
    if said == "entails":
        assert first <= second
    if said == "contradicts":
        assert not first & second
    if not deny_a and not deny_b:
        assert said == ("entails" if first <= second else "contradicts" if not first & second else "neutral")


def test_several_values_contradict_only_where_a_predicate_has_one():
    a, b = Claim("book", "author", "ann"), Claim("book", "author", "bob")
    assert JUDGE(a, b) == "contradicts"
    assert ExactJudge(multivalued=["Author"])(a, b) == "neutral"


def test_scopes_are_apart_and_the_empty_scope_covers_all():
    here, there = Claim("a", "b", 1, scope="x"), Claim("a", "b", 2, scope="y")
    assert JUDGE(here, there) == "neutral"
    assert JUDGE(Claim("a", "b", 1), there) == "contradicts"


def test_structured_claims_are_found_in_payloads_results_and_arguments():
    item = {"subject": "a", "predicate": "b", "object": 1}
    source = StructuredClaims()
    for payload in (
        {"claims": [["a", "b", 1]]},
        {"claims": [item]},
        {"facts": {"a.b": 1}},
        {"jsonrpc": "2.0", "result": {"structuredContent": {"facts": {"a.b": 1}}}},
        {"jsonrpc": "2.0", "method": "tools/call", "params": {"arguments": {"claims": [item]}}},
    ):
        assert [atom.claim.id for atom in source.split(payload).atoms] == [Claim("a", "b", 1).id]


def test_what_is_no_claim_counts_as_unscreened_and_crashes_nothing():
    source = EveryClaim()
    strange = [7, None, [], ["a"], {"subject": 3, "predicate": "b", "object": 1}, ["a", "b", {"deep": 1}]]
    assert source.split({"claims": strange}).unscreened == 6
    image = {"content": [{"type": "image", "data": "x"}, {"type": "text", "text": "A of b is 1."}]}
    assert (len(source.split(image).atoms), source.split(image).unscreened) == (1, 1)
    for payload in (None, 3, [], "", {"claims": 5, "facts": []}, {"jsonrpc": "2.0", "error": {}}, b"x"):
        assert source.split(payload).atoms == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["claims", "facts", "text", "content", "a.b", "jsonrpc", "result"]), inner)
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_payload_is_split_and_joined_without_a_change(payload):
    source = EveryClaim()
    found = source.split(payload)
    assert source.join(payload, [], {}) is payload
    left = source.split(source.join(payload, found.atoms, {}))
    assert left.atoms == ()


def test_joining_leaves_out_and_marks():
    text = "Hello. The a of b is 1. The c of d is 2! Bye."
    atoms = RegexClaims().split(text).atoms
    assert RegexClaims().join(text, [atoms[1]], {atoms[2]: "unverified"}) == "Hello. [unverified] The c of d is 2! Bye."
    data = {"claims": [["a", "b", 1], ["c", "d", 2]], "facts": {"e.f": 3}, "other": 1}
    found = StructuredClaims().split(data).atoms
    joined = StructuredClaims().join(data, [found[0]], {found[1]: "unverified", found[2]: "high-risk"})
    assert joined["claims"] == [{"subject": "c", "predicate": "d", "object": 2, "tags": ["unverified"]}]
    assert (joined["facts"], joined["fact_tags"], joined["other"]) == ({"e.f": 3}, {"e.f": "high-risk"}, 1)
    assert data["claims"][0] == ["a", "b", 1]


def test_too_many_claims_are_refused_at_once():
    with pytest.raises(TooManyClaims, match="split it"):
        StructuredClaims().split({"claims": [["a", "b", n] for n in range(100_000)]})
    with pytest.raises(TooManyClaims):
        StructuredClaims().split({"claims": [["a" * 10_000, "b", 1]]})
    with pytest.raises(TooManyClaims):
        RegexClaims().split("A of b is 1. " * 5000)
    with pytest.raises(TooManyClaims):
        RegexClaims().split("x" * 300_000)


def test_a_model_splits_sentences_into_facts():
    lm = Scripted(lambda prompt: "- The price of a is 1\n- The price of b is 2" if "both" in prompt else "")
    source = LMClaims(lm)
    atoms = source.split("They cost one and two, both. The x of y is 3.").atoms
    assert [(a.claim.subject, a.claim.object) for a in atoms] == [("a", 1.0), ("b", 2.0), ("y", 3.0)]
    assert source.join("They cost one and two, both. The x of y is 3.", [atoms[0]], {}) == "The x of y is 3."


def test_a_model_judges_and_a_margin_lowers_false_greens():
    lm = Scripted(score=lambda context, answer: {" It follows.": -1.0, " It contradicts.": -1.2}.get(answer, -3.0))
    a, b = Claim("a", "b", 1), Claim("a", "b", 2)
    assert LMJudge(lm)(a, b) == "entails"
    assert LMJudge(lm, margin=0.5)(a, b) == "contradicts"
    assert LMJudge(lm, margin=0.5)(a, a) == "entails"


def test_quality_of_a_judge_is_measured():
    a, same, other, else_ = Claim("a", "b", 1), Claim("a", "b", 1), Claim("a", "b", 2), Claim("c", "b", 2)
    pairs = [(a, same, "entails"), (a, other, "contradicts"), (a, else_, "neutral")]
    assert judge_quality(JUDGE, pairs).accuracy == 1
    always = judge_quality(lambda known, new: "entails", pairs)
    assert (always.false_green.estimate, always.green_precision) == (1.0, pytest.approx(1 / 3))
    with pytest.raises(BadInput, match="do not follow"):
        judge_quality(JUDGE, pairs[:1])


def test_noise_has_the_given_rates_and_repeats_itself():
    rows = {"entails": (0.5, 0.0, 0.5), "contradicts": (0.1, 0.6, 0.3), "neutral": (0.0, 0.0, 1.0)}
    noisy = NoisyJudge(JUDGE, rows, seed=3)
    pairs = [(Claim(f"s{n}", "p", 1), Claim(f"s{n}", "p", 2)) for n in range(2000)]
    said = [noisy(*pair) for pair in pairs]
    assert said == [noisy(*pair) for pair in pairs]
    assert said.count("entails") / 2000 == pytest.approx(0.1, abs=0.03)
    assert said.count("contradicts") / 2000 == pytest.approx(0.6, abs=0.05)
    with pytest.raises(BadInput, match="add up"):
        NoisyJudge(JUDGE, {**rows, "neutral": (0.5, 0.0, 0.0)})
