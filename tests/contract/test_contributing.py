"""What CONTRIBUTING.md names is there: files, folders, functions and classes."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

import sightline as sl

SOURCE = Path(sl.__file__).parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
TERMS = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
# Paths are relative to one of these; the walk of a scan is relative to `data`.
FOLDERS = (ROOT, SOURCE, SOURCE / "data", SOURCE / "models", SOURCE / "app", SOURCE / "optim")
FOLDERS += (SOURCE / "images", SOURCE / "generators", SOURCE / "methods")
PATHS = [
    term
    for term in TERMS
    if re.fullmatch(r"[\w./]+(/|\.pyi?|\.md)", term)
    and not re.search(r"\b[A-Z]\b|NAME|TOPIC", term)
]
NAMES = [
    term
    for term in TERMS
    if re.fullmatch(r"_?[A-Za-z]\w+(\.\w+)?", term)
    and not re.fullmatch(r"[A-Z]+", term)
    and re.search(r"[a-z]_[a-z]|[a-z][A-Z]|\.", term)
    and term not in PATHS
]


def list_defined_names() -> set[str]:
    """Every function, class, constant and type that the package defines."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def test_the_page_names_enough_to_be_a_map() -> None:
    assert len(PATHS) > 40
    assert len(NAMES) > 30


@pytest.mark.parametrize("path", PATHS)
def test_each_path_is_there(path: str) -> None:
    assert any((folder / path).exists() for folder in FOLDERS)


def test_each_function_and_class_is_defined() -> None:
    defined = list_defined_names()
    missing = [name for name in NAMES if not set(name.split(".")) <= defined | {"sl"}]
    assert missing == []


def test_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    commands = set(re.findall(r"(?:`|^)make ([\w-]+)", TEXT, flags=re.MULTILINE))
    assert {"check", "test-all"} <= commands <= targets
