"""Profiles as a flame graph in one HTML file, which any browser opens from disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rr86.analysis.html import Texts, fill
from rr86.analysis.profile import Profile


@dataclass
class Node:
    """A frame of the graph: what was executed here and above, and what called what."""

    total: int = 0
    callees: dict[str, "Node"] = field(default_factory=dict)


def tree(profile: Profile) -> Node:
    """All stacks of a profile, with what they have in common together."""
    root = Node()
    for stack, count in sorted(profile.stacks().items()):
        node = root
        node.total += count
        for frame in stack:
            node = node.callees.setdefault(frame, Node())
            node.total += count
    return root


def embed(profile: Profile) -> dict[str, Any]:
    """The profile as the page's script takes it: each node is a name's number, its instructions,
    and a list of those that it called."""
    texts = Texts()

    def row(name: str, node: Node) -> list[Any]:
        callees = [row(each, below) for each, below in node.callees.items()]
        return [texts.number(name), node.total, callees]

    whose = "all vCPUs" if profile.vcpu is None else f"vCPU {profile.vcpu}"
    return {
        "title": profile.title,
        "root": row(whose, tree(profile)),
        "names": texts.list,
        "facts": [
            f"{profile.instructions:,} instructions of {whose}",
            f"moments {profile.first:,} to {profile.last:,}",
            f"{len(profile.samples):,} samples, one in {profile.interval:,} instructions",
        ],
    }


def page(profile: Profile) -> str:
    """The HTML file's text."""
    styles = ("colours.css", "flame.css")
    return fill("flame.html", profile.title, embed(profile), styles, ["flame.js"])


def write(profile: Profile, path: str | Path) -> None:
    """Write a profile to an HTML file. Raises `OSError` where it cannot be written."""
    Path(path).write_text(page(profile), encoding="utf-8")
