"""A finding of `bisect-invalidation` as one self-contained HTML page."""

from html import escape

from rr86.cli.bisect_report import facts, headline, lanes_of
from rr86.replay.finding import Finding

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { text-align: left; vertical-align: top;
  padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #eee; }
td.n { text-align: right; font-variant-numeric: tabular-nums; color: #666; }
code, pre, .facts td + td { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: #f6f6f6; padding: .6rem .8rem; overflow-x: auto; }
.guilty { color: #b00020; font-weight: 600; } .execution { color: #7b1fa2; font-weight: 600; }
.fetch, .link { color: #00639a; } .switch { color: #888; } .serialised { color: #1b7f3b; }
.write { color: #8a6100; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; }
  pre { background: #242424; } td, th { border-color: #333; } .guilty { color: #ff6b7d; }
  .execution { color: #d59be8; } .fetch, .link { color: #6db8e8; } .write { color: #d8b15c; } }
"""


def page(finding: Finding) -> str:
    """The page."""
    rows = "\n".join(
        f"<tr><td>{escape(name.strip())}</td><td>{escape(value)}</td></tr>"
        for name, value in facts(finding)
    )
    lanes = lanes_of(finding)
    head = "".join(f"<th>{'device' if v is None else f'vCPU {v}'}</th>" for v in lanes)
    steps = "\n".join(
        f'<tr><td class="n">{step.icount:,}</td>'
        + "".join(
            f'<td class="{step.kind}">{escape(step.what) if step.vcpu == lane else ""}</td>'
            for lane in lanes
        )
        + "</tr>"
        for step in finding.timeline
    )
    stacks = "\n".join(
        f"<h2>{title}</h2>\n<pre>{escape(chr(10).join(frames))}</pre>"
        for title, frames in (
            ("Writer's call stack", finding.writer_stack),
            ("Victim's call stack", finding.execution.stack),
        )
        if frames
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Stale block {finding.victim.id}</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(headline(finding))}</h1>
<table class="facts">
{rows}
</table>
<h2>The race</h2>
<table><tr><th>instruction</th>{head}</tr>
{steps}
</table>
{stacks}
</body></html>
"""
