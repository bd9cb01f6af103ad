"""The report: one self-contained HTML page with a section for every run of every method."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.app.replay import record_image_source, resolve_source
from sightline.data.datasets.subset import DatasetSubset, draw_subset
from sightline.data.scan.run import Passing, scan
from sightline.errors import (
    MemoryLackError,
    SightlineError,
    escape_control_characters,
    escape_for_display,
    escape_text_for_display,
    get_first_error_line,
)
from sightline.images.io.pictures import read_file_or_sample, write
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

logger = logging.getLogger(__name__)

# So many images of a folder are scanned for a report, and for a quick one.
MAX_DATASET_IMAGES = 1000
MAX_DATASET_IMAGES_QUICK = 200

# A panel this many times as wide as it is high gets the page's full width.
WIDE_PANEL_RATIO = 1.5

CHAPTER_TITLES = {
    "methods": "The output",
    "weights": "What are the weights?",
    "analytical": "What does the network respond to in this image?",
    "generative": "Which image would make it respond so?",
    "artistic": "What if the network may change the image?",
}

# The command of `filters` takes the network, and no subject, by position.
NETWORK_FIRST = "filters"

ReportProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class ReportSection:
    """One run of one method.

    Attributes:
        folder: The folder of its files beside the page, and its anchor in the page.
        command: The command line that makes it again.
        result: None if the method refused or failed.
        refusal_reason: Why the method does not apply to this network.
        failure: The unexpected error that ended it, in one line.
    """

    method: Method
    folder: str
    command: str
    parameters: Mapping[str, Any]
    seconds: float = 0.0
    result: Result | None = None
    refusal_reason: str = ""
    failure: str = ""
    trust_summary: TrustSummary | None = None

    @property
    def title(self) -> str:
        """The method's title, with the setting that distinguishes this run from its others."""
        runs = self.method.tour_runs
        if len(runs) > 1:
            for name, value in self.parameters.items():
                if isinstance(value, str) and name in runs[-1]:
                    return f"{self.method.title}: {value}"
        return self.method.title


