"""A search finds what trying everything finds; tasks, scores and the pool of profiles on a model of two layers."""

import json

import numpy as np
import pytest
import torch

from heliograph.errors import BadInput
from heliograph.serving.kv_serve import (
    METHODS,
    CompressionController,
    CompressionPoint,
    CompressionSpace,
    ProfileSet,
    QualityEvaluator,
    SearchSettings,
    TransferContext,
    profile_search,
    retrieval_scores,
    search_points,
)
from heliograph.serving.kv_serve.quality import prompt_cache
from heliograph.serving.kv_serve.search import pareto_front, random_search
from heliograph.serving.kv_serve.space import embed
from heliograph.serving.kv_serve.tasks import TASKS, TaskSample, make_samples, read_samples
from tests.serving.core.conftest import tiny  # noqa: F401 - a fixture

SMALL = CompressionSpace(
    transform=("none", "hadamard"),
    hybrid_ratio=(0.3, 0.7),
    levels_high=(16, 12, 8),
    levels_low=(8, 4),
    codec=("bitpack", "huffman"),
)


def world(seed):
    """Candidates with made-up ratios and qualities that depend on the settings smoothly, as real ones do."""
    points, draw = list(SMALL), np.random.default_rng(seed)
    ratios, qualities = [], []
    for p in points:
        bits = np.mean(np.log2([p.key_high, p.key_low, p.value_high, p.value_low]))
        ratios.append(16 / bits * (1.15 if p.codec == "huffman" else 1.0) + 0.01 * draw.random())
        qualities.append(1.1 - 0.6 / p.key_low - 0.3 / p.value_low + 0.03 * (p.transform == "hadamard"))
    return points, ratios, qualities


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_feasible_candidate_with_few_evaluations(seed):
    points, ratios, qualities = world(seed)
    feasible = [n for n, quality in enumerate(qualities) if quality >= 0.97]
    best = max(ratios[n] for n in feasible)
    asked = []

    def evaluate(index):
        asked.append(points[index].lossy_part)
        return qualities[index]

    found = search_points(points, ratios, evaluate, SearchSettings(max_evals=30), seed=seed)
    assert found.best is not None
    assert found.best.ratio == pytest.approx(best, rel=0.01)
    assert len(asked) == len(set(asked)) <= 30 < len({p.lossy_part for p in points}) / 2


def test_a_search_that_may_try_everything_is_exhaustive():
    points, ratios, qualities = world(0)
    best = max(r for r, q in zip(ratios, qualities, strict=True) if q >= 0.97)
    settings = SearchSettings(max_evals=10**4, prune=False)
    for found in (
        search_points(points, ratios, lambda n: qualities[n], settings),
        random_search(points, ratios, lambda n: qualities[n], settings),
    ):
        assert found.stopped == "empty"
        assert found.best is not None
        assert found.best.ratio == best


def test_a_space_without_a_feasible_point_gives_none():
    points, ratios, _ = world(0)
    found = search_points(points, ratios, lambda _: 0.1, SearchSettings(max_evals=8))
    assert found.best is None
    assert found.feasible == ()
    assert len(found.evaluated) == 8


def test_the_same_seed_searches_alike():
    points, ratios, qualities = world(0)
    one, two = (search_points(points, ratios, lambda n: qualities[n], SearchSettings(max_evals=9)) for _ in range(2))
    assert one == two


def test_a_front_is_what_nobody_beats():
    rows = [(1, 5), (2, 4), (2, 3), (3, 1), (0, 5), (3, 1)]
    assert pareto_front(rows) == [0, 1, 3]


def test_a_space_holds_each_sensible_point_once():
    points = list(SMALL)
    assert len(points) == len(set(points)) == len(SMALL)
    assert all(p.key_low <= p.key_high and p.value_low <= p.value_high for p in points)
    assert len({json.dumps(p.to_json(), sort_keys=True) for p in points}) == len(points)
    features = embed(points)
    assert len(np.unique(features, axis=0)) == len(points)
    assert features.min() >= 0
    assert features.max() <= 1


def test_the_full_space_is_as_large_as_stated():
    assert len(CompressionSpace(transform=("none",), codec=("bitpack",))) > 1000


@pytest.mark.parametrize("settings", [{"codec": "zstd"}, {"codec": ()}, {"levels_high": (2,), "levels_low": (4,)}])
def test_a_space_without_choices_is_refused(settings):
    with pytest.raises(BadInput):
        CompressionSpace(**settings)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_samples_are_of_one_length_and_hold_their_answer(tiny, task):  # noqa: F811
    samples = make_samples(tiny, task, 3, 420, seed=1)
    assert samples == make_samples(tiny, task, 3, 420, seed=1)
    assert samples != make_samples(tiny, task, 3, 420, seed=2)
    for sample in samples:
        assert len(sample.prompt) == 420
        needle = bytes(sample.answer).strip().split(b",")[0]
        assert needle in bytes(sample.prompt)


