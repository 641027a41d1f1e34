from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.devices import this_machine
from heliograph.errors import BadInput, UnknownSystem
from heliograph.trials.check import Workload
from heliograph.trials.header import new_header, resume_refusal
from heliograph.trials.plan import Trial, load_check, make_plan, resume_key
from heliograph.trials.record import RecordWriter, TrialRecord, check_metrics, read_records

REF = "tests.trials.synthetic:CHECK"


def test_contenders_alternate_within_each_block_with_one_seed() -> None:
    trials = [t for t in make_plan(REF, "laptop", seed=3).trials if t.experiment == "score"]
    assert [t.contender for t in trials[:3]] == ["system", "baseline", "twin"]
    assert [t.seed for t in trials[:6]] == [3000, 3000, 3000, 3001, 3001, 3001]


def test_seeds_change_the_number_of_blocks_but_not_of_exact_experiments() -> None:
    trials = make_plan(REF, "laptop", blocks=9).trials
    assert sum(t.experiment == "score" for t in trials) == 27
    assert sum(t.experiment == "exact" for t in trials) == 1


def test_trial_survives_json() -> None:
    trial = make_plan(REF, "laptop").trials[1]
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize(("preset", "blocks"), [("huge", None), ("laptop", 0), ("laptop", -3)])
def test_bad_choice_is_refused(preset: str, blocks: int | None) -> None:
    with pytest.raises(BadInput):
        make_plan(REF, preset, blocks=blocks)


def test_unknown_check_is_refused() -> None:
    with pytest.raises(UnknownSystem):
        load_check("heliograph.checks.graphs.nothing:CHECK")
    with pytest.raises(BadInput):
        load_check("tests.trials.synthetic:SCORE_CLAIM")


def test_workload_for_a_check_that_takes_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes no --workload"):
        make_plan(REF, "laptop", workload=tmp_path)


def test_resume_key_names_the_field_that_changed(tmp_path: Path) -> None:
    plan = make_plan(REF, "laptop")
    machine = this_machine()
    old = new_header([plan], "x", {}, machine)
    assert resume_refusal(old, new_header([plan], "x", {}, machine)) is None
    other_plan = new_header([make_plan(REF, "laptop", seed=1)], "x", {}, machine)
    assert "the plan of synthetic" in str(resume_refusal(old, other_plan))
    bigger = new_header([plan], "x", {}, replace(machine, cores=machine.cores + 1))
    assert "the machine of synthetic" in str(resume_refusal(old, bigger))


def test_resume_key_sees_the_bytes_of_the_workload(tmp_path: Path) -> None:
    file = tmp_path / "data"
    plan = make_plan(REF, "laptop")
    trials = tuple(replace(t, workload=Workload("own", {}, str(file))) for t in plan.trials)
    keys = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        keys.append(resume_key(replace(plan, trials=trials), this_machine())["workload"])
    assert keys[0] == keys[2] != keys[1]


def test_unreadable_workload_is_named(tmp_path: Path) -> None:
    plan = make_plan(REF, "laptop")
    trials = tuple(replace(t, workload=Workload("own", {}, str(tmp_path / "gone"))) for t in plan.trials)
    with pytest.raises(BadInput, match="gone"):
        resume_key(replace(plan, trials=trials), this_machine())


def _written(path: Path, count: int = 3) -> list[TrialRecord]:
    plan = make_plan(REF, "laptop")
    writer = RecordWriter(path, new_header([plan], "x", {}))
    rows = [
        TrialRecord(t.id, t.slug, t.experiment, t.workload.name, t.block, t.seed, t.contender, "ok", tail="é\n\u2028")
        for t in plan.trials[:count]
    ]
    for row in rows:
        writer.append(row)
    writer.close()
    return rows


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    rows = _written(tmp_path / "r.jsonl")
    assert read_records(tmp_path / "r.jsonl")[1] == rows


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_line_cut_short_by_a_crash_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    rows = _written(path)
    path.write_bytes(path.read_bytes()[:-cut])
    kept = read_records(path)[1]
    assert kept == (rows if cut == 1 else rows[:-1])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "not json", '{"format": "other"}', "\x00\x01"])
def test_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput):
        read_records(path)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_and_never_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("hostile") / "r.jsonl"
    path.write_bytes(data)
    with pytest.raises(BadInput):
        read_records(path)


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _written(path)
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match="line 3"):
        read_records(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "text", None, [1.0, 2.0], {"a": 1}])
def test_metric_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="metric m"):
        check_metrics({"m": value})


def test_record_into_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        RecordWriter(tmp_path / "file" / "r.jsonl", new_header([make_plan(REF, "laptop")], "x", {}))


@given(row=st.lists(st.booleans(), min_size=1, max_size=600), times=st.integers(1, 3))
def test_rows_of_outcomes_survive_json_however_long(row: list[bool], times: int) -> None:
    record = TrialRecord("t", "s", "e", "w", 0, 0, "a", "ok", {"a": {"right": row * times, "error": 0.5}})
    assert TrialRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_long_rows_of_outcomes_are_written_small() -> None:
    row = [shot % 50 == 0 for shot in range(100_000)]
    record = TrialRecord("t", "s", "e", "w", 0, 0, "a", "ok", {"a": {"right": row}})
    assert len(json.dumps(record.to_json())) < 10_000


@pytest.mark.parametrize(
    "packed",
    [
        {"rows": 10**15, "bits": "eNpjYGBgAAAABAAB"},
        {"rows": 300, "bits": "no base64!"},
        {"rows": 300, "bits": "AAAA"},
        {"rows": 0, "bits": "eNoDAAAAAAE="},
        {"bits": ""},
        {"rows": 8, "bits": "eNpjYGBgAAAABAAB"},
    ],
)
def test_damaged_rows_of_outcomes_are_refused(packed: dict[str, object]) -> None:
    data = TrialRecord("t", "s", "e", "w", 0, 0, "a", "ok").to_json()
    with pytest.raises(BadInput, match="packed row of outcomes"):
        TrialRecord.from_json({**data, "metrics": {"a": {"right": packed}}})
