"""Imports point downwards: a room of the package imports from rooms below it, none in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import planter

ROOT = Path(planter.__file__).parent
# From the bottom to the top, as docs/design.md draws them.
ORDER = [
    "machine", "arch", "kernels", "tracing", "backbones", "data", "networks", "channels", "edits",
    "costs", "training", "planting", "evolution", "study", "front", "latency", "plots", "report",
    "driver.trials", "driver.storage", "driver.proposers", "driver.checking", "driver.run_folder",
    "driver.tasks", "driver.backends", "driver.trackers", "driver.dashboard", "driver", "export",
    "cli", "__main__",
]  # fmt: skip
MOST_FILES, MOST_LINES = 14, 400
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def room_of(module: str) -> str:
    """The room of a module, both without `planter.`."""
    first, *rest = module.split(".")
    inner = ".".join([first, *rest[:1]])
    return inner if inner in ORDER else first


def imported(file: Path) -> set[str]:
    """What a file imports of planter, also inside functions, but not for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}".removeprefix("planter.")
                found.add(f"planter.{inner}" if inner in MODULES else node.module)
    return {name.removeprefix("planter.") for name in found if name.startswith("planter.")}


def test_every_file_stands_in_a_room():
    rooms = {room_of(module_of(file)) for file in FILES if file.parent != ROOT}
    rooms |= {module_of(file) for file in FILES if file.parent == ROOT} - {""}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_from_rooms_below_its_own(file):
    module = module_of(file)
    if module == "":  # the public names, wherever they stand
        return
    mine = ORDER.index(room_of(module))
    above = {name for name in imported(file) if ORDER.index(room_of(name)) > mine}
    assert above == set()


def test_no_files_import_each_other_in_a_circle():
    graph = {module_of(f): imported(f) & MODULES for f in FILES}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for other in sorted(graph[module] - {module}):
            walk(other, (*path, module))
        done.add(module)

    for module in sorted(graph):
        if module:
            walk(module, ())


def test_files_and_folders_are_of_a_size_to_be_read():
    long = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}
    folders = {file.parent for file in FILES}
    full = {str(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in full.items() if count > MOST_FILES} == {}
