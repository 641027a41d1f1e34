from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heliograph.catalog.registry import load_cards

PLANNED = next(slug for slug, card in load_cards().items() if card.status == "planned")


def call(command: list[str], *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=250)


def test_help_lists_every_command_and_imports_no_heavy_module(heliograph: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['heliograph', '--help']\nfrom heliograph.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'sqlalchemy', 'altair') if m in sys.modules])"
    )
    result = call([sys.executable, "-c", code])
    for name in ["systems", "show", "check", "compare", "runs", "report", "rejudge", "new", "doctor", "web"]:
        assert re.search(rf"^\s+{name}\s", result.stdout, re.M), name
    assert result.stdout.rstrip().endswith("[]")


def test_systems_json_has_the_promised_shape(heliograph: list[str]) -> None:
    rows = json.loads(call(heliograph, "systems", "--json").stdout)
    assert len(rows) == 55
    assert set(rows[0]) == {"slug", "title", "family", "year", "status", "claims"}
    assert set(rows[0]["claims"][0]) == {"id", "statement", "metric", "paper"}


def test_search_finds_overlap_of_communication(heliograph: list[str]) -> None:
    rows = json.loads(call(heliograph, "systems", "overlap communication", "--json").stdout)
    assert {"co2", "comet", "t3", "token_weave"} <= {r["slug"] for r in rows[:6]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "flodnet"], "did you mean floydnet"),
        (["check", "flodnet"], "did you mean floydnet"),
        (["check", PLANNED], "planned"),
        (["check", "floydnet", "--preset", "huge"], "unknown preset"),
        (["check", "floydnet", "--seeds", "0"], "must be 1 or more"),
        (["check", "floydnet", "floydnet"], "twice"),
        (["check", "floydnet", "--workload", "/no/such/file.g6"], "does not exist"),
        (["check", "floydnet", "--resume"], "no unfinished run"),
        (["check", "floydnet", "--on", "mars"], "local or ray"),
        (["check"], "Missing argument"),
        (["systems", "--family", "birds"], "unknown family"),
        (["report", "no-such-run"], "no run"),
        (["rejudge", "nothing.jsonl"], "no record file"),
        (["compare", "nothing"], "expected one of"),
        (["compare", "bfs", "--budget", "soon"], "a budget is a time"),
        (["compare", "bfs", "--contenders", "nobody"], "choose from"),
        (["new", "Bad Slug", "--family", "graphs"], "is no slug"),
        (["new", "floydnet", "--family", "graphs"], "already"),
        (["runs", "--store", "sqlite:////proc/none/x.sqlite"], "cannot be made"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(heliograph: list[str], arguments: list[str], words: str) -> None:
    result = call(heliograph, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_check_prints_the_promised_json_and_progress_elsewhere(
    heliograph: list[str], plugin_env: dict[str, str]
) -> None:
    result = call(heliograph, "check", "synthetic", "--json", env=plugin_env)
    data = json.loads(result.stdout)
    assert {"run", "preset", "machine", "findings", "controls"} == set(data)
    promised = (
        "system claim kind metric direction contender baseline workload paper paper_reached ours low high level blocks "
        "threshold unit provenance verdict note"
    )
    assert set(promised.split()) <= set(data["findings"][0])
    assert {f["claim"]: f["verdict"] for f in data["findings"]} == {"agreement": "holds", "better_score": "holds"}
    assert {"system", "name", "passed"} <= set(data["controls"][0])
    assert "synthetic at laptop" in result.stderr
    assert result.returncode == 0


def test_last_line_of_a_check_is_a_sentence(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    result = call(heliograph, "check", "synthetic", env=plugin_env | {"COLUMNS": "2000"})
    last = result.stdout.strip().splitlines()[-1]
    assert re.match(r"Paper: 2.5 points. Here: .* against baseline .*Verdict: holds. Why: ", last)
    assert "●" in result.stdout
    assert "│" in result.stdout


def test_void_claim_gives_exit_code_1(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    result = call(heliograph, "check", "synthetic", "--seeds", "3", env=plugin_env)
    assert result.returncode == 1
    assert "too few blocks" in result.stdout.replace("\n", " ")


def test_crash_in_a_trial_is_told_and_voids_the_claim(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    result = call(heliograph, "check", "synthetic", env=plugin_env | {"HELIOGRAPH_TEST_CHECK": "RAISES"})
    assert result.returncode == 1
    assert "a deliberate failure" in result.stderr
    assert "trials are missing" in result.stdout.replace("\n", " ")


def test_killed_run_resumes_without_repeating_or_losing_a_trial(
    heliograph: list[str], plugin_env: dict[str, str]
) -> None:
    env = plugin_env | {"HELIOGRAPH_TEST_CHECK": "MARKED"}
    command = [*heliograph, "check", "synthetic"]
    held = env | {"HELIOGRAPH_TEST_HOLD": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=held)
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"\s*5/24 ", line):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = json.loads(call(heliograph, "runs", "--json", env=env).stdout)
    kept = run["trials"]
    assert 5 <= kept < 24
    assert run["status"] == "running"
    resumed = call(heliograph, "check", "synthetic", "--resume", "--json", env=env)
    assert json.loads(resumed.stdout)["run"] == run["run"]
    assert f"{kept} kept from before" in resumed.stderr
    (after,) = json.loads(call(heliograph, "runs", "--json", env=env).stdout)
    assert (after["trials"], after["status"]) == (24, "finished")
    marks = [p.name.rsplit("-", 1)[0] for p in Path(env["HELIOGRAPH_TEST_MARKS"]).iterdir()]
    # Trials that were under way when the command died began twice; those that had finished did not.
    repeated = len(marks) - len(set(marks))
    assert len(set(marks)) == 24
    assert repeated <= 2


def test_interrupt_keeps_what_is_finished_and_prints_how_to_resume(
    heliograph: list[str], plugin_env: dict[str, str]
) -> None:
    env = plugin_env | {"HELIOGRAPH_TEST_CHECK": "MARKED"}
    command = [*heliograph, "check", "synthetic"]
    held = env | {"HELIOGRAPH_TEST_HOLD": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=held)
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"\s*3/24 ", line):
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "heliograph check synthetic --preset laptop --resume" in rest
    (run,) = json.loads(call(heliograph, "runs", "--json", env=env).stdout)
    assert run["status"] == "interrupted"
    assert run["trials"] >= 3


def test_resume_with_other_seeds_is_refused_naming_the_field(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    env = plugin_env | {"HELIOGRAPH_TEST_CHECK": "MARKED"}
    command = [*heliograph, "check", "synthetic"]
    held = env | {"HELIOGRAPH_TEST_HOLD": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=held)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    refused = call(heliograph, "check", "synthetic", "--seeds", "5", "--resume", env=env)
    assert (refused.returncode, "the plan of synthetic differs" in refused.stderr) == (2, True)
    again = call(heliograph, "check", "synthetic", "--seeds", "5", "--resume", "--rerun", "--json", env=env)
    assert again.returncode == 0


def test_report_opens_without_network_and_badge_and_citation_are_written(
    heliograph: list[str], plugin_env: dict[str, str], tmp_path: Path
) -> None:
    call(heliograph, "check", "synthetic", "--output", str(tmp_path / "run.json"), env=plugin_env)
    page = tmp_path / "out" / "report.html"
    result = call(heliograph, "report", "last", "--output", str(page), "--badge", "--cite", env=plugin_env)
    assert result.returncode == 0
    text = page.read_text()
    assert "<svg" in text
    assert not re.search(r"(src|href)=\"?https?:", text)
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@misc{synthetic2026" in result.stdout
    assert "2 holds" in (tmp_path / "out" / "synthetic-badge.svg").read_text()
    from_file = call(heliograph, "rejudge", str(tmp_path / "run.json"), "--json", env=plugin_env)
    original = json.loads((tmp_path / "run.json").read_text())
    assert json.loads(from_file.stdout)["findings"] == original["findings"]


def test_dry_run_runs_nothing_and_knows_more_after_a_first_run(
    heliograph: list[str], plugin_env: dict[str, str]
) -> None:
    (before,) = json.loads(call(heliograph, "check", "synthetic", "--dry-run", "--json", env=plugin_env).stdout)
    assert before["trials"] == 19
    assert json.loads(call(heliograph, "runs", "--json", env=plugin_env).stdout) == []
    call(heliograph, "check", "synthetic", env=plugin_env)
    (after,) = json.loads(call(heliograph, "check", "synthetic", "--dry-run", "--json", env=plugin_env).stdout)
    claim = next(c for c in after["claims"] if c["claim"] == "better_score")
    assert 0 < claim["smallest_effect"] < 1


def test_trying_to_break_a_claim_tells_where_it_flips(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    env = plugin_env | {"HELIOGRAPH_TEST_CHECK": "FRAGILE"}
    result = call(heliograph, "check", "synthetic", "--try-to-break", "--json", env=env)
    (found,) = json.loads(result.stdout)
    assert found["flips"] == ["better_score: holds becomes fails at gain 0.0"]
    assert [p["value"] for p in found["points"]] == [1, 2, 1.5, 0.0]


def test_show_says_what_was_measured_here(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    assert "here: not run" in call(heliograph, "show", "synthetic", env=plugin_env).stdout
    call(heliograph, "check", "synthetic", env=plugin_env)
    assert re.search(r"here, laptop: holds", call(heliograph, "show", "synthetic", env=plugin_env).stdout)


def test_doctor_names_the_remedy_of_a_broken_store(heliograph: list[str]) -> None:
    result = call(heliograph, "doctor", "--json", "--store", "sqlite:////proc/none/x.sqlite")
    rows = {r["what"]: r for r in json.loads(result.stdout)}
    assert rows["store"]["state"] == "broken"
    assert "--store" in rows["store"]["remedy"]
    assert result.returncode == 1


def test_bare_record_is_judged_elsewhere(heliograph: list[str], plugin_env: dict[str, str], tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    bare = [sys.executable, "-m", "heliograph.trials.run", "synthetic_plugin.check:CHECK", "--output", str(record)]
    assert call(bare, env=plugin_env).returncode == 0
    judged = call(heliograph, "rejudge", str(record), "--json", env=plugin_env)
    assert {f["verdict"] for f in json.loads(judged.stdout)["findings"]} == {"holds"}
    added = call(heliograph, "runs", "--import", str(record), "--json", env=plugin_env)
    assert json.loads(added.stdout)[0]["status"] == "finished"


def test_bare_runner_needs_the_standard_library_only() -> None:
    code = (
        "import sys, heliograph.trials.run\n"
        "print([m for m in ('numpy', 'scipy', 'msgspec', 'sqlalchemy', 'rich', 'typer', 'psutil') if m in sys.modules])"
    )
    assert call([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_output_into_a_full_or_missing_place_is_refused(heliograph: list[str], plugin_env: dict[str, str]) -> None:
    result = call(heliograph, "check", "synthetic", "--output", "/proc/none/run.json", env=plugin_env)
    assert result.returncode == 2
    assert "cannot write /proc/none/run.json" in result.stderr