def test_a_prompt_that_is_too_short_for_a_task_is_refused(tiny):  # noqa: F811
    with pytest.raises(BadInput, match="ask for"):
        make_samples(tiny, "kv-lookup", 1, 30)


@pytest.mark.parametrize(
    "text", ["", "no json\n", '{"prompt": "a"}\n', '{"prompt": "", "answer": "b"}\n', '["prompt", "answer"]\n']
)
def test_a_file_of_another_form_is_refused(tiny, tmp_path, text):  # noqa: F811
    path = tmp_path / "task.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"task\.jsonl"):
        read_samples(tiny, path)


def evaluator(model, **settings):
    samples = [TaskSample(tuple(range(40 + n, 90 + n)), (7, 8, 9)) for n in range(3)]
    return QualityEvaluator(model, samples, **settings)


def test_a_lossless_point_keeps_the_whole_score(tiny):  # noqa: F811
    found = evaluator(tiny)
    many = CompressionPoint(key_high=256, key_low=256, value_high=256, value_low=256)
    assert found(METHODS["lossless"]).relative == 1.0
    assert found(many).relative == pytest.approx(1.0, abs=0.02)
    assert found(many).agreement == 1.0


def test_fewer_levels_keep_less_and_codecs_make_no_difference(tiny):  # noqa: F811
    found = evaluator(tiny)
    coarse = CompressionPoint(key_high=4, key_low=4, value_high=4, value_low=4, codec="bitpack")
    fine = CompressionPoint(key_high=64, key_low=64, value_high=64, value_low=64)
    assert found(coarse).divergence > found(fine).divergence > 0
    evaluated = found.evaluations
    assert found(CompressionPoint(**{**coarse.to_json(), "codec": "zlib"})) == found(coarse)
    assert found.evaluations == evaluated


def test_prompts_of_several_lengths_score_as_they_do_alone(tiny):  # noqa: F811
    samples = [TaskSample(tuple(range(1, n)), (5,) * m) for n, m in ((30, 2), (9, 4), (55, 1))]
    together = QualityEvaluator(tiny, samples)
    alone = [QualityEvaluator(tiny, [sample]).reference for sample in samples]
    assert together.reference == pytest.approx(sum(alone) / 3, rel=1e-3)


def test_a_score_that_is_always_zero_is_refused(tiny):  # noqa: F811
    with pytest.raises(BadInput, match="easier"):
        evaluator(tiny, score="exact")


def test_a_prompt_s_cache_has_one_entry_a_token(tiny):  # noqa: F811
    assert prompt_cache(tiny, [1, 2, 3]).shape == (2, 2, 3, 2, 8)


def test_scores_of_heads_are_shares_of_attention(tiny):  # noqa: F811
    scores = retrieval_scores(tiny, length=20)
    assert scores.shape == (2, 2)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert torch.equal(scores, retrieval_scores(tiny, length=20))
    with pytest.raises(BadInput, match="fit"):
        retrieval_scores(tiny, length=400)


def test_profiles_are_found_saved_and_chosen_from(tiny, tmp_path):  # noqa: F811
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a{n} b c d e", "answer": " x"}) + "\n" for n in range(3)))
    space = CompressionSpace(
        transform=("none",), hybrid_ratio=(0.5,), levels_high=(64, 16), levels_low=(16,), codec=("bitpack", "huffman")
    )
    told = []
    found = profile_search(
        tiny,
        space,
        ["quote", path],
        min_quality=0.5,
        max_evals=3,
        samples=2,
        tokens=200,
        lengths=(16, 64),
        progress=lambda what, share: told.append((what, share)),
    )
    assert set(found.workloads) == {"quote", "mine", "unified"}
    assert found.scores
    assert {what for what, _ in told} >= {"prompts of mine", "answers of unified"}
    assert all(p.lengths == (16, 64) and p.quality >= 0.5 for p in found.profiles("mine"))
    found.save(tmp_path / "p.json")
    controller = CompressionController(ProfileSet.load(tmp_path / "p.json"), epsilon=0)
    assert controller.select(TransferContext(10**6, 64, "mine", bytes_per_s=1e3)).profile.id != "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"task": "riddles"}, "a task is one of"), ({"lengths": (10**6,)}, "context"), ({"space": []}, "candidate")],
)
def test_a_search_that_cannot_work_is_refused(tiny, settings, message):  # noqa: F811
    settings = {"space": [METHODS["quarot"]], "task": "quote", **settings}
    with pytest.raises(BadInput, match=message):
        profile_search(tiny, **settings)
