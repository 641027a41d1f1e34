"""What a device can do by its data sheet, as TOML with sources; or measured on this machine.

A data sheet's rates are peaks. What a model reaches is measured (:func:`measured_host`) or fitted by its user.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from heliograph.devices import measure_machine, this_machine
from heliograph.errors import BadInput

__all__ = ["DeviceSpec", "device_names", "measured_host"]

FOLDER = Path(__file__).parent / "devices"
NUMBERS = ("memory_bytes", "bandwidth_bytes_per_s")


@dataclass(frozen=True)
class DeviceSpec:
    """One kind of device, ``count`` of them.

    Attributes:
        name: short, as in file names; vendor: "amd", "nvidia" or "cpu"; arch: as compilers name it.
        memory_bytes, bandwidth_bytes_per_s: of one device.
        flops_per_s: peak dense operations a second of one device, by number type ("fp16", "fp8", ...).
        link_bytes_per_s: to the other devices of the host, all links of one device in one direction; 0 if unknown.
        count: devices in the host.
        sources: where each figure stands.
    """

    name: str
    vendor: str
    arch: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    link_bytes_per_s: float = 0.0
    count: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses rates that are not positive."""
        if self.vendor not in ("amd", "nvidia", "cpu"):
            raise BadInput(f"device {self.name}: vendor is {self.vendor!r}; known: amd, nvidia, cpu")
        rates = [self.memory_bytes, self.bandwidth_bytes_per_s, *self.flops_per_s.values()]
        if not self.flops_per_s or not all(rate > 0 for rate in rates) or self.count < 1:
            raise BadInput(f"device {self.name}: memory, bandwidth, operations and count must be positive")

    @classmethod
    def named(cls, text: str) -> DeviceSpec:
        """A device that ships with heliograph, for example ``"mi325x:8"`` for eight, or ``"cpu"`` for this processor.

        Raises:
            BadInput: no such device, or the count is not a positive whole number.
        """
        name, _, count = text.strip().lower().partition(":")
        if count and not (count.isdecimal() and int(count) > 0):
            raise BadInput(f"{text!r}: write a device and how many, for example mi325x:8")
        if name == "cpu":
            return measured_host()
        path = FOLDER / f"{name}.toml"
        if not re.fullmatch(r"[a-z0-9_]+", name) or not path.is_file():
            raise BadInput(f"no device is called {name!r}; known: cpu, {', '.join(device_names())}, or a TOML file")
        return replace(cls.from_toml(path), count=int(count or 1))

    @classmethod
    def mi325x(cls, count: int = 1) -> DeviceSpec:
        """AMD Instinct MI325X, the device of arXiv:2603.10031."""
        return cls.named(f"mi325x:{count}")

    @classmethod
    def from_toml(cls, path: Path | str) -> DeviceSpec:
        """A device from the user's file.

        Raises:
            BadInput: unreadable, or a field is missing, unknown or of the wrong type.
        """
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadInput(f"cannot read {path}: {error}") from None
        fields = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        if unknown := sorted(set(data) - set(fields)):
            raise BadInput(f"{path}: unknown fields {', '.join(unknown)}; known: {', '.join(cls.__dataclass_fields__)}")
        for key in NUMBERS:
            if isinstance(data.get(key, 0), bool) or not isinstance(data.get(key, 0), int | float):
                raise BadInput(f"{path}: {key} is {data[key]!r}; a number is expected")
        try:
            return cls(**fields)
        except TypeError as error:
            raise BadInput(f"{path}: {error}") from None

    @classmethod
    def detect(cls) -> DeviceSpec:
        """The accelerators of this machine by their data sheet, or its processor, measured in about a second.

        Raises:
            BadInput: an accelerator is there that no shipped data sheet describes; the message says what to do.
        """
        gpus = this_machine().gpus
        if not gpus:
            return measured_host()
        wanted = gpus[0].name.lower()
        for name in device_names():
            if re.search(rf"\b{re.escape(name)}\b", wanted):
                return replace(cls.named(name), count=len(gpus), memory_bytes=gpus[0].memory_bytes or 1)
        raise BadInput(
            f"no data sheet for {gpus[0].name!r} is shipped; write one (fields: {', '.join(cls.__dataclass_fields__)}) "
            "and pass its path"
        )

    def peak_flops_per_s(self, weight_bits: float) -> float:
        """Peak operations a second of one device for weights of so many bits, or the next wider type it has."""
        order = ["fp8", "fp16"] if weight_bits <= 8 else ["fp16"] if weight_bits <= 16 else ["fp32", "fp16"]
        found: Any = next((self.flops_per_s[kind] for kind in order if kind in self.flops_per_s), None)
        return float(found if found is not None else max(self.flops_per_s.values()))


def device_names() -> list[str]:
    """Devices whose data sheets ship with heliograph."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def measured_host() -> DeviceSpec:
    """This processor: memory as the system states it; bandwidth and operations as measured with one thread."""
    machine, rates = this_machine(), measure_machine()
    return DeviceSpec(
        name="cpu",
        vendor="cpu",
        arch=machine.cpu,
        memory_bytes=float(machine.memory_bytes or 2**30),
        bandwidth_bytes_per_s=rates.copy_gb_per_s * 1e9,
        flops_per_s={"fp32": rates.matmul_gflop_per_s * 1e9},
        sources={"bandwidth_bytes_per_s": "measured here: copy, one thread", "flops_per_s": "measured here: matmul"},
    )
