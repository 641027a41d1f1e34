"""Evaluation and load tools of other projects, unmodified, against ``heliograph serve``."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.data.language_models import smollm2_file
from heliograph.errors import MissingData
from heliograph.lm.core.load import load_model
from tests.interop.environments import python_environment, run
from tests.serving.test_serve_command import served

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1500)]
QUESTIONS = [
    ("What is the capital of France?", [" Paris", " London"], 0),
    ("What colour is the sky?", [" green", " blue"], 1),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    try:
        smollm2_file()
    except MissingData as error:
        pytest.skip(str(error))
    with served("--layers", "30") as (address, _):
        yield address


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    load_model("smollm2-135m", layers=1).tokenizer.save(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_lm_eval_scores_choices_and_answers(url: str, tmp_path: Path) -> None:
    programs = python_environment("lm-eval", "lm-eval[api]==0.4.13")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": q, "c": c, "gold": g}) + "\n" for q, c, g in QUESTIONS))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\ntest_split: test\n"
        'doc_to_text: "Question: {{q}}\\nAnswer:"\n'
    )
    (tmp_path / "choose.yaml").write_text(
        f"task: choose\n{common}output_type: multiple_choice\nmetric_list:\n  - metric: acc\n"
        'doc_to_choice: "{{c}}"\ndoc_to_target: "{{gold}}"\n'
    )
    (tmp_path / "answer.yaml").write_text(
        f"task: answer\n{common}output_type: generate_until\nmetric_list:\n  - metric: exact_match\n"
        'doc_to_target: "{{c[gold]}}"\ngeneration_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 6\n'
    )
    settings = f"model=smollm2-135m,base_url={url}/v1/completions,tokenized_requests=False,tokenizer_backend=remote"
    out = tmp_path / "out"
    run(
        f"{programs}/lm_eval --model local-completions --model_args {settings} --include_path {tmp_path} "
        f"--tasks choose,answer --output_path {out}",
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
    )
    (report,) = out.rglob("results_*.json")
    found = json.loads(report.read_text())
    assert set(found["results"]) == {"choose", "answer"}
    assert found["n-samples"]["choose"]["effective"] == len(QUESTIONS)


def test_guidellm_measures_every_request(url: str, tokenizer: Path, tmp_path: Path) -> None:
    programs = python_environment("guidellm", "guidellm==0.8.1")
    out = tmp_path / "report.json"
    run(
        f"{programs}/guidellm run --backend kind=openai_http,target={url} --profile kind=synchronous "
        "--constraint kind=max_requests,count=4 --data kind=synthetic_text,prompt_tokens=40,output_tokens=8 "
        f"--tokenizer kind=huggingface_auto,model={tokenizer} --output kind=json,path={out} "
        "--disable-console-interactive",
        HF_HUB_OFFLINE="1",
    )
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    assert (len(benchmark["requests"]["successful"]), len(benchmark["requests"]["errored"])) == (4, 0)


def test_aiperf_measures_every_request_and_reads_the_metrics(url: str, tokenizer: Path, tmp_path: Path) -> None:
    programs = python_environment("aiperf", "aiperf==0.13.0")
    out = tmp_path / "out"
    run(
        f"{programs}/aiperf profile --model smollm2-135m --url {url} --endpoint-type chat --streaming "
        f"--tokenizer {tokenizer} --concurrency 2 --request-count 4 --synthetic-input-tokens-mean 40 "
        f"--output-tokens-mean 8 --artifact-dir {out} --ui none"
    )
    found = json.loads((out / "profile_export_aiperf.json").read_text())
    assert found["request_count"]["avg"] == 4
    assert (out / "server_metrics_export.json").is_file()
