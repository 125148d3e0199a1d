"""The directions in which the package imports: down only, without circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from captum.attr import Attribution

import captum_mllm
from captum_mllm import attr

ROOT = Path(captum_mllm.__file__).parent
#: Each room and those that it may import from, beside itself.
GROUND = {"_captum", "_options", "_probability", "_transformers"}
ALLOWED = {
    "_captum": set(),
    "_options": set(),
    "_probability": {"_captum"},
    "_transformers": set(),
    "demo": set(),
    "datasets": GROUND,
    "metrics": GROUND,
    "models": GROUND | {"demo"},
    "visualization": GROUND | {"models"},
    "attr": GROUND | {"metrics", "models"},
    "explain": GROUND | {"attr", "metrics", "models", "visualization"},
    "evaluation": GROUND
    | {"attr", "datasets", "demo", "explain", "metrics", "models", "visualization"},
    "demo.training": GROUND | {"attr", "datasets", "demo", "explain", "metrics", "models"},
    "commands": GROUND
    | {"attr", "datasets", "demo", "evaluation", "explain", "metrics", "models", "visualization"},
    "cli": {"commands"},
}


def _files() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = _files()


def _imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Names of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("captum_mllm"):
            assert node.level == 0, f"{path}: relative import"
            base = (node.module or "").removeprefix("captum_mllm").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                if not base and alias.name in captum_mllm.__all__:
                    # The package imports a public name from its room when it is asked for it.
                    inner = getattr(captum_mllm, alias.name).__module__.removeprefix("captum_mllm.")
                if inner in FILES or base:
                    yield (inner if inner in FILES else base), node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("captum_mllm."):
                    yield alias.name.removeprefix("captum_mllm."), node


def _room(name: str) -> str:
    if name.startswith("demo.training"):
        return "demo.training"
    return name.split(".")[0]


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("", "__main__")])
def test_a_file_imports_downwards_only(name: str) -> None:
    room = _room(name)
    assert room in ALLOWED, f"{name}: write down where the room {room!r} may import from"
    upwards = {
        target
        for target, _ in _imports(FILES[name])
        if _room(target) != room and _room(target) not in ALLOWED[room]
    }
    assert not upwards, f"{name} imports {sorted(upwards)}"


def test_no_files_import_each_other() -> None:
    graph = {
        name: {target for target, _ in _imports(path) if target in FILES and target != name}
        for name, path in FILES.items()
        if name
    }
    # Without what imports nothing that is left, again and again: circles remain.
    while leaves := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in leaves:
            del graph[name]
    # What only leads into a circle is not part of it.
    while roots := [name for name in graph if not any(name in graph[other] for other in graph)]:
        for name in roots:
            del graph[name]
    assert not graph, f"files that import each other: {sorted(graph)}"


def test_type_checking_hides_no_import_of_the_package() -> None:
    hidden = []
    # The package itself imports its rooms when they are used.
    for name, path in list(FILES.items())[1:]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                inner = [ast.dump(each) for each in node.body]
                if any("captum_mllm" in each for each in inner):
                    hidden.append(name)
    assert not hidden


def test_flags_of_methods_are_declared_and_not_looked_up_by_name() -> None:
    flags = {"reads_states_only", "leaves_states", "weighs_text", "takes_gradients"}
    looked_up = [
        name
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("getattr", "hasattr")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in flags
    ]
    assert not looked_up


def test_no_method_is_told_by_its_class_outside_of_the_contract() -> None:
    methods = {
        name
        for name in attr.__all__
        if isinstance(getattr(attr, name), type) and issubclass(getattr(attr, name), Attribution)
    }
    assert "TokenAttribution" in methods
    told = [
        (name, ast.unparse(node))
        for name, path in FILES.items()
        if name != "attr.base"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        and methods & {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
    ]
    assert not told