@dataclass
class TourReport:
    """A report while it is made, and what it was made from.

    Attributes:
        image: 1×3×H×W, as the network takes it, read from `source` at the side `size`.
        label: The class to ask about: index, name, or "top" for the predicted one.
        dataset_folder: The dataset of the sections that use one; tiles of the sample photographs
            by default.
        dataset_sample: The part of that dataset that is scanned.
        interrupted: Whether Ctrl-C ended the run; the sections are those finished by then.
    """

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

    # ── running the methods ──

    def write_report(self, folder: Path, on_progress: ReportProgress) -> Path:
        """Runs every method; writes page, pictures, numbers and `recipe.json`. Returns the page.

        `on_progress` gets the name of the section and the share of sections done. Ctrl-C ends the
        run, and the page shows the finished sections. A method that fails is a section that says
        so; `check_failures` raises for it afterwards.

        Raises SightlineError for a folder without a readable image, KeyboardInterrupt before the
        first section is finished.
        """
        if self.dataset_folder is not None:
            self.scan_dataset(self.dataset_folder, on_progress)
        label = int(self.model.choose(self.label, self.image)[0])
        plan = list(self.plan_sections(label))
        write(self.image[:1], folder / "image.png")
        try:
            for index, section in enumerate(plan):
                on_progress(section.title, index / len(plan))
                on_step = partial(_report_step, on_progress, section.title, index, len(plan))
                finished = self.run_section(section, label, on_step)
                if finished.result:
                    finished.result.save(folder / finished.folder)
                self.sections.append(finished)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self.sections:
                raise
        on_progress("Report", 1.0)
        return self.write_page(folder, label)

    def check_failures(self) -> None:
        """Raises SightlineError, naming them, if sections failed with an unexpected error."""
        failures = [
            f"{section.folder} ({section.failure})" for section in self.sections if section.failure
        ]
        if failures:
            noun = "section" if len(failures) == 1 else "sections"
            raise SightlineError(f"{len(failures)} {noun} failed: {', '.join(failures)}")

    def scan_dataset(self, folder: str, on_progress: ReportProgress) -> None:
        """Scans some images of the dataset, evenly drawn; the sections read that scan."""

        def report_images(event: Passing) -> None:
            on_progress(f"Scan: {event.done:,} of {event.total:,} images", 0.0)

        max_images = MAX_DATASET_IMAGES_QUICK if self.quick else MAX_DATASET_IMAGES
        self.dataset_sample = draw_subset(folder, max_images)
        scan(self.model, self.dataset_sample.source, callback=report_images)

    def plan_sections(self, label: int) -> Iterator[ReportSection]:
        """Every run of every method, in the order of the report, without results."""
        for method in load_methods().values():
            for number, run_parameters in enumerate(method.tour_runs, start=1):
                parameters = dict(run_parameters)
                if self.quick:
                    parameters.update(method.quick_parameters)
                # Of a dataset's units, all are shown, not those of the photograph's class.
                if "label" in method.parameters and method.subject == "image":
                    parameters["label"] = self.format_class_name(label)
                if self.dataset_sample and "folder" in method.parameters:
                    parameters["folder"] = self.dataset_sample.source

                suffix = f"-{number}" if len(method.tour_runs) > 1 else ""
                yield ReportSection(
                    method=method,
                    folder=f"{method.name}{suffix}",
                    command=self.format_command(method, parameters, label),
                    parameters=parameters,
                )

    def run_section(
        self, section: ReportSection, label: int, callback: Callable[[Step], None]
    ) -> ReportSection:
        """The section with its result, or with the reason why it has none.

        Any error of one method is the reason of its section, so that the others are still made.
        """
        started = time.monotonic()
        try:
            result = self._run_method(section, label, callback)
        except MemoryLackError as error:
            return replace(section, failure=str(error))
        except SightlineError as error:
            return replace(section, refusal_reason=str(error))
        except Exception as error:
            logger.debug("the section %s failed", section.folder, exc_info=True)
            return replace(section, failure=_describe_error(error))
        chosen = {name: value for name, value in result.chosen.items() if value is not None}
        command = self.format_command(section.method, {**section.parameters, **chosen}, label)
        section = replace(section, result=result, command=command)

        try:
            trust_summary = self.check_attribution(section, label)
        except Exception as error:
            logger.debug("the evaluation of %s failed", section.folder, exc_info=True)
            return replace(section, failure=_describe_error(error))
        return replace(section, trust_summary=trust_summary, seconds=time.monotonic() - started)

    def _run_method(
        self, section: ReportSection, label: int, callback: Callable[[Step], None]
    ) -> Result:
        method = section.method
        parameters = dict(section.parameters)
        if "callback" in method.parameters:
            parameters["callback"] = callback
        # A run whose pictures need another kind of image names a sample.
        source = parameters.pop("image", self.source)
        if method.subject != "image":
            objective = self.make_objective_arguments(method, parameters, label)
            return method.function(self.model, *objective, **parameters)

        image = self.image
        if source != self.source:
            image = self.model.fit(read_file_or_sample(source), self.size)
        result = method.function(self.model, image, **parameters)
        return record_image_source(result, source, self.size)

    def check_attribution(self, section: ReportSection, label: int) -> TrustSummary | None:
        """A short evaluation of the section's attribution.

        Returns None for a method without one, for an attribution that an earlier section shows
        too, and for a network that can't be evaluated.
        """
        method = section.method
        if not method.attribution or "image" in section.parameters:
            return None
        attribution = find_run_attribution_method(method.name, section.parameters)
        settings = attribution.collect_parameters(label, 0)
        for previous in self.sections:
            if previous.method is method:
                earlier = find_run_attribution_method(method.name, previous.parameters)
                if earlier.collect_parameters(label, 0) == settings:
                    return None
        try:
            return summarize_trust(self.model, self.image[:1], attribution, label)
        except SightlineError as error:
            logger.debug("the attribution of %s is not evaluated: %s", section.folder, error)
            return None

    # ── the command that makes a section again ──

    def format_command(self, method: Method, parameters: Mapping[str, Any], label: int) -> str:
        """The command line: the subject, the parameters, then network, weights and size."""
        network = str(self.model.recipe["model"])
        words = ["sightline", method.name]
        if method.subject == "image":
            source = str(parameters.get("image", self.source))
            words.append(f"./{source}" if source.startswith("-") else source)
        elif method.name == NETWORK_FIRST:
            words.append(network)
        else:
            words += self.make_objective_arguments(method, parameters, label)

        for name, value in parameters.items():
            if name != "image":
                words += _format_option(name, value)
        if method.name != NETWORK_FIRST:
            words += ["--model", network]
        if "weights" in self.model.recipe:
            words += ["--weights", str(self.model.recipe["weights"])]
        if self.size and method.subject == "image":
            words += ["--size", str(self.size)]
        if method.repaints:
            words.append("--cropped")
        return shlex.join(words)

    def make_objective_arguments(
        self, method: Method, parameters: Mapping[str, Any], label: int
    ) -> list[str]:
        """The objective of a run: the report's class, unless the run names a layer."""
        if not method.subject or "layer" in parameters:
            return []
        return [self.format_class_name(label)]

    def format_class_name(self, label: int) -> str:
        """The class by its name, or by its index if the name would be read as something else."""
        name = self.model.labels[label]
        is_unique = self.model.labels.count(name) == 1
        is_number = name.lstrip("-").isdigit()
        is_formula = "(" in name
        if is_unique and not is_number and not is_formula:
            return name
        return str(label)

    # ── the page ──

    def write_page(self, folder: Path, label: int) -> Path:
        """Writes `index.html` and `recipe.json` for the finished sections. Returns the page."""
        trust = {
            section.folder: section.trust_summary.numbers
            for section in self.sections
            if section.trust_summary
        }
        recipe = {"sections": self.collect_numbers(), "trust": trust, **self.make_report_recipe()}
        write_json(recipe, folder / "recipe.json")
        page = folder / "index.html"
        write_text(self.render_page(label), page)
        return page

    def collect_numbers(self) -> dict[str, Any]:
        """Every section's values as JSON, or why it has none."""
        numbers: dict[str, Any] = {}
        for section in self.sections:
            if section.failure:
                numbers[section.folder] = {"failed": section.failure}
            elif section.result:
                numbers[section.folder] = section.result.numbers
            else:
                numbers[section.folder] = {"refused": section.refusal_reason}
        return numbers

    def make_report_recipe(self) -> dict[str, Any]:
        """What the whole report was made from."""
        recipe: dict[str, Any] = {
            "image": {"path": resolve_source(self.source), "size": self.size},
            "model": dict(self.model.recipe),
            "label": self.label,
            "quick": self.quick,
        }
        if self.dataset_folder is not None:
            recipe["folder"] = self.dataset_folder
        return recipe

    def render_page(self, label: int) -> str:
        """The page, with every picture inside."""
        sections_by_chapter: dict[str, list[dict[str, Any]]] = {}
        for section in self.sections:
            chapter_sections = sections_by_chapter.setdefault(section.method.chapter, [])
            chapter_sections.append(self.describe_section(section))
        chapters = [
            (CHAPTER_TITLES.get(chapter, chapter), sections)
            for chapter, sections in sections_by_chapter.items()
        ]
        return render_template(
            "tour.html",
            model=self.model,
            source=escape_for_display(Path(self.source).name),
            label=self.model.labels[label],
            image=make_data_uri(self.image[:1]),
            interrupted=self.interrupted,
            failed=[section.title for section in self.sections if section.failure],
            chapters=chapters,
            seconds=sum(section.seconds for section in self.sections),
            version=self.find_version(),
            layers=len(self.model.layers),
            dataset=self.dataset_sample.description if self.dataset_sample else "",
        )

    def find_version(self) -> str:
        """The package's version, as the recipes of the results have it."""
        for section in self.sections:
            if section.result:
                return str(section.result.recipe["versions"]["sightline"])
        return ""

    def describe_section(self, section: ReportSection) -> dict[str, Any]:
        """What the template shows of one section."""
        panels: list[dict[str, Any]] = []
        pages: list[tuple[str, str]] = []
        if section.result:
            captions = section.result.captions
            for name, panel in section.result.panels.items():
                _, _, height, width = panel.shape
                panels.append(
                    {
                        "uri": make_data_uri(panel),
                        "caption": captions.get(name, ""),
                        "wide": width > WIDE_PANEL_RATIO * height,
                    }
                )
            for name, page in section.result.pages.items():
                pages.append((page, captions.get(name, "")))
        return {
            "method": section.method,
            "title": section.title,
            "folder": section.folder,
            "panels": panels,
            "pages": pages,
            "command": escape_control_characters(section.command),
            "refused": section.refusal_reason,
            "failed": section.failure,
            "trust": section.trust_summary,
        }


def _report_step(
    on_progress: ReportProgress, title: str, index: int, section_count: int, step: Step
) -> None:
    """Reports the progress of a method as a share of the whole report."""
    share = step.index / step.total
    on_progress(title, (index + share) / section_count)


def _describe_error(error: Exception) -> str:
    """An unexpected error in one line, such as «ZeroDivisionError: division by zero»."""
    message = escape_text_for_display(get_first_error_line(error))
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def _format_option(name: str, value: Any) -> list[str]:
    """A parameter as words of a command line."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, tuple):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}", str(value)]
