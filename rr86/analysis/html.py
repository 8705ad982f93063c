"""Making HTML files that need nothing else: a page of `viewer/` with style, data and scripts put
into it."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any


def fill(page: str, title: str, data: Any, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The text of an HTML file: a page of the viewer's, with these files of it in place of
    `{{style}}` and `{{script}}`, the title, and the data as JSON."""
    viewer = files("rr86.analysis") / "viewer"

    def read(names: Sequence[str]) -> str:
        return "\n".join((viewer / name).read_text(encoding="utf-8") for name in names)

    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    parts = {
        "title": escape(title),
        "style": read(styles),
        "script": read(scripts),
        # Nothing in a text can end the element that holds it.
        "data": text.replace("<", "\\u003c").replace("\u2028", "\\u2028"),
    }
    pieces = []
    for piece in read([page]).split("{{"):
        name, mark, rest = piece.partition("}}")
        pieces.append(parts[name] + rest if mark and name in parts else piece)
    return "".join(pieces)


class Texts:
    """Texts by number; number 0 is the empty one."""

    def __init__(self) -> None:
        self.list = [""]
        self._numbers = {"": 0}

    def number(self, text: str) -> int:
        """The number of a text, a new one if it is new."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.list)
            self.list.append(text)
        return found
