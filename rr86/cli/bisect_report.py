"""A finding of `bisect-invalidation` in the terminal."""

from typing import TYPE_CHECKING

from rr86.replay.finding import GRADES

if TYPE_CHECKING:
    from rr86.replay.finding import Finding

_MARKS = {
    "fetch": "cyan",
    "link": "cyan",
    "switch": "dim",
    "write": "yellow",
    "guilty": "bold red",
    "serialised": "green",
    "execution": "bold magenta",
}


def place(address: int | None, symbol: str | None) -> str:
    """An address with its symbol."""
    if address is None:
        return "a device"
    return f"{address:#x} <{symbol}>" if symbol else f"{address:#x}"


def headline(finding: "Finding") -> str:
    """The answer in one sentence."""
    execution, write = finding.execution, finding.write
    where = place(execution.address, finding.address_symbol)
    text = (
        f"vCPU {execution.vcpu} executed {execution.executed!r} at {where} "
        f"although memory held {execution.held!r}"
    )
    if write is None:
        return f"{text}; no write to the block's bytes was seen"
    who = "a device" if write.vcpu is None else f"vCPU {write.vcpu}"
    return f"{text}: its block missed the write of {who} at instruction {write.committed:,}"


def facts(finding: "Finding") -> list[tuple[str, str]]:
    """Everything worth saying, as rows of name and text."""
    victim, execution, write = finding.victim, finding.execution, finding.write
    rows = [
        (
            "execution",
            f"instruction {execution.icount:,} on vCPU {execution.vcpu}, "
            f"execution {execution.number} of the stale block",
        ),
        ("grade", f"{execution.grade}: {GRADES[execution.grade]}"),
        (
            "block",
            f"{victim.id} at {place(victim.pc, finding.victim_symbol)}, {len(victim.source)} bytes "
            f"at physical {', '.join(f'{at:#x}' for at, _ in victim.ranges)}",
        ),
        ("source", victim.source.hex(" ")),
        ("memory", execution.memory.hex(" ")),
        (
            "made",
            f"by vCPU {victim.vcpu}: bytes read at {victim.fetched:,}, linked at "
            f"{victim.linked:,}; {'born stale' if victim.born_stale else 'survived the write'}",
        ),
    ]
    if write is not None:
        who = "a device" if write.vcpu is None else f"vCPU {write.vcpu}"
        late = f" (checked at {write.checked:,})" if write.checked != write.committed else ""
        rows += [
            ("write", f"{who} at instruction {write.committed:,}{late}"),
            ("  by", place(write.rip, finding.writer_symbol)),
            ("  bytes", f"{write.old.hex(' ')} → {write.new.hex(' ')}"),
            ("  address", _address(finding)),
            ("window", f"{finding.window}: {finding.window_text}"),
        ]
    proof = finding.proof
    if proof is not None:
        verdict = "proved" if proof.proved else "NOT proved"
        others = f"; other stale executions on the way: {proof.others}" if proof.others else ""
        rows.append(
            (
                "proof",
                f"{verdict}: with the block {proof.how} at {proof.changed:,}, {proof.what}{others}",
            )
        )
    rows.append(
        (
            "trace",
            f"{finding.born} blocks born stale, {finding.survived} survived a write, "
            f"{finding.executed} executed; protocol {finding.protocol}",
        )
    )
    times = ", ".join(f"{name} {value:.1f} s" for name, value in finding.seconds.items())
    rows.append(("time", times))
    return rows


def _address(finding: "Finding") -> str:
    write = finding.write
    assert write is not None
    text = f"physical {write.paddr:#x}"
    if write.linear is not None:
        text += f" through virtual {write.linear:#x}"
        if finding.alias:
            text += ", an alias of the executed address"
    return text


def show(finding: "Finding") -> None:
    """Print the report to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(Text(headline(finding), style="bold"))
    console.print()
    table = Table.grid(padding=(0, 2))
    for name, value in facts(finding):
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)
    stacks = (
        ("Writer's call stack", finding.writer_stack),
        ("Victim's call stack", finding.execution.stack),
    )
    for title, frames in stacks:
        if frames:
            console.print()
            console.print(Text(f"{title}:"))
            for frame in frames:
                console.print(Text(f"  {frame}"))
    console.print()
    lanes = Table(title="The race", title_justify="left", show_edge=False, pad_edge=False)
    lanes.add_column("instruction", justify="right")
    for vcpu in lanes_of(finding):
        lanes.add_column("device" if vcpu is None else f"vCPU {vcpu}")
    for step in finding.timeline:
        cells = [
            Text(step.what if step.vcpu == lane else "", style=_MARKS.get(step.kind, ""))
            for lane in lanes_of(finding)
        ]
        lanes.add_row(f"{step.icount:,}", *cells)
    console.print(lanes)


def lanes_of(finding: "Finding") -> list[int | None]:
    """vCPUs that take part, in order; a device last."""
    vcpus = {step.vcpu for step in finding.timeline}
    lanes = sorted(v for v in vcpus if v is not None)
    return [*lanes, None] if None in vcpus else [*lanes]
