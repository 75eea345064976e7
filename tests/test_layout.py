"""The rules of the house that a program can check (CONTRIBUTING.md has all of them)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "rankwise"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [path for path in MODULES if path.name != "__init__.py"]

# From the ground up. A module imports from its own folder and from lower floors only.
FLOORS = (
    ("escaping", "_version"),
    ("errors",),
    ("checks", "formatting"),
    ("settings",),
    ("decide", "lora", "tasks"),
    ("models", "integrations"),
    ("engine",),
    ("planning", "store"),
    ("strategies", "exports", "report"),
    ("analysis", "shrinking"),
    ("trainers",),
    ("sweeps",),
    ("cli", "__init__"),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

NO_TEST_FILE = {"__main__", "_version", "config"}  # entry points, a constant, declarations
LONGEST_FILE = 400
LONGEST_LINE = 100


def room(path: Path) -> str:
    """Return the first folder below the package, or the name of a module at its root."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and folder of every import inside the package, also those for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "rankwise":
                names = [f"rankwise.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "rankwise":
                yield node.lineno, rest.partition(".")[0] or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    here = room(path)
    upwards = [
        f"line {line}: {there}"
        for line, there in imported_rooms(path)
        if there != here and FLOOR[there] >= FLOOR[here]
    ]
    assert not upwards, (
        f"{here} (floor {FLOOR[here]}) imports from its own floor or above: {upwards}"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_test_file_of_its_name(path: Path) -> None:
    if path.stem in NO_TEST_FILE:
        return
    relative = path.relative_to(PACKAGE)
    expected = TESTS / relative.parent / f"test_{relative.name}"
    assert expected.exists(), f"{relative} has no {expected.relative_to(TESTS.parent)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_FILE
    assert max(map(len, lines), default=0) <= LONGEST_LINE


@cache
def defined_names() -> set[str]:
    """Return every function, class, variable and attribute name that the package defines."""
    names = {"_replace", "_asdict"}  # public methods of named tuples
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_live_in_models_compat_alone(path: Path) -> None:
    """A private name (leading underscore) that the package does not define is a library's."""
    if path.parent == PACKAGE / "models" and path.stem.startswith("compat"):
        return
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = node.attr
            if name.startswith("_") and not name.startswith("__") and name not in defined_names():
                found.append(f"line {node.lineno}: .{name}")
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("rankwise"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [
                f"line {node.lineno}: {part}"
                for part in parts
                if part.startswith("_") and part != "__future__"
            ]
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_of_another_library_is_replaced_for_the_process(path: Path) -> None:
    """No mocks, no stand-in modules, no exit that skips clean-up, no frozen garbage collector."""
    text = path.read_text()
    for banned in ("unittest.mock", "sys.modules[", "os._exit", "gc.freeze", "gc.disable"):
        assert banned not in text
