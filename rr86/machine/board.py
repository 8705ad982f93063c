"""Putting a machine together: from a spec and the files it boots from to one ready to run.

`build` is a pure function: equal specs and equal files give equal bytes, on every host. Its
result, the `Placement`, can also be taken apart into a manifest and images and be put together
again, so that a trace can hold exactly what was loaded and does not depend on how later versions
build tables.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rr86.cpu.model import CpuidRow, MsrRow, cpu_model
from rr86.errors import GuestImageError, SpecError
from rr86.machine import fw_cfg, memory_map
from rr86.machine.acpi import build_acpi
from rr86.machine.loaders.detect import load_kernel
from rr86.machine.loaders.image import BootFiles, Bytes, Load
from rr86.machine.memory_map import MemoryMap
from rr86.machine.smbios import build_smbios
from rr86.machine.spec import BoardSpec

if TYPE_CHECKING:
    from rr86._native import Machine

RSDP = memory_map.FIRMWARE_BASE
SMBIOS_ENTRY_64 = memory_map.FIRMWARE_BASE + 0x40
SMBIOS_ENTRY_32 = memory_map.FIRMWARE_BASE + 0x60
SMBIOS_TABLE = memory_map.FIRMWARE_BASE + 0x100

PROTOCOLS = ("linux", "multiboot")
"""How a kernel is entered."""

_INLINE_MAX = 4096
"""Larger fw_cfg items are images of a trace rather than part of its header."""


class LoadTarget(Protocol):
    """The part of a native machine that takes a placement."""

    def load(self, paddr: int, data: Bytes) -> None:
        """Write into guest RAM."""

    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        """Set registers by name."""


@dataclass(frozen=True)
class Placement:
    """Everything that is in a machine before its first instruction."""

    spec: BoardSpec
    protocol: str
    """"linux" or "multiboot"."""
    cpuid: tuple[CpuidRow, ...]
    msrs: tuple[MsrRow, ...]
    loads: tuple[Load, ...]
    registers: dict[str, int]
    """Of vCPU 0; the others wait for a SIPI."""
    fw_cfg: tuple[tuple[int, Bytes], ...]
    fw_cfg_files: tuple[tuple[str, bytes], ...]

    def machine_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `rr86._native.Machine`."""
        spec = self.spec
        return {
            "memory": spec.memory,
            "vcpus": spec.vcpus,
            "cpuid": self.cpuid,
            "msrs": self.msrs,
            "start_time": spec.start_time,
            "fw_cfg": self.fw_cfg,
            "fw_cfg_files": self.fw_cfg_files,
            "max_block": spec.max_block,
            "block_capacity": spec.block_capacity,
            "block_protocol": spec.block_protocol.properties(),
            "cross_writes": spec.cross_writes,
            "semantics": spec.semantics,
        }

    def apply(self, machine: LoadTarget) -> None:
        """Fill a machine that was made with `machine_arguments`."""
        for item in self.loads:
            machine.load(item.address, item.data)
        machine.set_registers(0, dict(self.registers))

    def images(self) -> list[tuple[str, bytes]]:
        """All larger contents, once each, under the names by which `manifest` refers to them."""
        return [(name, bytes(data)) for data, name in self._names().items()]

    def _names(self) -> dict[Bytes, str]:
        names: dict[Bytes, str] = {}
        for index, item in enumerate(self.loads):
            names.setdefault(item.data, f"load-{index:02}")
        for key, data in self.fw_cfg:
            if len(data) > _INLINE_MAX:
                names.setdefault(data, f"fw-cfg-{key:04x}")
        return names

    def manifest(self) -> dict[str, Any]:
        """All but the images, as plain lists, numbers and strings for a trace's header."""
        names = self._names()

        def reference(data: Bytes) -> bytes | str:
            return names[data] if len(data) > _INLINE_MAX else bytes(data)

        return {
            "spec": self.spec.to_dict(),
            "protocol": self.protocol,
            "cpuid": [list(row) for row in self.cpuid],
            "msrs": [list(row) for row in self.msrs],
            "loads": [[item.address, names[item.data], item.what] for item in self.loads],
            "registers": dict(self.registers),
            "fw_cfg": [[key, reference(data)] for key, data in self.fw_cfg],
            "fw_cfg_files": [[name, data] for name, data in self.fw_cfg_files],
        }

    @classmethod
    def from_manifest(
        cls, manifest: Mapping[str, Any], image: Callable[[str], bytes]
    ) -> "Placement":
        """What `manifest` and `images` describe; `image` gives the bytes for a name."""

        def resolve(data: bytes | str) -> bytes:
            return image(data) if isinstance(data, str) else bytes(data)

        try:
            if manifest["protocol"] not in PROTOCOLS:
                raise ValueError(f"boot protocol {manifest['protocol']!r}")
            return cls(
                spec=BoardSpec.from_dict(manifest["spec"]),
                protocol=manifest["protocol"],
                cpuid=tuple(_row6(row) for row in manifest["cpuid"]),
                msrs=tuple((int(index), int(value)) for index, value in manifest["msrs"]),
                loads=tuple(
                    Load(int(address), image(name), what)
                    for address, name, what in manifest["loads"]
                ),
                registers={str(key): int(value) for key, value in manifest["registers"].items()},
                fw_cfg=tuple((int(key), resolve(data)) for key, data in manifest["fw_cfg"]),
                fw_cfg_files=tuple(
                    (str(name), bytes(data)) for name, data in manifest["fw_cfg_files"]
                ),
            )
        except SpecError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"the stored machine description is damaged: {error!r}") from error

    def digest(self) -> str:
        """SHA-256 over everything that the machine is made from: equal machines, equal digests."""
        import hashlib

        state = hashlib.sha256()

        def add(*parts: object) -> None:
            for part in parts:
                data = part if isinstance(part, Bytes) else repr(part).encode("utf-8")
                state.update(len(data).to_bytes(8, "little") + data)

        add(sorted(self.spec.to_dict().items()), self.protocol, self.cpuid, self.msrs)
        add(sorted(self.registers.items()))
        for item in self.loads:
            add(item.address, item.data)
        for key, data in (*self.fw_cfg, *self.fw_cfg_files):
            add(key, data)
        return state.hexdigest()


