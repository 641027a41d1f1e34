import math

import pytest

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct import LoadBenchmark, LoadPhase, LoadStatus
from heliograph.serving.amd_instinct.benchmark import NoBaseline, load_report, status_of
from heliograph.serving.load.launch import echo_command, free_port, launch_server


@pytest.fixture(scope="module")
def server():
    port = free_port()
    with launch_server(echo_command(port), port) as running:
        yield running


@pytest.fixture(scope="module")
def report(server):
    bench = LoadBenchmark(server.url, vocabulary=5000)
    return bench.run([1, 2, 4], isl=6, osl=3, runs=2, stress=[(20, 2)], extreme=[12], validate_client=False)


@pytest.mark.parametrize(
    ("success", "rate", "p99", "previous", "status"),
    [
        (0.94, 100, 1, 10, LoadStatus.FAILING),
        (1.0, 104, 9, 100, LoadStatus.SATURATED),
        (1.0, 106, 2.1, 100, LoadStatus.DEGRADED),
        (1.0, 106, 2.0, 100, LoadStatus.OK),
        (0.95, 1, 1, None, LoadStatus.OK),
    ],
)
def test_status_rules(success, rate, p99, previous, status):
    assert status_of(success, rate, p99, 1.0, previous) is status


def test_all_phases_run_and_levels_have_their_runs(report):
    assert [row.phase for row in report.rows] == [
        LoadPhase.BASELINE,
        *[LoadPhase.SCALING] * 3,
        LoadPhase.STRESS,
        LoadPhase.SATURATION,
    ]
    assert all(len(row.runs) == 2 for row in report.rows[:-1])
    assert {run.output_tokens // run.succeeded for row in report.scaling() for run in row.runs} == {3}
    assert report.rows[4].prompt == 20


def test_refused_requests_make_a_level_fail_and_are_counted_apart():
    port = free_port()
    with launch_server(echo_command(port, ["--slots", "3", "--step-s", "0.2"]), port) as running:
        report = LoadBenchmark(running.url, vocabulary=5000).run(
            [12], isl=4, osl=2, runs=1, mode="quick", validate_client=False
        )
    (row,) = report.scaling()
    assert row.status is LoadStatus.FAILING
    assert row.runs[0].refused == row.runs[0].requests - row.runs[0].succeeded > 0


def test_the_table_says_which_loop_and_what_bounds_the_numbers(report):
    table = report.table()
    assert "closed loop" in table
    assert "unbounded" in table or "runs differ" in table
    assert math.isnan(report.headroom)


def test_a_saved_report_reads_back_and_equals_itself(report, tmp_path):
    report.save(tmp_path / "r.json")
    again = load_report(tmp_path / "r.json")
    assert [row.rates for row in again.rows] == [row.rates for row in report.rows]
    found = report.compare(tmp_path / "r.json")
    assert set(found) == {1, 2, 4}
    assert not any(comparison.differs for comparison in found.values())
    assert again.saturation == report.saturation


def test_reports_without_a_common_level_cannot_be_compared(report, server):
    other = LoadBenchmark(server.url, vocabulary=5000).run([3], isl=4, osl=2, runs=2, validate_client=False)
    with pytest.raises(BadInput, match="share no level"):
        report.compare(other)


def test_the_open_loop_reports_each_rate(server):
    report = LoadBenchmark(server.url, vocabulary=5000).run_rates([200.0], isl=4, osl=2, runs=2, requests=6)
    assert report.loop == "open"
    assert report.rows[1].arrival_rate == 200.0


def test_chat_servers_are_measured_with_words(server):
    bench = LoadBenchmark(server.url, endpoint="chat")
    report = bench.run([1], isl=6, osl=2, runs=1, mode="quick", validate_client=False)
    assert report.rows[0].runs[0].success_share == 1


def test_a_server_on_which_nothing_succeeds_is_reported_with_the_reason():
    port = free_port()
    with launch_server(echo_command(port, ["--tokens-per-chunk", "0"]), port) as running, pytest.raises(NoBaseline):
        LoadBenchmark(running.url, vocabulary=5000, timeout_s=0.3).run([1], isl=2, osl=2, runs=1, validate_client=False)


@pytest.mark.parametrize("text", ["{}", "[1]", "nothing"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInput, match="no benchmark report"):
        load_report(tmp_path / "r.json")


@pytest.mark.parametrize("levels", [[], [0]])
def test_levels_out_of_range_are_refused(server, levels):
    with pytest.raises(BadInput):
        LoadBenchmark(server.url).run(levels)
