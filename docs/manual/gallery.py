"""The pictures of the examples: what a script writes into docs/pictures the manual shows.

The scripts in gallery/ are run as `make gallery` runs them, except that the pictures of the README
stay as they are.
"""

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sightline as sl

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
DECLARATIONS = ROOT / "src" / "sightline" / "registry" / "declarations.json"

write_file = sl.write
_recorded: list[tuple[Any, str]] = []


def record_pictures(_settings: Mapping[str, Any], script: str, when: str) -> None:
    """Before an example: catches what it writes for the README; after it: no longer does."""
    _recorded.clear()
    if when == "before":
        # Sphinx-gallery gives an example no `__file__`; the scripts find the project's root by it.
        builtins.__file__ = str(ROOT / "gallery" / Path(script).name)
        sl.write = write_or_record
    else:
        sl.write = write_file


def write_or_record(picture: Any, path: str | Path) -> None:
    """Stands in for `sl.write` in an example."""
    if Path(path).parent in (PICTURES, ROOT / "out"):
        _recorded.append((picture, Path(path).name))
    else:
        write_file(picture, path)


class PictureScraper:
    """Gives sphinx-gallery the recorded pictures, as figures one below the other."""

    def __repr__(self) -> str:
        return "PictureScraper"  # part of what decides whether an example is run again

    def __call__(
        self, _block: object, variables: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> str:
        from sphinx_gallery.scrapers import figure_rst

        paths: list[str] = []
        for (picture, _), path in zip(_recorded, variables["image_path_iterator"], strict=False):
            write_file(picture, path)
            paths.append(path)
        _recorded.clear()
        return figure_rst(paths, settings["src_dir"])


def sort_by_lecture(file_name: str) -> str:
    """Orders the examples as the lecture has their methods; others come last."""
    methods = json.loads(DECLARATIONS.read_text(encoding="utf-8"))["methods"]
    names = [method["name"] for method in methods]
    name = Path(file_name).stem
    position = names.index(name) if name in names else len(names)
    return f"{position:03} {name}"