def build(spec: BoardSpec, files: BootFiles) -> Placement:
    """Decide what goes where. Raises `GuestImageError` or `SpecError` where it cannot work."""
    model = cpu_model(spec.cpu_model)
    memory = MemoryMap(spec.memory)
    kernel = load_kernel(files, spec, memory)
    acpi = build_acpi(spec.vcpus, memory.tables_base)
    if len(acpi.tables) > memory_map.TABLES_SIZE:
        raise SpecError(f"the ACPI tables of {spec.vcpus} vCPUs do not fit into their area")
    smbios = build_smbios(memory, spec.vcpus, model.signature(), SMBIOS_TABLE)
    firmware = (
        Load(acpi.base, acpi.tables, "the ACPI tables"),
        Load(RSDP, acpi.rsdp, "the RSDP"),
        Load(SMBIOS_ENTRY_64, smbios.entry_64, "the SMBIOS entry point"),
        Load(SMBIOS_ENTRY_32, smbios.entry_32, "the SMBIOS 2.8 entry point"),
        Load(SMBIOS_TABLE, smbios.table, "the SMBIOS table"),
    )
    for mine in kernel.loads:
        for other in firmware:
            if mine.address < other.end and other.address < mine.end:
                raise GuestImageError(
                    f"{mine.what} would overwrite {other.what} at {other.address:#x}"
                )
    return Placement(
        spec=spec,
        protocol=kernel.protocol,
        cpuid=tuple(model.cpuid_rows(spec.vcpus)),
        msrs=tuple(sorted([*model.msr_rows(), *memory_map.mtrr_rows(model)])),
        loads=(*firmware, *kernel.loads),
        registers=kernel.registers,
        fw_cfg=tuple(fw_cfg.items(spec, files, kernel.protocol)),
        fw_cfg_files=tuple(fw_cfg.named_files(memory, acpi, smbios)),
    )


def power_on(spec: BoardSpec, files: BootFiles, oracle: bool = False) -> "Machine":
    """A native machine, loaded and about to execute the kernel's first instruction."""
    return start(build(spec, files), oracle)


def start(placement: Placement, oracle: bool = False) -> "Machine":
    """A native machine made from a placement (built now, or read back from a trace).

    With `oracle`, every access is seen by the oracle, from those of the loader on.
    """
    # Imported here so that everything else works, and is tested, without the native core.
    from rr86._native import Machine

    machine = Machine(**placement.machine_arguments())
    disabled = [name for name in os.environ.get("RR86_DISABLE", "").split(",") if name]
    if disabled:
        try:
            machine.disable_shortcuts(disabled)
        except ValueError as error:
            raise SpecError(f"RR86_DISABLE: {error}") from None
    if oracle:
        machine.ask_oracle()
    placement.apply(machine)
    return machine


def _row6(row: Sequence[int]) -> CpuidRow:
    leaf, subleaf, eax, ebx, ecx, edx = (int(value) for value in row)
    return leaf, subleaf, eax, ebx, ecx, edx
