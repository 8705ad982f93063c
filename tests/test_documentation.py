"""The examples in the documentation are run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
# How many examples each page has.
PAGES = {"python-api.md": 6, "conditions.md": 2, "block-protocols.md": 1}
EXAMPLES = {
    f"{page}, example {number}": text
    for page in PAGES
    for number, text in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE), 1
    )
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_python_examples_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_there_are_examples(page: str) -> None:
    assert sum(name.startswith(page) for name in EXAMPLES) == PAGES[page]
