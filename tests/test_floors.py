"""The house rules, read off the source: floors, sizes, and what is public."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sightline as sl

HOUSE = Path(sl.__file__).parent
# A file never imports from a higher floor. `methods` stands for the whole folder.
FLOORS = (
    ("errors", "atomic", "image", "video", "render", "plates", "gridding", "pages", "result", "fitted", "knobs", "catalog"),
    (
        "weights",
        "sightnet",
        "body",
        "capture",
        "outputs",
        "frugal",
        "packed",
        "nicknames",
        "published",
        "pairing",
        "model",
        "zoo",
        "rules",
        "geometry",
        "receptive",
        "recipe",
    ),
    (
        "memory",
        "objective",
        "toward",
        "formula",
        "parameterize",
        "transform",
        "veil",
        "mosaic",
        "optimizers",
        "regularize",
        "ascend",
        "attacks",
        "cones",
        "local",
        "localize",
        "windows",
        "incremental",
        "perceptual",
        "presets",
        "networks",
        "exemplar",
        "scans",
        "color",
        "lbfgs",
        "paint",
        "painting",
        "pooling",
        "borders",
        "spectrum",
        "tiles",
        "networks",
        "candidates",
        "nearest",
        "coordinates",
    ),
    ("methods",),
    ("replay", "options", "tour", "progress", "subjects", "commands", "scanning", "stylizer_commands", "cli", "__main__", "__init__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# The way up that is allowed, inside a function only: the catalogue is filled when it is asked for.
LAZY = {("catalog", "methods")}
MOST_LINES, MOST_BODY = 250, 40
# What may be longer, and why.
LONG_FILES = {
    "image.py": "the only file that knows codecs; every refusal is spelt out",
}
LONG_FUNCTIONS: dict[str, str] = {}
TALKERS = ("cli.py", "commands.py", "scanning.py", "stylizer_commands.py")

FILES = sorted(path for path in HOUSE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    """The name under which a file stands in the table of floors."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The rooms that a file imports from, each with whether that happens when the file is loaded."""
    late = {
        inner
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    package = ("sightline", *path.relative_to(HOUSE).parts[:-1])
    for node in ast.walk(tree(path)):
        found: list[tuple[str, ...]] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            found = [module] if len(module) > 1 else [(*module, item.name) for item in node.names]
        elif isinstance(node, ast.Import):
            found = [tuple(item.name.split(".")) for item in node.names]
        for parts in found:
            if parts[0] == "sightline":
                yield parts[1] if len(parts) > 1 else "__init__", node not in late


@every_file
def test_has_a_floor(path: Path) -> None:
    assert room(path) in FLOOR, f"{path.relative_to(HOUSE)} is on no floor: add {room(path)!r} to FLOORS in {Path(__file__).name}"


@every_file
def test_imports_nothing_from_above(path: Path) -> None:
    own = FLOOR.get(room(path), len(FLOORS))
    up = {(name, early) for name, early in imported(path) if FLOOR.get(name, len(FLOORS)) > own}
    assert not {name for name, early in up if early or (room(path), name) not in LAZY}


def test_imports_go_round_nowhere() -> None:
    needs: dict[str, set[str]] = {}
    for path in FILES:
        needs.setdefault(room(path), set()).update(name for name, early in imported(path) if early and name != room(path))
    while free := [name for name, wanted in needs.items() if not wanted & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, "these import each other"


def test_the_eye_of_this_test_is_open() -> None:
    assert {name for name, _ in imported(HOUSE / "methods" / "analytical" / "guided.py")} >= {
        "render",
        "rules",
        "catalog",
        "errors",
        "model",
        "result",
    }
    assert ("methods", False) in set(imported(HOUSE / "catalog.py"))


# ── sizes and manners ──


@every_file
def test_is_short(path: Path) -> None:
    assert lines(path) <= MOST_LINES or path.name in LONG_FILES, f"{path.name} has {lines(path)} lines; {MOST_LINES} are the most"


@every_file
def test_functions_are_short(path: Path) -> None:
    long = {name: length for name, length in functions(path).items() if length > MOST_BODY}
    assert long.keys() <= LONG_FUNCTIONS.keys(), long


def test_exceptions_are_still_needed() -> None:
    assert LONG_FILES.keys() <= {path.name for path in FILES if lines(path) > MOST_LINES}
    assert LONG_FUNCTIONS.keys() <= {name for path in FILES for name, length in functions(path).items() if length > MOST_BODY}


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> dict[str, int]:
    """Body lines of each function of a file, as FILE:NAME."""
    return {f"{path.name}:{node.name}": body_lines(node) for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)}


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function below its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@every_file
def test_minds_its_manners(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
    assert path.name in TALKERS or not calls & {"print", "breakpoint", "input"}
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert is no check, -O removes it"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: a bare except"


@every_file
def test_says_what_it_is_about(path: Path) -> None:
    assert ast.get_docstring(tree(path))
    assert path.stem not in ("utils", "base", "helpers", "core", "misc", "common")


# ── what is public ──

STUB = ast.parse((HOUSE / "__init__.pyi").read_text(encoding="utf-8"))
PUBLIC = {item.asname or item.name: node.module for node in STUB.body if isinstance(node, ast.ImportFrom) for item in node.names}


def test_stub_is_in_order() -> None:
    lines = [(node.module, item.name) for node in STUB.body if isinstance(node, ast.ImportFrom) for item in node.names]
    assert lines == sorted(lines)
    assert len(STUB.body) == len(lines) == len(PUBLIC), "one name a line, each once, and nothing else"


def test_all_is_the_stub() -> None:
    assert sorted(sl.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(sl))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(sl, name)
    assert value is getattr(importlib.import_module(f"sightline.{PUBLIC[name]}"), name)
    assert inspect.getdoc(value)
    if not inspect.isclass(value):
        return
    for member, function in vars(value).items():
        if inspect.isfunction(function) and not member.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{member}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(sl, name))])
def test_public_functions_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(sl, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())
