"""The layers of the package and of the core: which may use which, and that no files use each other
in a circle (docs/architecture.md).

Every use counts: imports at the top, inside functions and for type checkers alone, and modules
that are named in a string to be imported late; in the core every path that begins with `crate`,
`super` or `self`. Tests inside the core may use anything.

The tables below say what is allowed. That of the package is as tight as the code: what it allows
and is not there any more fails too, so that it is taken out.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
Uses = dict[str, set[str]]

# Below all layers: the errors, the version, and the typed face of the core.
PYTHON_GROUND = {"errors", "version", "_native"}
PYTHON = {
    "cli": {
        "analysis",
        "gdb",
        "kernel",
        "record",
        "replay",
        "session",
        "trace",
        "translate",
        "cpu",
    },
    "analysis": {"kernel", "replay", "session", "trace", "cpu"},
    "gdb": {"analysis", "kernel", "replay", "session", "machine", "cpu"},
    "record": {"session", "kernel", "trace", "machine", "translate", "cpu"},
    "replay": {"session", "kernel", "trace", "machine", "translate", "cpu"},
    "session": {"kernel", "trace", "machine", "cpu"},
    "kernel": {"cpu"},
    "trace": {"cpu"},
    "machine": {"translate", "cpu"},
    "translate": {"cpu"},
    "cpu": set(),
    "guests": set(),
}

# Files of the core that all layers may use, and that use none of them.
CORE_GROUND = {"contents", "host_time", "saved"}
CORE = {
    "session": {"machine", "trace", "runtime", "translate", "memory", "cpu"},
    "machine": {"runtime", "translate", "memory", "cpu"},
    "runtime": {"translate", "memory", "cpu"},
    "translate": {"cpu"},
    "memory": set(),
    "trace": set(),
    "cpu": set(),
}
# What one file alone may use, and what it hands on to the rest of its layer: generated code has to
# know how a TLB is laid out.
CORE_FILES = {
    "translate::layout": {"memory"},
}


# -- the package -----------------------------------------------------------------------------------


def python_uses() -> Uses:
    """The modules of the package that each of them imports."""
    modules = {_module(path): path for path in (ROOT / "rr86").rglob("*.py")}
    modules["rr86._native"] = ROOT / "rr86/_native.pyi"
    uses: Uses = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text())
        found = set(_imported(tree, package, modules))
        uses[name] = found - {name}
    return uses


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, package: str, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.split(".")[0] == "rr86")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            if base.split(".")[0] == "rr86":
                for each in node.names:
                    inner = f"{base}.{each.name}"
                    yield inner if inner in modules else base
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]
            if named in modules and named != "rr86":
                yield named


# -- the core --------------------------------------------------------------------------------------


def core_uses(source: Path) -> Uses:
    """The files of the core that each of them uses, by the paths of their modules."""
    files: dict[str, Path] = {}
    for path in sorted(source.rglob("*.rs")):
        if not re.search(r"(^|_)(tests?|testing)$", path.stem) and path.name != "lib.rs":
            parts = path.relative_to(source).with_suffix("").parts
            files["::".join(parts[:-1] if parts[-1] == "mod" else parts)] = path
    code = {name: _without_tests(path.read_text()) for name, path in files.items()}
    again = {
        name: {} if name in CORE_FILES else _re_exports(name, text, files)
        for name, text in code.items()
    }
    uses: Uses = {}
    for name, text in code.items():
        # A name that is handed on is used where it is asked for.
        own = re.sub(r"\bpub(\([^)]*\))?\s+use\s+[^;]+;", "", text)
        paths = (_absolute(path, name, files) for path in _paths(own))
        uses[name] = {_home(path, files, again) for path in paths if path} - {name, ""}
    return uses


def _without_tests(text: str) -> str:
    text = re.sub(r"//[^\n]*", "", text)
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))?\s+)?mod \w+ \{", text)[0]


def _paths(text: str) -> Iterator[str]:
    """Every path in the code, those of `use` lines written out."""
    for tree in re.findall(r"\buse\s+([^;]+);", text):
        yield from _written_out(_bare(tree))
    rest = re.sub(r"\buse\s+[^;]+;", "", text)
    yield from re.findall(r"\b(?:crate|super|self)(?:::\w+)+", rest)


def _bare(tree: str) -> str:
    return "".join(re.sub(r"\bas\s+\w+", "", tree).split())


def _written_out(tree: str) -> Iterator[str]:
    head, brace, inner = tree.partition("{")
    if not brace:
        yield tree
        return
    depth, start = 0, 0
    inner = inner[: inner.rindex("}")]
    for at, letter in enumerate([*inner, ","]):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            if inner[start:at]:
                yield from (head + each for each in _written_out(inner[start:at]))
            start = at + 1


def _absolute(path: str, module: str, files: Mapping[str, Path]) -> str:
    """A path from the root of the crate; empty for one of another crate."""
    first, _, rest = path.partition("::")
    here = module.split("::")
    if first == "crate":
        return rest
    while first == "super":
        here = here[:-1]
        first, _, rest = rest.partition("::")
        path = f"{first}::{rest}" if rest else first
    if path.startswith("self::"):
        path = path.removeprefix("self::")
    elif here == module.split("::") and f"{module}::{first}" not in files:
        return ""
    return "::".join([*here, path])


def _re_exports(name: str, text: str, files: Mapping[str, Path]) -> dict[str, str]:
    found = {}
    for tree in re.findall(r"\bpub(?:\([^)]*\))?\s+use\s+([^;]+);", text):
        for path in _written_out(_bare(tree)):
            place = _absolute(path, name, files)
            if place:
                found[place.rpartition("::")[2]] = place
    return found


def _home(path: str, files: Mapping[str, Path], again: Mapping[str, Mapping[str, str]]) -> str:
    """The file that a path leads to."""
    parts = path.split("::")
    for length in range(len(parts), 0, -1):
        module = "::".join(parts[:length])
        if module in files:
            further = again[module].get(parts[length]) if length < len(parts) else None
            return module if further is None else _home(further, files, again)
    return ""


# -- what is checked -------------------------------------------------------------------------------


def circles(uses: Uses) -> list[set[str]]:
    """The sets of files each of which leads to every other one."""
    reached = {name: _reach(name, uses) for name in uses}
    found: list[set[str]] = []
    for name in sorted(uses):
        around = {other for other in reached[name] if name in reached.get(other, ())}
        if around and not any(name in each for each in found):
            found.append(around)
    return found


def _reach(name: str, uses: Uses) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for each in uses.get(waiting.pop(), ()):
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    return seen


def between_layers(uses: Uses, separator: str, ground: Iterable[str]) -> Uses:
    """Which layer uses which, without the ground that all stand on."""
    found: Uses = {}
    for name, used in uses.items():
        layer = name.split(separator)[0]
        others = {each.split(separator)[0] for each in used} - {layer, *ground}
        found.setdefault(layer, set()).update(others)
    return found


def python_layers() -> Uses:
    uses = python_uses()
    below = {
        name.removeprefix("rr86."): {each.removeprefix("rr86.") for each in used}
        for name, used in uses.items()
        if name != "rr86"
    }
    return between_layers(below, ".", PYTHON_GROUND)


def core() -> Uses:
    return core_uses(ROOT / "native/rr86-core/src")


def test_layers_of_the_package_use_only_lower_ones() -> None:
    layers = python_layers()
    assert {layer: used for layer, used in layers.items() if layer not in PYTHON_GROUND} == PYTHON
    assert all(not layers[each] for each in PYTHON_GROUND)


def test_the_package_has_no_circle_of_files() -> None:
    assert circles(python_uses()) == []


def test_no_module_imports_the_root_of_the_package() -> None:
    # It has the public names, so whoever imported it would be in a circle with all that they need.
    assert [name for name, used in python_uses().items() if "rr86" in used] == []


def test_layers_of_the_core_use_only_what_the_table_says() -> None:
    allowed = {layer: set(used) for layer, used in CORE.items()} | {
        each: set() for each in CORE_GROUND
    }
    uses = core()
    for file, more in CORE_FILES.items():
        uses[file] = {each for each in uses[file] if each.split("::")[0] not in more}
    layers = between_layers(uses, "::", CORE_GROUND)
    assert not layers.keys() - allowed
    assert {
        layer: used - allowed[layer] for layer, used in layers.items() if used - allowed[layer]
    } == {}


def test_the_core_has_no_circle_of_files() -> None:
    assert circles(core()) == []


# -- that the readers read -------------------------------------------------------------------------


def test_uses_in_every_form_of_the_core_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mod.rs").write_text("pub mod x;\nmod y;\npub use y::Thing;\nuse crate::c;\n")
    (tmp_path / "a/x.rs").write_text("use super::{Thing, z as other};\n// use crate::d;\n")
    (tmp_path / "a/y.rs").write_text("fn f() { crate::b::g(); super::x::h() }\n")
    (tmp_path / "a/z.rs").write_text("#[cfg(test)]\nmod tests {\n use crate::d::D;\n}\n")
    (tmp_path / "b.rs").write_text("use crate::{c::{self, C}, a::Thing};\nuse std::fmt;\n")
    (tmp_path / "c.rs").write_text("pub struct C;\n")
    (tmp_path / "d.rs").write_text("use serde::c;\n")
    uses = core_uses(tmp_path)
    assert uses == {
        "a": {"c"},
        "a::x": {"a::y", "a::z"},
        "a::y": {"b", "a::x"},
        "a::z": set(),
        "b": {"a::y", "c"},
        "c": set(),
        "d": set(),
    }
    assert circles(uses) == [{"a::x", "a::y", "b"}]


def test_imports_in_every_form_of_the_package_are_found() -> None:
    text = (
        "import rr86.a.b\n"
        "from rr86.a import c, Name\n"
        "from . import d\n"
        "from .d import e\n"
        "def f():\n    from rr86.g import h\n"
        "import_module('rr86.late:name')\n"
    )
    names = ["a", "a.b", "a.c", "g", "p", "p.d", "late"]
    modules = {f"rr86.{each}": Path() for each in names}
    assert set(_imported(ast.parse(text), "rr86.p", modules)) == {
        *("rr86.a.b", "rr86.a.c", "rr86.a", "rr86.p.d", "rr86.g", "rr86.late")
    }
