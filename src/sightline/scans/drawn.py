"""An even draw from a collection that is too large to be passed whole where someone waits for it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..atomic import replacing
from ..errors import SightlineError
from .collection import Files, collect
from .layout import in_cache


@dataclass(frozen=True)
class Drawn:
    """What to pass in place of a collection: itself, or a text list of some of its files; how many, of how many."""

    source: str
    count: int
    of: int
    name: str

    @property
    def words(self) -> str:
        """How many of how many, of what."""
        return (
            f"the {self.of:,} images of {self.name}"
            if self.count == self.of
            else f"{self.count:,} of the {self.of:,} images of {self.name}, evenly drawn"
        )


def drawn(source: str, most: int) -> Drawn:
    """At most `most` files of a collection, evenly spread over its order, as a list in the user's cache; all of it if it is no larger.

    Raises SightlineError where there is nothing, and for archives with more images than that, since a list can't name a part of one.
    """
    found, name = collect(source), os.path.basename(os.path.abspath(source)) or source
    if len(found) <= most:
        return Drawn(source, len(found), len(found), name)
    if not isinstance(found, Files):
        raise SightlineError(f"{source} holds {len(found):,} images in archives; give at most {most:,}, or a folder of image files")
    chosen = [round(number * (len(found) - 1) / (most - 1)) for number in range(most)]
    lines = [line for position in chosen if (line := told(found, position))]
    return Drawn(str(kept(source, "".join(lines))), len(lines), len(found), name)


def told(found: Files, position: int) -> str:
    """A line of a list: path and class; empty for a path that a list can't hold."""
    path, label = found.paths[position], found.label(position)
    if path != found.path(position) or path != path.strip() or "\t" in path or len(path.splitlines()) != 1:
        return ""
    return f"{path}\t{found.class_names[label]}\n" if label >= 0 else f"{path}\n"


def kept(source: str, text: str) -> Path:
    """A list in the user's cache, under a name that changes with what it says."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = in_cache("lists", f"{os.path.basename(os.path.abspath(source))[:40]}-{digest}.txt")
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path
