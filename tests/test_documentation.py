"""The examples in the documentation are run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
# How many examples each page has.
PAGES = {
    "what-if.md": 1,
    "origin.md": 1,
    "python-api.md": 6,
    "conditions.md": 2,
    "block-protocols.md": 1,
    "timeline.md": 1,
    "profile.md": 1,
}
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


ROOT = DOCS.parent
PAPERS = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "traces/README.md"])
# What paths in the documents begin at: the project, the core, the package, the crates.
BASES = [ROOT / base for base in (".", "native/rr86-core/src", "rr86", "native")]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: str(paper.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(paper: Path) -> None:
    text = paper.read_text()
    named = re.findall(r"`([\w.-]+/[\w./-]+\.(?:rs|py|pyi|toml|sh|c|S|md))`", text)
    named += re.findall(r"`((?:native|rr86|tests|docs|tools|bench)/[\w./-]*/)`", text)
    names = {name for name in named if "NAME" not in name and not name.startswith("build/")}
    assert {n for n in names if not any((base / n).exists() for base in BASES)} == set()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: str(paper.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(paper: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", paper.read_text())
    assert {link for link in links if not (paper.parent / link).exists()} == set()
