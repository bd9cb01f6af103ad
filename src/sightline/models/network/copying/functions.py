"""Copies functions with what they hold besides their code: closure, defaults, globals.

A hook that a network sets on its own layers usually holds the network in its closure. Its copy has
to hold the copy of the network. `copy.deepcopy` leaves functions as they are.
"""

import dis
import functools
import sysconfig
from collections.abc import Iterator
from functools import cache
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

from sightline.models.network.copying.values import Copier, is_immutable

_BOUND_BUILTIN_TYPES = (BuiltinMethodType, MethodWrapperType)

_LIBRARY_FOLDERS = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"])
_ASSIGNING_OPERATIONS = ("STORE_GLOBAL", "DELETE_GLOBAL")


def list_function_values(function: FunctionType) -> list[object]:
    """All that a function can reach without its arguments, as far as its own code says."""
    values: list[object] = []
    for cell in function.__closure__ or ():
        # A cell is empty until its variable is assigned.
        values += read_cell(cell)
    values += function.__defaults__ or ()
    values += (function.__kwdefaults__ or {}).values()
    values += vars(function).values()
    values += read_own_globals(function).values()
    return values


def read_cell(cell: Any) -> list[object]:
    """The value of a closure's cell, or nothing for one that is empty."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def read_own_globals(function: FunctionType) -> dict[str, object]:
    """Global variables that a user's function names, by name. A library's are its own matter.

    In a script or a notebook a hook reaches the network, and the dict that it fills, through them.
    """
    if is_library_code(function.__code__):
        return {}
    names = list_global_names(function.__code__)
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


@cache
def is_library_code(code: CodeType) -> bool:
    """Whether code is part of Python or of an installed package."""
    return any(folder in code.co_filename for folder in _LIBRARY_FOLDERS)


@cache
def list_global_names(code: CodeType) -> tuple[str, ...]:
    """Names that code, or a function defined in it, looks up as globals."""
    names: dict[str, None] = {}
    for inner in iterate_code(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname in ("LOAD_GLOBAL", *_ASSIGNING_OPERATIONS):
                names[instruction.argval] = None
    return tuple(names)


def assigns_globals(function: FunctionType) -> bool:
    """Whether a user's function assigns to global variables."""
    code = function.__code__
    return not is_library_code(code) and contains_global_assignment(code)


@cache
def contains_global_assignment(code: CodeType) -> bool:
    """Whether code, or a function defined in it, assigns to a global variable."""
    for inner in iterate_code(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname in _ASSIGNING_OPERATIONS:
                return True
    return False


def iterate_code(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from iterate_code(constant)


def needs_copy(value: object, visited: set[int] | None = None) -> bool:
    """Whether a value, or anything that it holds, may be changed or may be the network's.

    A function without such values stays as it is. Networks compare functions: `act is F.relu`.
    """
    visited = set() if visited is None else visited
    if is_immutable(value) or id(value) in visited:
        return False
    visited.add(id(value))
    if isinstance(value, FunctionType):
        # Another function may write to a variable that this one only reads.
        may_change = not is_library_code(value.__code__) and bool(value.__closure__)
        held_values = list_function_values(value)
        return (
            may_change
            or assigns_globals(value)
            or any(needs_copy(held, visited) for held in held_values)
        )
    if isinstance(value, _BOUND_BUILTIN_TYPES):
        return is_bound_to_object(value)
    if type(value) in (tuple, frozenset):
        items: Any = value
        return any(needs_copy(item, visited) for item in items)
    return True


def is_bound_to_object(function: Any) -> bool:
    """Whether a method written in C belongs to an object, rather than to a module or a class."""
    owner = getattr(function, "__self__", None)
    return owner is not None and not isinstance(owner, (ModuleType, type))


def copy_function(function: Any, copier: Copier) -> Any:
    """A function with the same code and copies of what it holds; uncompiled, if it is compiled."""
    compiled_from = getattr(function, "_torchdynamo_orig_callable", None)
    if compiled_from is not None:
        return copier.copy_value(compiled_from)
    if not needs_copy(function):
        return function
    cells = function.__closure__ or ()
    new_cells = [cell for cell in cells if id(cell) not in copier.memo]
    for cell in new_cells:
        copier.remember_copy(cell, CellType())
    copied = FunctionType(
        function.__code__,
        get_copied_globals(function, copier),
        function.__name__,
        closure=tuple(copier.memo[id(cell)] for cell in cells),
    )
    # A function may hold itself, as a recursive one does.
    copier.remember_copy(function, copied)
    functools.update_wrapper(copied, function, updated=())
    vars(copied).clear()
    vars(copied).update(copier.copy_value(vars(function)))
    copied.__defaults__ = copier.copy_value(function.__defaults__)
    copied.__kwdefaults__ = copier.copy_value(function.__kwdefaults__)
    for cell in new_cells:
        fill_copied_cell(cell, copier)
    if copied.__globals__ is not function.__globals__:
        for name, value in read_own_globals(function).items():
            copied.__globals__[name] = copier.copy_value(value)
    return copied


def get_copied_globals(function: FunctionType, copier: Copier) -> dict[str, Any]:
    """Globals for a copied function. The copies of all functions of one file have the same."""
    own_globals = read_own_globals(function)
    is_changed = assigns_globals(function) or any(map(needs_copy, own_globals.values()))
    if not is_changed:
        return function.__globals__
    key = id(function.__globals__)
    if key not in copier.copied_globals:
        copier.copied_globals[key] = dict(function.__globals__)
    return copier.copied_globals[key]


def copy_cell(cell: CellType, copier: Copier) -> CellType:
    """The cell of a variable that several functions may have in common."""
    copied = copier.remember_copy(cell, CellType())
    fill_copied_cell(cell, copier)
    return copied


def fill_copied_cell(cell: CellType, copier: Copier) -> None:
    """Gives a cell's copy the copy of its value."""
    for value in read_cell(cell):
        copier.memo[id(cell)].cell_contents = copier.copy_value(value)


def copy_method(method: Any, copier: Copier) -> Any:
    """A method bound to the copy of its object."""
    return MethodType(copier.copy_value(method.__func__), copier.copy_value(method.__self__))


def copy_bound_builtin(method: Any, copier: Copier) -> Any:
    """A method written in C (`list.append`) of the copy of its object."""
    if not is_bound_to_object(method):
        return method
    return getattr(copier.copy_value(method.__self__), method.__name__)


def copy_cached_function(function: Any, copier: Copier) -> Any:
    """A function of `functools.lru_cache` with an empty cache, unless it holds nothing."""
    copied = copier.copy_value(function.__wrapped__)
    if copied is function.__wrapped__:
        return function
    return functools.lru_cache(**function.cache_parameters())(copied)
