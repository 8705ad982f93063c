"""Profiles as files: collapsed stacks, as flamegraph.pl and inferno read them, and speedscope's
JSON (https://www.speedscope.app/file-format-schema.json)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rr86.analysis.profile import Profile, Sample
from rr86.version import __version__

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def collapsed(profile: Profile) -> str:
    """One line for each stack: its frames, separated by semicolons, and its instructions."""
    lines = (
        f"{';'.join(_plain(frame) for frame in stack)} {count}"
        for stack, count in sorted(profile.stacks().items())
    )
    return "".join(f"{line}\n" for line in lines)


def _plain(frame: str) -> str:
    # A task may be called anything.
    return "".join("_" if each in "; \n\r" else each for each in frame)


def speedscope(profile: Profile) -> dict[str, Any]:
    """The samples in their order: of all vCPUs, and of each. The unit is an instruction, for which
    the format has no name."""
    numbers: dict[str, int] = {}
    vcpus = sorted({sample.vcpu for sample in profile.samples})
    parts = [("all vCPUs", profile.samples)] if len(vcpus) > 1 else []
    parts += [
        (f"vCPU {vcpu}", [each for each in profile.samples if each.vcpu == vcpu]) for vcpu in vcpus
    ]
    profiles = [_part(name, samples, numbers) for name, samples in parts]
    return {
        "$schema": _SCHEMA,
        "exporter": f"rr86@{__version__}",
        "name": f"{profile.title}, instructions {profile.first} to {profile.last}",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in numbers]},
        "profiles": profiles,
    }


def _part(name: str, samples: Sequence[Sample], numbers: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": name,
        "unit": "none",
        "startValue": 0,
        "endValue": sum(sample.weight for sample in samples),
        "samples": [
            [numbers.setdefault(frame, len(numbers)) for frame in sample.stack]
            for sample in samples
        ],
        "weights": [sample.weight for sample in samples],
    }


def write_collapsed(profile: Profile, path: str | Path) -> None:
    """Write collapsed stacks. Raises `OSError` where the file cannot be written."""
    Path(path).write_text(collapsed(profile), encoding="utf-8")


def write_speedscope(profile: Profile, path: str | Path) -> None:
    """Write speedscope's JSON. Raises `OSError` where the file cannot be written."""
    Path(path).write_text(json.dumps(speedscope(profile)), encoding="utf-8")
