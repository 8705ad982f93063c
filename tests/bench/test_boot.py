"""What the benchmark of boots makes of its times, and how it has QEMU record."""

from pathlib import Path

import pytest

from bench import boot, common
from bench.boot import PLAIN, QEMU_PLAIN, QEMU_RECORDING, RECORDING, REPLAYING, Guest
from bench.common import Sample, Series, qemu_recording, qemu_records

GUEST = Guest(Path("vmlinuz"), None, "panic=-1", 1, 512 << 20, 0, 60.0)


def measured(**seconds: float) -> list[Series]:
    names = {"plain": PLAIN, "recording": RECORDING, "qemu": QEMU_PLAIN, "log": QEMU_RECORDING}
    return [Series(names[key], [Sample(value)]) for key, value in seconds.items()]


def test_every_variant_is_compared_with_both_ways_of_qemu() -> None:
    results = measured(plain=1.0, recording=1.1, qemu=2.2, log=4.4)
    variants = boot.as_json(GUEST, results)["variants"]
    assert isinstance(variants, dict)
    recording = variants[RECORDING]
    assert recording["to_plain"] == pytest.approx(1.1)
    assert recording["to_qemu"] == pytest.approx(0.5)
    assert recording["to_qemu_recording"] == pytest.approx(0.25)
    lines = boot.report(results).splitlines()
    assert lines[0].endswith("/ plain  / QEMU  / QEMU recording")
    assert lines[2].split()[-3:] == ["1.10", "0.50", "0.25"]


def test_what_was_not_measured_is_a_dash() -> None:
    results = measured(plain=1.0, recording=1.1)
    assert boot.report(results).splitlines()[2].split()[-3:] == ["1.10", "-", "-"]


def variants_at(smp: int, able: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def alternate(variants: list[tuple[str, object]], *_: object) -> list[Series]:
        asked.extend(name for name, _ in variants)
        return []

    monkeypatch.setattr(boot, "alternate", alternate)
    monkeypatch.setattr(boot, "run_plain", lambda *_: Sample(1.0))
    monkeypatch.setattr(boot, "_images", lambda _: {})
    monkeypatch.setattr(boot, "qemu_records", lambda: able)
    boot.measure(Guest(Path("k"), None, "", smp, 1 << 20, 0, 1.0), 1, with_qemu=True)
    return asked


def test_qemu_records_on_one_vcpu_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [PLAIN, RECORDING, REPLAYING]
    assert variants_at(1, True, monkeypatch) == [*ours, QEMU_PLAIN, QEMU_RECORDING]
    assert variants_at(1, False, monkeypatch) == [*ours, QEMU_PLAIN]
    assert variants_at(4, True, monkeypatch) == [*ours, QEMU_PLAIN]


def test_a_comma_in_the_log_s_path_does_not_end_the_option() -> None:
    assert qemu_recording(Path("/tmp/a,b"))[1] == "shift=auto,rr=record,rrfile=/tmp/a,,b"


def test_a_qemu_that_does_not_record_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(common, "QEMU", str(program))
    assert not qemu_records()
    assert "does not record" in capsys.readouterr().err
    program.write_text("#!/bin/sh\nexit 0\n")
    assert qemu_records()
