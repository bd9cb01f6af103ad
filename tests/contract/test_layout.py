"""The layout, read off the source.

Who may import whom, how much a folder holds, and what is public.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sightline as sl

SOURCE = Path(sl.__file__).parent
TESTS = Path(__file__).parents[1]
# Lowest first. A package imports only from those on a lower floor, or from itself.
FLOORS = (
    ("errors", "process"),
    ("images",),
    ("registry",),
    ("models",),
    ("data", "optim"),
    ("generators",),
    ("methods",),
    ("app",),
    ("__init__", "__main__"),
)
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}
MAX_ENTRIES = 10
# Only a terminal's commands print.
MAY_PRINT = "app/cli"
# Not to be had on every system; no part of the main job may need them when it is loaded.
POSIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty", "pty"}
# Libraries that one file each imports, so that another may take their place: LanceDB, and Lance,
# which only writes on clusters.
ONLY_IMPORTED_BY = {"lancedb": "data/lance.py", "lance": "data/store/fragments.py"}

# Files of more lines than this have a test of their own name.
MAX_UNTESTED_LINES = 40
# Files without tests of their own name, and the tests that run them instead.
TESTED_THROUGH = {
    "images/decode/pixels.py": "images/decode/test_picture.py",
    "images/decode/center_crop.py": "images/decode/test_picture.py",
    "models/layers/attention/weights.py": "methods/attribution/test_attention.py",
    "models/layers/attention/windows.py": "methods/attribution/test_attention.py",
    "models/tracing/occlusion_pass.py": "models/tracing/test_incremental.py",
}

FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@cache
def parse_file(file: str) -> ast.Module:
    """The syntax of a file of the package."""
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


def find_module(parts: tuple[str, ...]) -> str | None:
    """The file of a module of the package, or None where the name is not a module's."""
    candidates = ("/".join(parts) + ".py", "/".join((*parts, "__init__.py")))
    return next((file for file in candidates if file in FILES), None)


def iterate_imports(file: str) -> Iterator[str]:
    """Every file of the package that `file` imports, at any depth of its code."""
    package = file.split("/")[:-1]
    for node in ast.walk(parse_file(file)):
        modules: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["sightline", *package[: len(package) - node.level + 1]] if node.level else []
            module = (*base, *(node.module or "").split("."))
            modules = [(*module, alias.name) for alias in node.names]
        for module in modules:
            if module[0] != "sightline":
                continue
            target = find_module(module[1:]) or find_module(module[1:-1])
            if target is not None and target != file:
                yield target


def top_package(file: str) -> str:
    """The name under which a file stands in the table of floors."""
    return file.split("/", maxsplit=1)[0].removesuffix(".py")


def folder_of(file: str) -> str:
    """The folder of a file; a file at the top stands for itself."""
    folder, _, name = file.rpartition("/")
    return folder or name


def build_graph() -> dict[str, set[str]]:
    """Which file imports which."""
    return {file: set(iterate_imports(file)) for file in FILES}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of one circle of a graph, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_package_is_on_a_floor() -> None:
    assert {top_package(file) for file in FILES} == set(FLOOR)


def test_imports_go_down() -> None:
    upward = [
        f"{file} imports {target}"
        for file in FILES
        for target in iterate_imports(file)
        if top_package(target) != top_package(file)
        and FLOOR[top_package(target)] >= FLOOR[top_package(file)]
    ]
    assert upward == []


def test_no_circle_of_files() -> None:
    assert find_circle(build_graph()) == []


@pytest.mark.parametrize("depth", [1, 9], ids=["packages", "folders"])
def test_no_circle_of_folders(depth: int) -> None:
    graph: dict[str, set[str]] = {}
    for file, targets in build_graph().items():
        if top_package(file) in ("__init__", "__main__"):
            continue
        folder = "/".join(folder_of(file).split("/")[:depth])
        # A package's own __init__ only holds its table of contents.
        others = {
            "/".join(folder_of(target).split("/")[:depth])
            for target in targets
            if not target.endswith("__init__.py")
        }
        graph.setdefault(folder, set()).update(others - {folder})
    assert find_circle(graph) == []


