"""What a bug report needs to know: versions, devices, threads, fast paths, the cache, extras."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from sightline.app.machine.cache import list_cache_entries
from sightline.app.machine.sharing import SHARING_VARIABLES
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.files import get_cache_folder

MAIN_PACKAGES = ("sightline", "torch", "torchvision", "timm")

# Variables of the environment that change what is done, or how fast.
OTHER_VARIABLES = ("SIGHTLINE_PORTABLE", "SIGHTLINE_DATA", "SIGHTLINE_WEIGHTS", "XDG_CACHE_HOME")

# Extras that are for work on the package itself.
DEVELOPER_EXTRAS = ("test", "bench", "docs")

# «ray[data]>=2.40; extra == 'cluster'»: the package, and the extra that asks for it.
EXTRA_REQUIREMENT = re.compile(r"([\w.-]+).*;.*extra == ['\"](\w+)['\"]")


@dataclass(frozen=True)
class MachineFacts:
    """What this machine has.

    Attributes:
        versions: Of the main packages by name; None for one that is not installed.
        devices: Those that torch can use, with their names.
        threads: That torch uses for one operation; None where torch can't be imported.
        fast_paths: Whether each fast operation is used, by name.
        problem: Why torch can't be imported, or empty.
        extras: The packages of each extra that are not installed; empty for an extra that is there.
    """

    python: str
    executable: str
    system: str
    processors: int
    versions: dict[str, str | None]
    devices: dict[str, str]
    threads: int | None
    fast_paths: dict[str, bool]
    problem: str
    environment: dict[str, str]
    cache: dict[str, Any]
    extras: dict[str, list[str]]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)


def collect_machine_facts() -> MachineFacts:
    """Looks at everything. Imports torch, which takes seconds."""
    devices: dict[str, str] = {}
    fast_paths: dict[str, bool] = {}
    threads, problem = None, ""
    try:
        threads, devices, fast_paths = _ask_torch()
    except (ImportError, OSError) as error:  # OSError: a library of torch's that is missing
        problem = f"torch can't be imported ({get_first_error_line(error)})"
    variables = (*SHARING_VARIABLES, *OTHER_VARIABLES)
    return MachineFacts(
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        processors=os.cpu_count() or 1,
        versions={name: find_version(name) for name in MAIN_PACKAGES},
        devices=devices,
        threads=threads,
        fast_paths=fast_paths,
        problem=problem,
        environment={name: os.environ[name] for name in variables if name in os.environ},
        cache=_describe_cache(),
        extras=find_missing_packages(),
    )


def format_machine_facts(facts: MachineFacts) -> list[str]:
    """The facts as lines for a terminal."""
    versions = [f"{name} {version or 'not installed'}" for name, version in facts.versions.items()]
    fast_paths = [f"{name} {'on' if is_on else 'off'}" for name, is_on in facts.fast_paths.items()]
    rows = [
        ("versions", f"{', '.join(versions)}, Python {facts.python}"),
        ("Python", facts.executable),
        ("system", facts.system),
        ("devices", ", ".join(f"{key} ({name})" for key, name in facts.devices.items()) or "none"),
        ("threads", f"{facts.threads or 'none'} of {facts.processors} processors"),
        ("fast paths", ", ".join(fast_paths) or "none"),
        ("environment", ", ".join(f"{key}={text}" for key, text in facts.environment.items())),
        ("cache", _format_cache(facts.cache)),
        ("extras", "; ".join(_format_extra(*extra) for extra in facts.extras.items())),
        ("problem", facts.problem),
    ]
    return [f"{name:<12} {text}" for name, text in rows if text]


def find_version(package: str) -> str | None:
    """The installed version of a package, read without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_missing_packages() -> dict[str, list[str]]:
    """The packages of each of our extras that are not installed, by the extra's name."""
    missing: dict[str, list[str]] = {}
    for package, extra in _iterate_extra_requirements():
        names = missing.setdefault(extra, [])
        if find_version(package) is None:
            names.append(package)
    return missing


def _iterate_extra_requirements() -> Iterator[tuple[str, str]]:
    """Each package of an extra for users, with the extra."""
    for requirement in requires("sightline") or ():
        match = EXTRA_REQUIREMENT.match(requirement)
        if match and match[2] not in DEVELOPER_EXTRAS:
            yield match[1], match[2]


def _ask_torch() -> tuple[int, dict[str, str], dict[str, bool]]:
    """Threads, devices by their names, and the fast operations that are used."""
    from typing import get_args

    import torch

    from sightline.models.overrides.fast_operations import FastOperation, is_available

    devices = {"cpu": platform.processor() or platform.machine()}
    for number in range(torch.cuda.device_count()):
        devices[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple"
    fast_paths = {operation: is_available(operation) for operation in get_args(FastOperation)}
    fast_paths["oneDNN"] = torch.backends.mkldnn.is_available()
    return torch.get_num_threads(), devices, fast_paths


def _describe_cache() -> dict[str, Any]:
    folder = str(get_cache_folder())
    try:
        entries = list_cache_entries()
    except SightlineError as error:
        return {"folder": folder, "problem": str(error)}
    return {"folder": folder, "entries": len(entries), "bytes": sum(e.size for e in entries)}


def _format_cache(cache: dict[str, Any]) -> str:
    if "problem" in cache:
        return str(cache["problem"])
    return f"{cache['folder']}, {cache['entries']} entries, {cache['bytes'] / 1e6:.1f} MB"


def _format_extra(extra: str, missing: list[str]) -> str:
    return f"{extra} lacks {', '.join(missing)}" if missing else f"{extra} is there"
