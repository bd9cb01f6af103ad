"""The main job: one self-contained HTML report that shows every method on one image, in the lecture's order."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.app.replay import record_image_source, resolve_source
from sightline.data.datasets.subset import DatasetSubset, draw_subset
from sightline.data.scan.run import scan
from sightline.errors import SightlineError
from sightline.images.io import read_file_or_sample, write
from sightline.images.plotting.html import make_data_uri, render_template
from sightline.methods import load_methods
from sightline.methods.evaluation.summary import (
    TrustSummary,
    find_run_attribution_method,
    summarize_trust,
)
from sightline.models.model import Model
from sightline.registry.method import Method
from sightline.registry.progress import Step
from sightline.registry.result import Result, write_json, write_text

MAX_DATASET_IMAGES, MAX_DATASET_IMAGES_QUICK = (
    1000,
    200,
)  # images of a folder that a report looks at, and a quick one

CHAPTER_TITLES = {
    "methods": "The answer",
    "weights": "What are the weights?",
    "analytical": "What does the network respond to in this image?",
    "generative": "Which image would make it respond so?",
    "artistic": "What if the image is left to the network?",
}


@dataclass(frozen=True)
class ReportSection:
    """One run of one method: its result, or why it does not apply to this network."""

    method: Method
    folder: str
    command: str
    parameters: Mapping[str, Any]
    seconds: float = 0.0
    result: Result | None = None
    refusal_reason: str = ""
    trust_summary: TrustSummary | None = None

    @property
    def title(self) -> str:
        """The method's title, and what sets this run apart from the method's others."""
        apart = [
            str(value)
            for name, value in self.parameters.items()
            if isinstance(value, str) and name in self.method.tour_runs[-1]
        ]
        return (
            f"{self.method.title}: {apart[0]}"
            if len(self.method.tour_runs) > 1 and apart
            else self.method.title
        )


@dataclass
class TourReport:
    """A report in the making. `image` is 1×3×H×W as the network sees it; `source` and `size` say how it came about. `folder` is the
    collection of the sections that look at one; tiles of the sample photographs by default."""

    model: Model
    image: Tensor
    source: str
    size: int | None = None
    label: str = "top"
    quick: bool = False
    dataset_folder: str | None = None
    dataset_sample: DatasetSubset | None = None
    sections: list[ReportSection] = field(default_factory=list[ReportSection])
    interrupted: bool = False

    def write_report(self, folder: Path, on_progress: Callable[[str, float], None]) -> Path:
        """Runs every method and writes `index.html`, pictures, numbers and `recipe.json`; gives the page's path.

        `progress` gets the stage's name and the share of stages done. A Ctrl-C ends the run; what is finished is kept and shown.
        Raises SightlineError for a folder without a readable image.
        """
        if self.dataset_folder is not None:
            self.scan_dataset(self.dataset_folder, on_progress)
        label = int(self.model.choose(self.label, self.image)[0])
        plan = list(self.plan_sections(label))
        write(self.image[:1], folder / "image.png")
        try:
            for index, section in enumerate(plan):
                on_progress(section.title, index / len(plan))
                done = self.run_section(
                    section,
                    label,
                    lambda step, at=index, of=section: on_progress(
                        of.title, (at + step.index / step.total) / len(plan)
                    ),
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
            self.write_page(
                folder, label
            )  # a bug in one method does not lose what the others found
            raise
        on_progress("Report", 1.0)
        return self.write_page(folder, label)

    def scan_dataset(self, folder: str, on_progress: Callable[[str, float], None]) -> None:
        """Passes the collection through the network, at most some evenly drawn images of it; the sections read what is kept."""
        self.dataset_sample = draw_subset(
            folder, MAX_DATASET_IMAGES_QUICK if self.quick else MAX_DATASET_IMAGES
        )
        scan(
            self.model,
            self.dataset_sample.source,
            callback=lambda event: on_progress(
                f"Scan: {event.done:,} of {event.total:,} images", 0.0
            ),
        )

    def write_page(self, folder: Path, label: int) -> Path:
        """Writes the report of what is finished: `index.html` and `recipe.json`."""
        trust = {
            section.folder: section.trust_summary.numbers
            for section in self.sections
            if section.trust_summary
        }
        write_json(
            {"sections": self.collect_numbers(), "trust": trust, **self.make_report_recipe()},
            folder / "recipe.json",
        )
        page = folder / "index.html"
        write_text(self.render_page(label), page)
        return page

    def plan_sections(self, label: int) -> Iterator[ReportSection]:
        """Every run of every method of the catalogue, still without a result."""
        for method in load_methods().values():
            for number, told in enumerate(method.tour_runs):
                knobs = {**told, **(method.quick_parameters if self.quick else {})}
                if "label" in method.parameters:
                    knobs["label"] = self.format_class_name(label)
                if self.dataset_sample and "folder" in method.parameters:
                    knobs["folder"] = self.dataset_sample.source
                suffix = f"-{number + 1}" if len(method.tour_runs) > 1 else ""
                yield ReportSection(
                    method,
                    f"{method.name}{suffix}",
                    self.format_command(method, knobs, label),
                    knobs,
                )

    def run_section(
        self, section: ReportSection, label: int, callback: Callable[[Step], None]
    ) -> ReportSection:
        """The section with its result."""
        method, knobs, began = section.method, dict(section.parameters), time.monotonic()
        if "callback" in method.parameters:
            knobs["callback"] = callback
        source = knobs.pop(
            "image", self.source
        )  # a run whose pictures need another kind of image names a sample
        image = (
            self.image
            if source == self.source
            else self.model.fit(read_file_or_sample(source), self.size)
        )
        subject = (
            [image]
            if method.subject == "image"
            else self.make_objective_arguments(method, knobs, label)
        )
        try:
            result = method.function(self.model, *subject, **knobs)
        except SightlineError as error:
            return replace(section, refusal_reason=str(error))
        if method.subject == "image":
            result = record_image_source(result, source, self.size)
        return replace(
            section,
            result=result,
            trust_summary=self.check_attribution(section, label),
            seconds=time.monotonic() - began,
        )

    def check_attribution(self, section: ReportSection, label: int) -> TrustSummary | None:
        """A short test of the section's map; none for a method without one, and for a map that an earlier section has tested."""
        method, knobs = section.method, section.parameters
        if not method.attribution or "image" in knobs:
            return None
        of = find_run_attribution_method(method.name, knobs)
        earlier = [
            find_run_attribution_method(method.name, done.parameters).collect_parameters(label, 0)
            for done in self.sections
            if done.method is method
        ]
        if of.collect_parameters(label, 0) in earlier:
            return None
        try:
            return summarize_trust(self.model, self.image[:1], of, label)
        except SightlineError:
            return None  # the picture stands; a network that can't be randomized has no such test

    def format_command(self, method: Method, parameters: Mapping[str, Any], label: int) -> str:
        """The command that makes one section again."""
        told = self.model.recipe
        words, source = (
            ["sightline", method.name, str(told["model"])],
            str(parameters.get("image", self.source)),
        )
        words += (
            [f"./{source}" if source.startswith("-") else source]
            if method.subject == "image"
            else self.make_objective_arguments(method, parameters, label)
        )
        for name, value in ((name, value) for name, value in parameters.items() if name != "image"):
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [
                    f"--{option}",
                    *(map(str, value) if isinstance(value, tuple) else [str(value)]),
                ]
        words += ["--weights", str(told["weights"])] if "weights" in told else []
        words += ["--size", str(self.size)] if self.size and method.subject == "image" else []
        return shlex.join(words)

    def make_objective_arguments(
        self, method: Method, parameters: Mapping[str, Any], label: int
    ) -> list[str]:
        """The objective of a run: the report's class, unless the run has a layer for it."""
        return (
            [self.format_class_name(label)] if method.subject and "layer" not in parameters else []
        )

    def format_class_name(self, label: int) -> str:
        """The class by its name, or by its index if the name would not be understood."""
        name = self.model.labels[label]
        return (
            name
            if self.model.labels.count(name) == 1
            and not name.lstrip("-").isdigit()
            and "(" not in name
            else str(label)
        )

    def collect_numbers(self) -> dict[str, Any]:
        """Every section's values as JSON."""
        return {
            section.folder: section.result.numbers
            if section.result
            else {"refused": section.refusal_reason}
            for section in self.sections
        }

    def make_report_recipe(self) -> dict[str, Any]:
        """What the whole report was made from."""
        return {
            "image": {"path": resolve_source(self.source), "size": self.size},
            **({"folder": self.dataset_folder} if self.dataset_folder is not None else {}),
            "model": dict(self.model.recipe),
            "label": self.label,
            "quick": self.quick,
        }

    def render_page(self, label: int) -> str:
        """The page, with every picture inside."""
        chapters: dict[str, list[dict[str, Any]]] = {}
        for section in self.sections:
            chapters.setdefault(section.method.chapter, []).append(self.describe_section(section))
        return render_template(
            "tour.html", model=self.model, source=Path(self.source).name, label=self.model.labels[label], image=make_data_uri(self.image[:1]), interrupted=self.interrupted,
            chapters=[(CHAPTER_TITLES.get(name, name), name, parts) for name, parts in chapters.items()],
            seconds=sum(section.seconds for section in self.sections), version=self.find_version(), layers=len(self.model.layers),
            collection=self.dataset_sample.description if self.dataset_sample else "",
        )  # fmt: skip

    def find_version(self) -> str:
        """The package's version, as the results' recipes have it."""
        return next(
            (
                str(section.result.recipe["versions"]["sightline"])
                for section in self.sections
                if section.result
            ),
            "",
        )

    def describe_section(self, section: ReportSection) -> dict[str, Any]:
        """What the page shows of one section."""
        result = section.result
        panels = (
            [
                {
                    "uri": make_data_uri(panel),
                    "caption": result.captions.get(name, ""),
                    "wide": panel.shape[3] > 1.5 * panel.shape[2],
                }
                for name, panel in result.panels.items()
            ]
            if result
            else []
        )
        pages = (
            [(page, result.captions.get(name, "")) for name, page in result.pages.items()]
            if result
            else []
        )
        return {
            "method": section.method, "title": section.title, "folder": section.folder, "panels": panels, "pages": pages,
            "command": section.command, "refused": section.refusal_reason, "trust": section.trust_summary,
        }  # fmt: skip
