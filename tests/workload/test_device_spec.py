import pytest

from heliograph.devices import Gpu, Machine
from heliograph.errors import BadInput
from heliograph.workload import DeviceSpec, device_spec

TOML = """
name = "mine"
vendor = "nvidia"
arch = "sm_90"
memory_bytes = 1e9
bandwidth_bytes_per_s = 2e9
flops_per_s = { fp16 = 3e9 }
"""


def test_the_studys_device_has_the_studys_figures():
    device = DeviceSpec.mi325x(8)
    assert (device.count, device.arch, device.memory_bytes) == (8, "gfx942", 256e9)
    assert (device.bandwidth_bytes_per_s, round(device.flops_per_s["fp16"] / 1e12)) == (6.0e12, 1307)


@pytest.mark.parametrize("name", device_spec.device_names())
def test_every_shipped_figure_names_its_source(name):
    device = DeviceSpec.named(name)
    assert {"memory_bytes", "bandwidth_bytes_per_s", "flops_per_s", "link_bytes_per_s"} <= set(device.sources)


@pytest.mark.parametrize("text", ["", "nothing", "../mi325x", "mi325x:0", "mi325x:two"])
def test_an_unknown_device_is_refused(text):
    with pytest.raises(BadInput):
        DeviceSpec.named(text)


def test_a_users_file_is_read_and_its_mistakes_are_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    assert DeviceSpec.from_toml(path).peak_flops_per_s(8) == 3e9
    path.write_text(TOML + "colour = 1")
    with pytest.raises(BadInput, match="unknown fields colour"):
        DeviceSpec.from_toml(path)
    path.write_text(TOML.replace("1e9", '"much"'))
    with pytest.raises(BadInput, match="memory_bytes is 'much'"):
        DeviceSpec.from_toml(path)
    path.write_text(TOML.replace('vendor = "nvidia"', ""))
    with pytest.raises(BadInput, match="vendor"):
        DeviceSpec.from_toml(path)


@pytest.mark.parametrize(("driver", "name"), [("AMD Instinct MI325X", "mi325x"), ("NVIDIA H100 80GB HBM3", "h100")])
def test_accelerators_are_found_by_the_drivers_name(monkeypatch, driver, name):
    machine = Machine("x", 4, 2**34, "Linux", "3.11", (Gpu(driver, 10**11),) * 2)
    monkeypatch.setattr(device_spec, "this_machine", lambda: machine)
    found = DeviceSpec.detect()
    assert (found.name, found.count, found.memory_bytes) == (name, 2, 1e11)


def test_an_accelerator_without_a_data_sheet_is_refused_with_the_way_out(monkeypatch):
    machine = Machine("x", 4, 2**34, "Linux", "3.11", (Gpu("Unheard Of", 1),))
    monkeypatch.setattr(device_spec, "this_machine", lambda: machine)
    with pytest.raises(BadInput, match="write one"):
        DeviceSpec.detect()
