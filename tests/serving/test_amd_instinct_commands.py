import json

import pytest
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct_commands import app
from heliograph.serving.load.launch import echo_command, free_port, launch_server
from tests.workload.test_shape import SMOLLM2


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_advice_names_the_command_the_reasons_and_the_unknowns():
    result = invoke("advise", "--model", "kimi_k25", "--device", "mi325x:8")
    assert result.exit_code == 0
    assert "vllm serve MODEL --tensor-parallel-size 4" in result.stdout
    assert "overruled by R4" in result.stdout
    assert "unknown:" in result.stdout


def test_advice_reads_a_configuration_and_prints_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    result = invoke("advise", "--model", str(tmp_path), "--device", "h100", "--json")
    data = json.loads(result.stdout)
    assert data["attention"] == "gqa"
    assert data["command"].startswith("vllm serve")


def test_a_benchmark_prints_a_table_and_writes_a_report(tmp_path):
    port = free_port()
    with launch_server(echo_command(port), port) as server:
        path = tmp_path / "r.json"
        shape = ("--isl", "4", "--osl", "2", "--runs", "2", "--levels", "1,2")
        result = invoke("bench", "--url", server.url, *shape, "--output", str(path))
        assert "baseline" in result.stdout
        assert json.loads(path.read_text())["rows"]
        again = invoke("bench", "--url", server.url, *shape, "--compare", str(path))
        assert "concurrency 2" in again.stdout


def test_the_client_alone_is_measured():
    data = json.loads(invoke("client", "--levels", "2", "--osl", "4", "--json").stdout)
    assert data[0]["output_tokens_per_s"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("advise", "--model", "kimi_k25", "--device", "abacus"),
        ("bench", "--url", "http://127.0.0.1:9", "--levels", "0"),
        ("bench", "--url", "http://127.0.0.1:9", "--mode", "odd"),
        ("bench", "--url", "nowhere"),
    ],
)
def test_bad_arguments_are_refused_before_work_starts(arguments):
    with pytest.raises(BadInput):
        invoke(*arguments)
