"""The main job: one self-contained HTML report that shows every method on one image, in the lecture's order."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from . import image as images
from .ascend import Step
from .catalog import Method, load_methods
from .errors import SightlineError
from .methods.analytical.brief import Brief, brief, of_run
from .model import Model
from .pages import data_uri, rendered
from .replay import located, whereabouts
from .result import Result, write_json, write_text
from .scans import scan
from .scans.drawn import Drawn, drawn

MOST, FEW = 1000, 200  # images of a folder that a report looks at, and a quick one
CHAPTERS = {
    "methods": "The answer",
    "weights": "What are the weights?",
    "analytical": "What does the network respond to in this image?",
    "generative": "Which image would make it respond so?",
    "artistic": "What if the image is left to the network?",
}


@dataclass(frozen=True)
class Section:
    """One run of one method: its result, or why it does not apply to this network."""

    method: Method
    folder: str
    command: str
    knobs: Mapping[str, Any]
    seconds: float = 0.0
    result: Result | None = None
    refused: str = ""
    trust: Brief | None = None

    @property
    def title(self) -> str:
        """The method's title, and what sets this run apart from the method's others."""
        apart = [str(value) for name, value in self.knobs.items() if isinstance(value, str) and name in self.method.tour[-1]]
        return f"{self.method.title}: {apart[0]}" if len(self.method.tour) > 1 and apart else self.method.title


@dataclass
class Tour:
    """A report in the making. `image` is 1×3×H×W as the network sees it; `source` and `size` say how it came about. `folder` is the
    collection of the sections that look at one; tiles of the sample photographs by default."""

    model: Model
    image: Tensor
    source: str
    size: int | None = None
    label: str = "top"
    quick: bool = False
    folder: str | None = None
    drawn: Drawn | None = None
    sections: list[Section] = field(default_factory=list[Section])
    interrupted: bool = False

    def write(self, folder: Path, progress: Callable[[str, float], None]) -> Path:
        """Runs every method and writes `index.html`, pictures, numbers and `recipe.json`; gives the page's path.

        `progress` gets the stage's name and the share of stages done. A Ctrl-C ends the run; what is finished is kept and shown.
        Raises SightlineError for a folder without a readable image.
        """
        if self.folder is not None:
            self.look_over(self.folder, progress)
        label = int(self.model.choose(self.label, self.image)[0])
        plan = list(self.plan(label))
        images.write(self.image[:1], folder / "image.png")
        try:
            for index, section in enumerate(plan):
                progress(section.title, index / len(plan))
                done = self.run(
                    section, label, lambda step, at=index, of=section: progress(of.title, (at + step.index / step.total) / len(plan))
                )
                if done.result:
                    done.result.save(folder / done.folder)
                self.sections.append(done)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self.sections:
                raise
        except Exception:
            self.interrupted = True
            self.page(folder, label)  # a bug in one method does not lose what the others found
            raise
        progress("Report", 1.0)
        return self.page(folder, label)

    def look_over(self, folder: str, progress: Callable[[str, float], None]) -> None:
        """Passes the collection through the network, at most some evenly drawn images of it; the sections read what is kept."""
        self.drawn = drawn(folder, FEW if self.quick else MOST)
        scan(self.model, self.drawn.source, callback=lambda event: progress(f"Scan: {event.done:,} of {event.total:,} images", 0.0))

    def page(self, folder: Path, label: int) -> Path:
        """Writes the report of what is finished: `index.html` and `recipe.json`."""
        trust = {section.folder: section.trust.numbers for section in self.sections if section.trust}
        write_json({"sections": self.numbers(), "trust": trust, **self.recipe()}, folder / "recipe.json")
        page = folder / "index.html"
        write_text(self.html(label), page)
        return page

    def plan(self, label: int) -> Iterator[Section]:
        """Every run of every method of the catalogue, still without a result."""
        for method in load_methods().values():
            for number, told in enumerate(method.tour):
                knobs = {**told, **(method.quick if self.quick else {})}
                if "label" in method.fields:
                    knobs["label"] = self.named(label)
                if self.drawn and "folder" in method.fields:
                    knobs["folder"] = self.drawn.source
                suffix = f"-{number + 1}" if len(method.tour) > 1 else ""
                yield Section(method, f"{method.name}{suffix}", self.command(method, knobs, label), knobs)

    def run(self, section: Section, label: int, callback: Callable[[Step], None]) -> Section:
        """The section with its result."""
        method, knobs, began = section.method, dict(section.knobs), time.monotonic()
        if "callback" in method.fields:
            knobs["callback"] = callback
        source = knobs.pop("image", self.source)  # a run whose pictures need another kind of image names a sample
        image = self.image if source == self.source else self.model.fit(images.find(source), self.size)
        subject = [image] if method.subject == "image" else self.goal(method, knobs, label)
        try:
            result = method.function(self.model, *subject, **knobs)
        except SightlineError as error:
            return replace(section, refused=str(error))
        if method.subject == "image":
            result = located(result, source, self.size)
        return replace(section, result=result, trust=self.tested(section, label), seconds=time.monotonic() - began)

    def tested(self, section: Section, label: int) -> Brief | None:
        """A short test of the section's map; none for a method without one, and for a map that an earlier section has tested."""
        method, knobs = section.method, section.knobs
        if not method.map or "image" in knobs:
            return None
        of = of_run(method.name, knobs)
        earlier = [of_run(method.name, done.knobs).asked(label, 0) for done in self.sections if done.method is method]
        if of.asked(label, 0) in earlier:
            return None
        try:
            return brief(self.model, self.image[:1], of, label)
        except SightlineError:
            return None  # the picture stands; a network that can't be randomized has no such test

    def command(self, method: Method, knobs: Mapping[str, Any], label: int) -> str:
        """The command that makes one section again."""
        told = self.model.recipe
        words, source = ["sightline", method.name, str(told["model"])], str(knobs.get("image", self.source))
        words += [f"./{source}" if source.startswith("-") else source] if method.subject == "image" else self.goal(method, knobs, label)
        for name, value in ((name, value) for name, value in knobs.items() if name != "image"):
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        words += ["--weights", str(told["weights"])] if "weights" in told else []
        words += ["--size", str(self.size)] if self.size and method.subject == "image" else []
        return shlex.join(words)

    def goal(self, method: Method, knobs: Mapping[str, Any], label: int) -> list[str]:
        """The objective of a run: the report's class, unless the run has a layer for it."""
        return [self.named(label)] if method.subject and "layer" not in knobs else []

    def named(self, label: int) -> str:
        """The class by its name, or by its index if the name would not be understood."""
        name = self.model.labels[label]
        return name if self.model.labels.count(name) == 1 and not name.lstrip("-").isdigit() and "(" not in name else str(label)

    def numbers(self) -> dict[str, Any]:
        """Every section's values as JSON."""
        return {section.folder: section.result.numbers if section.result else {"refused": section.refused} for section in self.sections}

    def recipe(self) -> dict[str, Any]:
        """What the whole report was made from."""
        return {
            "image": {"path": whereabouts(self.source), "size": self.size},
            **({"folder": self.folder} if self.folder is not None else {}),
            "model": dict(self.model.recipe),
            "label": self.label,
            "quick": self.quick,
        }

    def html(self, label: int) -> str:
        """The page, with every picture inside."""
        chapters: dict[str, list[dict[str, Any]]] = {}
        for section in self.sections:
            chapters.setdefault(section.method.chapter, []).append(self.shown(section))
        return rendered(
            "tour.html", model=self.model, source=Path(self.source).name, label=self.model.labels[label], image=data_uri(self.image[:1]), interrupted=self.interrupted,
            chapters=[(CHAPTERS.get(name, name), name, parts) for name, parts in chapters.items()],
            seconds=sum(section.seconds for section in self.sections), version=self.version(), layers=len(self.model.layers),
            collection=self.drawn.words if self.drawn else "",
        )  # fmt: skip

    def version(self) -> str:
        """The package's version, as the results' recipes have it."""
        return next((str(section.result.recipe["versions"]["sightline"]) for section in self.sections if section.result), "")

    def shown(self, section: Section) -> dict[str, Any]:
        """What the page shows of one section."""
        result = section.result
        panels = (
            [
                {"uri": data_uri(panel), "caption": result.captions.get(name, ""), "wide": panel.shape[3] > 1.5 * panel.shape[2]}
                for name, panel in result.panels.items()
            ]
            if result
            else []
        )
        pages = [(page, result.captions.get(name, "")) for name, page in result.pages.items()] if result else []
        return {
            "method": section.method, "title": section.title, "folder": section.folder, "panels": panels, "pages": pages,
            "command": section.command, "refused": section.refused, "trust": section.trust,
        }  # fmt: skip
