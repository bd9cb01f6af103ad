"""The report: one self-contained HTML page with a section for every run of every method."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.app.replay import record_image_source, resolve_source
from sightline.app.report.queue import SectionQueue
from sightline.app.report.worker import SectionWorker
from sightline.app.web.report.page import ReportContent, render_report
from sightline.app.web.report.section import ReportSection
from sightline.data.datasets.subset import DatasetSubset, draw_subset
from sightline.data.scan.run import Passing, scan
from sightline.errors import (
    MemoryLackError,
    SightlineError,
    escape_text_for_display,
    get_first_error_line,
)
from sightline.images.io.pictures import read_file_or_sample, write
from sightline.methods import load_methods
from sightline.methods.evaluation.attribution_method import find_attribution_method
from sightline.methods.evaluation.summary import (
    TrustSummary,
    find_run_attribution_method,
    read_trust_summary,
    summarize_trust,
)
from sightline.models.model import Model
from sightline.models.weights.local_files import find_local_weights
from sightline.registry.method import Method
from sightline.registry.progress import Step
from sightline.registry.result import Result, write_json, write_text

logger = logging.getLogger(__name__)

# So many images of a folder are scanned for a report, and for a quick one.
MAX_DATASET_IMAGES = 1000
MAX_DATASET_IMAGES_QUICK = 200

# A photograph is shown with at most so many pixels on its short side, if its file has them.
MAX_SHOWN_SIDE = 384

# The method whose numbers another method's section shows too.
TRUST_METHOD = "trust"

# The command of `filters` takes the network, and no subject, by position.
NETWORK_FIRST = "filters"

ReportProgress = Callable[[str, float], None]


@dataclass
class TourReport:
    """A report while it is made, and what it was made from.

    Attributes:
        image: 1×3×H×W, as the network takes it, read from `source` at the side `size`.
        label: The class to ask about: index, name, or "top" for the predicted one.
        dataset_folder: The dataset of the sections that use one; parts of the sample pictures
            by default.
        dataset_sample: The part of that dataset that is scanned.
        network_options: Further options of a command that make its network this one, such as
            `--mean 0.5`.
        plan: Every section of the report in its order, without results.
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
    network_options: Sequence[str] = ()
    sections: list[ReportSection] = field(default_factory=list[ReportSection])
    plan: list[ReportSection] = field(default_factory=list[ReportSection])
    interrupted: bool = False

    # ── running the methods ──

    def write_report(
        self, folder: Path, on_progress: ReportProgress, worker: SectionWorker | None = None
    ) -> Path:
        """Runs every method; writes page, pictures, numbers and `recipe.json`. Returns the page.

        `on_progress` gets the name of the section and the share of sections done. A worker makes
        some of the sections. Ctrl-C ends the run, and the page shows the finished sections. A
        method that fails is a section that says so; `check_failures` raises for it afterwards.

        Raises SightlineError for a folder without a readable image, KeyboardInterrupt before the
        first section is finished.
        """
        if self.dataset_folder is not None:
            self.scan_dataset(self.dataset_folder, on_progress)
        label = int(self.model.choose(self.label, self.image)[0])
        self.plan = list(self.plan_sections(label))
        write(self.image[:1], folder / "image.png")
        try:
            self.run_plan(label, folder, on_progress, worker)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self.sections:
                raise
        positions = {section.folder: position for position, section in enumerate(self.plan)}
        self.sections.sort(key=lambda section: positions[section.folder])
        self.share_trust(label)
        on_progress("Report", 1.0)
        return self.write_page(folder, label)

    def run_plan(
        self,
        label: int,
        folder: Path,
        on_progress: ReportProgress,
        worker: SectionWorker | None = None,
    ) -> None:
        """Runs every section, with a worker if there is one that can take the report.

        The files of a section are written beside the next one.
        """
        queue = SectionQueue(self.plan)
        jobs: list[Future[Any]] = []
        with ThreadPoolExecutor(1) as file_writer, ThreadPoolExecutor(1) as worker_thread:

            def save(section: ReportSection, result: Result) -> None:
                jobs.append(file_writer.submit(result.save, folder / section.folder))

            run_here = partial(self.run_sections, queue, label, save, on_progress)
            try:
                if worker and worker.take_report(self, label, folder):
                    worker_job = worker_thread.submit(self.run_in_worker, worker, queue)
                    jobs.append(worker_job)
                    run_here()
                    wait([worker_job])
                run_here()  # all, or what the worker gave back
            finally:
                if worker:
                    worker.stop()
                for job in jobs:
                    job.result()  # raises what went wrong, after Ctrl-C as well

    def run_sections(
        self,
        queue: SectionQueue,
        label: int,
        save: Callable[[ReportSection, Result], None],
        on_progress: ReportProgress,
    ) -> None:
        """Runs sections in this process until none are left."""
        while section := queue.take():
            done = len(self.sections) / len(self.plan)
            on_progress(section.title, done)
            on_step = partial(_report_step, on_progress, section.title, done, 1 / len(self.plan))
            finished = self.run_section(section, label, on_step)
            if finished.result:
                save(finished, finished.result)
            self.sections.append(finished)
            queue.finish(section)

    def run_in_worker(self, worker: SectionWorker, queue: SectionQueue) -> None:
        """Hands sections to the worker, first those that read a scan, as long as it makes them.

        Raises SightlineError where the files of one can't be written.
        """
        while section := queue.take(scan_first=True):
            reply = worker.make(section)
            if reply is None:
                queue.give_back(section)
                return
            self.sections.append(reply.section)
            queue.finish(section)
            if reply.error:
                raise SightlineError(reply.error)

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
            for run, run_parameters in enumerate(method.tour_runs):
                parameters = dict(run_parameters)
                if self.quick:
                    parameters.update(method.quick_parameters)
                # Of a dataset's units, all are shown, not those of the photograph's class.
                if "label" in method.parameters and method.subject == "image":
                    parameters["label"] = self.format_class_name(label)
                if self.dataset_sample and "folder" in method.parameters:
                    parameters["folder"] = self.dataset_sample.source

                suffix = f"-{run + 1}" if len(method.tour_runs) > 1 else ""
                yield ReportSection(
                    method=method,
                    folder=f"{method.name}{suffix}",
                    command=self.format_command(method, parameters, label),
                    parameters=parameters,
                    run=run,
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

        Returns None for one that a run of `trust` evaluates, and where `evaluate_attribution` does.
        """
        is_planned = any(
            planned.method.name == TRUST_METHOD and is_evaluated_by(section, planned.parameters)
            for planned in self.plan
        )
        return None if is_planned else self.evaluate_attribution(section, label)

    def evaluate_attribution(self, section: ReportSection, label: int) -> TrustSummary | None:
        """A short evaluation of the section's attribution.

        Returns None for a method without one, for an attribution that an earlier section shows
        too, for one that takes long in a quick report, and for a network that can't be evaluated.
        """
        method = section.method
        if not method.attribution or "image" in section.parameters:
            return None
        attribution = find_run_attribution_method(method.name, section.parameters)
        if self.quick and attribution.is_costly:
            return None
        settings = attribution.collect_parameters(label, 0)
        for previous in self.plan:
            if previous.folder == section.folder:
                break
            if previous.method.name == method.name:
                earlier = find_run_attribution_method(method.name, previous.parameters)
                if earlier.collect_parameters(label, 0) == settings:
                    return None
        try:
            return summarize_trust(self.model, self.image[:1], attribution, label)
        except SightlineError as error:
            logger.debug("the attribution of %s is not evaluated: %s", section.folder, error)
            return None

    def share_trust(self, label: int) -> None:
        """Shows the numbers of every run of `trust` beside the attribution that it evaluated."""
        for trust_section in self.sections:
            if trust_section.method.name != TRUST_METHOD:
                continue
            for number, section in enumerate(self.sections):
                if section.result and is_evaluated_by(section, trust_section.parameters):
                    summary = self.read_trust(trust_section, section, label)
                    self.sections[number] = replace(section, trust_summary=summary)

    def read_trust(
        self, trust_section: ReportSection, section: ReportSection, label: int
    ) -> TrustSummary | None:
        """What a run of `trust` found for a section; a short evaluation where that run failed."""
        if not trust_section.result:
            return self.evaluate_attribution(section, label)
        attribution = find_run_attribution_method(section.method.name, section.parameters)
        return read_trust_summary(trust_section.result.values, attribution.description)

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
        words += self._format_weights(network)
        words += self.network_options
        if method.subject == "image":
            words += self._format_size(parameters)
        if method.repaints:
            words.append("--cropped")
        return shlex.join(words)

    def _format_weights(self, network: str) -> list[str]:
        """The option for the weights; none where the network's name alone finds them."""
        weights = self.model.recipe.get("weights")
        if weights is None:
            return []
        local_file = find_local_weights(network)
        if local_file is not None and str(local_file.resolve()) == weights:
            return []
        return ["--weights", str(weights)]

    def _format_size(self, parameters: Mapping[str, Any]) -> list[str]:
        """The option for the image's size; none where it is the network's own."""
        # A texture's exemplar keeps its own size where none is given beside that of the texture.
        size = self.size or (self.model.size if "side" in parameters else None)
        return ["--size", str(size)] if size else []

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
        write_text(self.render_page(folder, label), page)
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

    def render_page(self, folder: Path, label: int) -> str:
        """The page, with every picture inside."""
        content = ReportContent(
            model=self.model,
            image=self.image[:1],
            photograph=self.read_photograph(),
            source=self.source,
            label=label,
            sections=self.sections,
            dataset=self.dataset_sample.description if self.dataset_sample else "",
            folder=folder,
            interrupted=self.interrupted,
        )
        return render_report(content)

    def read_photograph(self) -> Tensor:
        """What the network sees, for people: 1×3×H×W, at a higher resolution if the file has it."""
        picture = self.model.to_picture(self.image[:1].cpu())
        side = min(picture.shape[-2:])
        factor = MAX_SHOWN_SIDE // side
        if factor < 2:
            return picture
        try:
            source = read_file_or_sample(self.source)
            is_same = torch.equal(self.model.fit(source, self.size), self.image[:1].cpu())
            if not is_same or min(source.shape[-2:]) < factor * side:
                return picture
            return self.model.to_picture(self.model.fit(source, factor * side)).cpu()
        except SightlineError:  # an image that was made, not read
            return picture


def is_evaluated_by(section: ReportSection, parameters: Mapping[str, Any]) -> bool:
    """Whether a run of `trust` with these parameters evaluates the section's attribution."""
    if not section.method.attribution or parameters.get("method") != section.method.name:
        return False
    evaluated = find_attribution_method(section.method.name)
    attribution = find_run_attribution_method(section.method.name, section.parameters)
    kind = parameters.get("kind", evaluated.kind)
    return attribution.kind == kind and not attribution.parameters


def _report_step(
    on_progress: ReportProgress, title: str, done: float, weight: float, step: Step
) -> None:
    """Reports the progress of a section that is so much of the whole report."""
    on_progress(title, done + weight * step.index / step.total)


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
