"""What record, replay and checkpoint say with `--json`."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rr86.cli.show import WORTH_A_LOOK

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.replay.oracle import OracleReport
    from rr86.session.stop import Stop
    from rr86.trace.checkpoint import Checkpoint


def print_json(content: Mapping[str, object]) -> None:
    """One object on stdout, for programs and people."""
    print(json.dumps(content, indent=2))


def of_run(stop: "Stop", unmet: Sequence[str], status: int) -> dict[str, object]:
    """How a run ended."""
    return {"stop": stop.as_dict(), "never_met": list(unmet), "exit_status": status}


def of_machine(stop: "Stop", inspector: "Inspector") -> dict[str, object]:
    """The state of the vCPUs at a stop; empty where a person would not be shown it either."""
    if stop.reason not in WORTH_A_LOOK:
        return {}
    registers = [inspector.registers(vcpu) for vcpu in range(inspector.vcpus)]
    return {
        "symbol": inspector.symbolize(stop.rip, stop.vcpu),
        "call_stack": [str(frame) for frame in inspector.backtrace(stop.vcpu)],
        "code": inspector.listing(stop.vcpu),
        "vcpus": [
            {
                "vcpu": vcpu,
                "symbol": inspector.symbolize(each["rip"], vcpu),
                "process": inspector.process(vcpu),
                "registers": each,
            }
            for vcpu, each in enumerate(registers)
        ],
        "no_symbols": inspector.symbols.problem,
    }


def of_counters(statistics: Mapping[str, int], seconds: Mapping[str, float]) -> dict[str, object]:
    """The core's counters, and where the host's time went."""
    return {
        "statistics": dict(sorted(statistics.items())),
        "seconds": dict(sorted(seconds.items())),
    }


def of_oracle(report: "OracleReport", inspector: "Inspector") -> dict[str, object]:
    """What the oracle has found."""
    return {
        "clean": report.clean,
        "accesses": report.accesses,
        "foreign": report.foreign,
        "missing": report.missing,
        "hand_offs": report.hand_offs,
        "unseen": report.unseen,
        "gaps": [gap.describe(inspector.symbolize) for gap in report.gaps],
    }


def of_checkpoints(found: "Sequence[Checkpoint]") -> list[dict[str, int]]:
    """Checkpoints as `info --json` has them."""
    return [{"icount": c.icount, "bytes": c.stored_bytes, "pages": c.pages} for c in found]