def test_the_circle_finder_finds_circles() -> None:
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_folder_holds_too_much() -> None:
    entries: dict[str, set[str]] = {}
    for file in FILES:
        parts = file.split("/")
        for depth, name in enumerate(parts):
            if not name.startswith("__"):
                entries.setdefault("/".join(parts[:depth]) or ".", set()).add(name)
    assert {
        folder: len(names) for folder, names in entries.items() if len(names) > MAX_ENTRIES
    } == {}


def find_in_files(is_wrong: Callable[[str, ast.AST], bool]) -> list[str]:
    """Where the package has such a piece of syntax: «file:line»."""
    return [
        f"{file}:{getattr(node, 'lineno', 1)}"
        for file in FILES
        for node in ast.walk(parse_file(file))
        if is_wrong(file, node)
    ]


def test_only_the_terminal_prints() -> None:
    def prints(file: str, node: ast.AST) -> bool:
        return (
            not file.startswith(MAY_PRINT)
            and isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("print", "breakpoint", "input")
        )

    assert find_in_files(prints) == []


def test_no_assert_is_a_check() -> None:
    """`python -O` removes it."""
    assert find_in_files(lambda _, node: isinstance(node, ast.Assert)) == []


def test_no_except_is_bare() -> None:
    def is_bare(_: str, node: ast.AST) -> bool:
        return isinstance(node, ast.ExceptHandler) and node.type is None

    assert find_in_files(is_bare) == []


def test_every_file_says_what_it_is_about() -> None:
    assert [file for file in FILES if not ast.get_docstring(parse_file(file))] == []
    empty_names = {"utils", "base", "helpers", "core", "misc", "common"}
    assert [file for file in FILES if Path(file).stem in empty_names] == []


def test_nothing_posix_only_is_imported_when_loaded() -> None:
    def needs_posix(file: str, node: ast.AST) -> bool:
        if node not in parse_file(file).body:
            return False
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        return bool(POSIX_ONLY & set(names))

    assert find_in_files(needs_posix) == []


def test_text_files_are_read_and_written_as_utf8() -> None:
    """Without an encoding Windows takes its own."""

    def lacks_encoding(_: str, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("read_text", "write_text")
            and "encoding" not in {keyword.arg for keyword in node.keywords}
        )

    assert find_in_files(lacks_encoding) == []


def imports_library(file: str, library: str) -> bool:
    """Whether a file imports a library or a part of it, at any depth of its code."""
    names: list[str] = []
    for node in ast.walk(parse_file(file)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return any(name.split(".")[0] == library for name in names)


@pytest.mark.parametrize("library", ONLY_IMPORTED_BY)
def test_one_file_imports_the_library(library: str) -> None:
    users = [file for file in FILES if imports_library(file, library)]
    assert users == [ONLY_IMPORTED_BY[library]]


def has_own_test(file: str) -> bool:
    folder, _, name = file.rpartition("/")
    return (TESTS / folder / f"test_{name}").exists()


def count_lines(file: str) -> int:
    return len((SOURCE / file).read_text(encoding="utf-8").splitlines())


def test_every_long_file_has_a_test_of_its_name() -> None:
    untested = [
        file
        for file in FILES
        if not Path(file).name.startswith("__")
        and not has_own_test(file)
        and not file.startswith(tuple(TESTED_THROUGH))
        and count_lines(file) > MAX_UNTESTED_LINES
    ]
    assert untested == []


@pytest.mark.parametrize("place", TESTED_THROUGH)
def test_who_tests_instead_is_there_and_needed(place: str) -> None:
    assert (TESTS / TESTED_THROUGH[place]).exists()
    assert any(file.startswith(place) and not has_own_test(file) for file in FILES), (
        f"every file of {place} has a test of its name: remove it from TESTED_THROUGH"
    )


# ── what is public ──

STUB = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
PUBLIC = {
    alias.name: node.module
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_stub_is_in_order() -> None:
    lines = [
        (node.module or "", alias.name)
        for node in STUB.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert lines == sorted(lines)
    assert len(STUB.body) == len(lines) == len(PUBLIC), (
        "one name a line, each once, and nothing else"
    )


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
    assert all(
        parameter.annotation is not inspect.Parameter.empty
        for parameter in signature.parameters.values()
    )
