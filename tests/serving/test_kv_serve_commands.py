import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.lm.core import load
from heliograph.serving.kv_serve import METHODS, CompressionProfile, FrameDamaged, ProfileSet, profiling
from heliograph.serving.kv_serve_commands import app
from tests.serving.core.conftest import tiny  # noqa: F401 - a fixture


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def kv_file(tmp_path):
    kv = torch.randn(2, 2, 40, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"kv": kv}, tmp_path / "kv.safetensors")
    return tmp_path / "kv.safetensors"


@pytest.fixture
def profiles(tmp_path):
    fast = CompressionProfile("fast", METHODS["quarot"], (1,), (3.5,), (1e9,), (1e9,), 0.98, 0.97, 0.99, 8)
    ProfileSet("m", "", {"unified": (fast,)}).save(tmp_path / "p.json")
    return tmp_path / "p.json"


def test_a_file_is_compressed_and_restored_bit_by_bit(kv_file, tmp_path):
    frame, back = tmp_path / "kv.hkv", tmp_path / "back.safetensors"
    told = json.loads(invoke("compress", kv_file, "-o", frame, "--json").stdout)
    assert told["bytes"] == frame.stat().st_size < told["raw_bytes"]
    assert "bfloat16" in invoke("restore", frame, "-o", back).stdout
    assert torch.equal(load_file(back)["kv"], load_file(kv_file)["kv"])


def test_a_profile_compresses_a_file(kv_file, profiles, tmp_path):
    result = invoke("compress", kv_file, "-o", tmp_path / "f", "--profiles", profiles, "--method", "fast")
    assert "x) in" in result.stdout
    with pytest.raises(BadInput, match="fast"):
        invoke("compress", kv_file, "-o", tmp_path / "g", "--profiles", profiles, "--method", "slow")
    assert not (tmp_path / "g").exists()


def test_a_damaged_frame_leaves_nothing_behind(kv_file, tmp_path):
    invoke("compress", kv_file, "-o", tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-5])
    with pytest.raises(FrameDamaged):
        invoke("restore", tmp_path / "f", "-o", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_choice_names_the_profile_and_where_it_changes(profiles):
    arguments = ("choose", profiles, "--tokens", 1000)
    told = json.loads(invoke(*arguments, "--megabits", 100, "--json").stdout)
    assert (told["profile"], told["reason"]) == ("fast", "exploit")
    assert told["seconds"] < told["uncompressed_seconds"]
    assert [each["profile"] for each in told["envelope"]] == ["none", "fast"]
    assert told["envelope"][1]["below_megabits"] == pytest.approx((1 - 1 / 3.5) * 5e8 * 8e-6)
    assert invoke(*arguments, "--megabits", 1e6).stdout.startswith("none (no_gain)")
    assert invoke(*arguments, "--megabits", 10, "--min-quality", 0.99).stdout.startswith("none (quality)")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "absent.safetensors", "-o", "x"),
        ("restore", "absent", "-o", "x"),
        ("choose", "absent.json", "--tokens", "1", "--megabits", "1"),
        ("choose", "absent.json", "--tokens", "0", "--megabits", "1"),
        ("profile", "absent.gguf", "-o", "p.json", "--lengths", "long"),
        ("profile", "absent.gguf", "-o", "p.json", "--score", "odd"),
        ("profile", "absent.gguf", "-o", "nowhere/p.json"),
    ],
)
def test_bad_arguments_are_refused_before_work_starts(arguments):
    with pytest.raises(BadInput):
        invoke(*arguments)


def test_an_output_that_cannot_be_written_leaves_nothing_behind(kv_file, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(BadInput, match="cannot write"):
        invoke("compress", kv_file, "-o", tmp_path / "taken")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kv.safetensors", "taken"]


def test_a_file_without_keys_and_values_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match="weight"):
        invoke("compress", tmp_path / "w.safetensors", "-o", tmp_path / "x")


def test_a_model_is_profiled_and_the_file_serves_choices(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(profiling, "load_model", lambda _: tiny)
    assert load.load_model is not profiling.load_model
    path = tmp_path / "p.json"
    shape = ("--samples", 2, "--tokens", 200, "--lengths", "16,64", "--evals", 3, "--min-quality", 0.3)
    space = ("--high", 16, "--low", 16, "--transforms", "none", "--ratios", "0.5")
    result = invoke("profile", "tiny", "-o", path, "--task", "quote", *shape, *space)
    assert "unified: " in result.stdout
    told = json.loads(invoke("choose", path, "--tokens", 64, "--megabits", 0.001, "--json").stdout)
    assert told["profile"] != "none"
    assert math.isfinite(told["seconds"])
