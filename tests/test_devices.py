"""What a machine is, also where its files and tools are absent or talk nonsense."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heliograph.devices import Gpu, Machine, measure_machine, package_versions, this_machine


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, says: bytes, status: int = 0) -> None:
    """A driver tool that prints this and exits so."""
    said = folder / "said"
    said.write_bytes(says)
    code = f"import sys\nsys.stdout.buffer.write(open({str(said)!r}, 'rb').read())\nsys.exit({status})\n"
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!{sys.executable} -IS\n{code}")
    tool.chmod(0o755)


def files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes | OSError]) -> None:
    """Replaces files under /proc and /sys; those not named are absent."""
    read_text = Path.read_text

    def read(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if not str(self).startswith(("/proc", "/sys")):
            return read_text(self, encoding, errors)
        content = contents.get(str(self), FileNotFoundError(2, "absent", str(self)))
        if isinstance(content, OSError):
            raise content
        return content.decode(encoding or "utf-8", errors or "strict")

    monkeypatch.setattr(Path, "read_text", read)


def test_facts_of_this_machine_are_plausible(tools: Path) -> None:
    machine = this_machine()
    assert machine.cpu.strip() == machine.cpu != ""
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 2**26 < machine.memory_bytes < 2**50
    assert platform.system() in machine.system
    assert platform.python_version() in machine.python


def test_facts_are_the_same_when_asked_again(tools: Path) -> None:
    assert this_machine() == this_machine()


# --- processor and memory ---


def test_an_unreadable_proc_leaves_the_architecture(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {"/proc/cpuinfo": PermissionError(13, "denied")})
    machine = this_machine()
    assert machine.cpu in (platform.processor(), platform.machine())
    assert machine.memory_bytes > 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"processor : 0\nmodel name\t: AMD EPYC  7B13   64-Core\nmodel name : other\n", "AMD EPYC 7B13 64-Core"),
        (b"model name : \nmodel name : Second\n", "Second"),
        (b"processor : 0\nModel : Raspberry Pi 5\n", "Raspberry Pi 5"),
        (b"model name : a: b\n", "a: b"),
        (b"model name : Caf\xe9\n", "Caf\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_first_model_name_of_proc_names_the_processor(
    tools: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: str
) -> None:
    files(monkeypatch, {"/proc/cpuinfo": content})
    assert this_machine().cpu == expected


@pytest.mark.parametrize("content", [b"", b"no colon\nmodel name\n", b"\x00\xff\xfe"])
def test_a_proc_without_a_model_name_leaves_the_architecture(
    tools: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    files(monkeypatch, {"/proc/cpuinfo": content})
    assert this_machine().cpu in (platform.processor(), platform.machine())


@pytest.mark.parametrize("path", ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_a_containers_limit_bounds_the_memory(tools: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    files(monkeypatch, {path: b"134217728\n"})
    assert this_machine().memory_bytes == 134217728


@pytest.mark.parametrize("limit", [b"max\n", b"9223372036854771712\n", b"", b"lots", b"\xff"])
def test_no_limit_or_nonsense_leaves_the_memory_of_the_system(
    tools: Path, monkeypatch: pytest.MonkeyPatch, limit: bytes
) -> None:
    files(monkeypatch, {})
    whole = this_machine().memory_bytes
    files(monkeypatch, {"/sys/fs/cgroup/memory.max": limit})
    assert this_machine().memory_bytes == whole


def test_a_system_that_does_not_tell_its_pages_is_no_error(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {})
    for answer in (ValueError("unrecognized configuration name"), OSError(22, "invalid")):

        def refuse(_: str, answer: Exception = answer) -> int:
            raise answer

        monkeypatch.setattr(os, "sysconf", refuse)
        assert this_machine().memory_bytes == 0


def test_pages_of_minus_one_are_unknown(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {})
    monkeypatch.setattr(os, "sysconf", lambda name: -1 if name == "SC_PHYS_PAGES" else 4096)
    assert this_machine().memory_bytes == 0


def test_cores_are_counted_where_affinity_does_not_exist(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert this_machine().cores == 1


# --- accelerators ---


def test_without_the_drivers_tool_there_are_no_gpus(tools: Path) -> None:
    machine = this_machine()
    assert machine.gpus == ()
    assert machine.label == f"{machine.cores} cores {machine.cpu}, {machine.memory_bytes / 2**30:.0f} GiB"


def test_gpus_are_read_from_the_drivers_tool(tools: Path) -> None:
    install(tools, b"NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\n")
    machine = this_machine()
    assert machine.gpus == (Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20),) * 2
    assert machine.label.startswith("2x NVIDIA H100 80GB HBM3, ")


def test_a_gpu_with_a_comma_in_its_name_or_unknown_memory_is_kept(tools: Path) -> None:
    install(tools, b"Odd, Brand, 1024\nNVIDIA GB10, [N/A]\n")
    assert this_machine().gpus == (Gpu("Odd, Brand", 2**30), Gpu("NVIDIA GB10", 0))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\n\n",
        b"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        b"No devices were found\n",
        b"NVIDIA H100\n",
        b", 81559\n",
        b"NVIDIA H100, -5\n",
        b"NVIDIA H100, 81559 MiB\n",
        "NVIDIA H100, ²\n".encode(),
        b"\xff\xfe\x00nonsense, \xff\n",
    ],
)
def test_nonsense_from_the_drivers_tool_gives_no_gpus(tools: Path, said: bytes) -> None:
    install(tools, said)
    assert this_machine().gpus == ()


def test_a_drivers_tool_that_fails_gives_no_gpus(tools: Path) -> None:
    install(tools, b"NVIDIA H100, 81559\n", status=9)
    assert this_machine().gpus == ()


def test_a_drivers_tool_that_cannot_run_gives_no_gpus(tools: Path) -> None:
    tool = tools / "nvidia-smi"
    tool.write_text("#!/absent/interpreter\n")
    tool.chmod(0o755)
    assert this_machine().gpus == ()


def test_a_drivers_tool_that_hangs_gives_no_gpus(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tools, b"")

    def hang(command: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert this_machine().gpus == ()


# --- what is made of the facts ---

MACHINE = Machine("Some CPU", 16, 128 * 2**30, "Linux 6", "CPython 3.12", (Gpu("NVIDIA H100", 80 * 2**30),))


def test_the_label_says_gpus_cores_and_memory() -> None:
    assert MACHINE.label == "1x NVIDIA H100, 16 cores Some CPU, 128 GiB"


def test_facts_travel_as_json() -> None:
    data = json.loads(json.dumps(MACHINE.to_json()))
    assert data["label"] == MACHINE.label
    assert data["gpus"] == [{"name": "NVIDIA H100", "memory_bytes": 80 * 2**30}]
    assert data["cores"] == 16


def test_versions_name_python_and_leave_out_what_is_absent() -> None:
    versions = package_versions(("numpy", "a-package-that-is-absent"))
    assert versions.keys() == {"python", "numpy"}
    assert versions["python"] == platform.python_version()


def test_measured_rates_are_positive_numbers() -> None:
    rates = measure_machine(repeats=1)
    assert 0 < rates.matmul_gflop_per_s < 1e6
    assert 0 < rates.copy_gb_per_s < 1e6
