"""On images whose objects are marked: does an attribution point at them?

Does its maximum hit the object (Zhang 2016), and how much of it lies in the object (Wang 2020)?
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import draw_bar_chart
from sightline.images.plotting.figures import DotPlot, FigureData, PictureRows
from sightline.images.plotting.maps import make_contact_sheet, render_heatmaps
from sightline.methods.evaluation.annotations import (
    GRID_SAMPLES,
    AnnotatedObject,
    make_sample_grids,
    read_annotated_objects,
)
from sightline.methods.evaluation.attribution_method import (
    AttributionMethod,
    find_attribution_method,
)
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# Heatmaps that every method is compared with: a constant one, and a soft spot in the middle.
REFERENCE_NAMES = ("chance", "middle")

# A method is said to find the objects if it beats both references by this many standard errors.
STANDARD_ERRORS = 2

MAP_TILE_SIDE = 160  # pixels

# Brightness of the pixels around the object in the figure.
DIM_FACTOR = 0.4


@register_method(
    chapter="analytical",
    title="Pointing game",
    question="On images whose objects are marked: do the attributions point at them?",
    reading="A method's upper bar is the share of objects that its maximum hits, the lower one how "
    "much of its attribution lies inside them. A good method beats both chance and the middle of "
    "the image, where photographers put things.",
    caution="It tests whether an attribution agrees with people, not whether it is faithful to the "
    "network: a network may look at the rails to recognize the train.",
    # The report has one image, without marks. The grids of samples show which of its attributions
    # distinguish classes.
    tour_runs=({"methods": ("saliency", "gradcam", "guided")},),
)
def pointing(
    model: Model,
    *,
    folder: str | Path | None = None,
    methods: tuple[str, ...] = (
        "saliency",
        "saliency:smoothgrad",
        "occlusion",
        "gradcam",
        "guided",
    ),
    label: int | str = "top",
    tolerance: Annotated[int, ValueRange(0, 1000)] = 15,
    seed: int = 0,
) -> Result:
    """Plays the pointing game with several methods on annotated images, and measures the energy.

    A hit is a maximum within `tolerance` pixels of the object (Zhang 2016, section 4.1); of several
    equal maxima the share that hits counts. Energy is the sum of the attribution's positive part
    inside the object over that of the whole image (Wang 2020, section 4.3); an attribution without
    a positive part counts as constant. Both are means over the objects. Distances are in pixels of
    what the network sees.

    `values["table"]` has `method`, `pointing` and `energy` for each method, then for chance (a
    random point, a constant attribution) and middle (a soft spot there). `values["hits"]` and
    `["energies"]` are M×objects in that order, `["objects"]` the objects' files, `["broken"]` what
    could not be used and why.

    Without a folder, four sample photographs are the quarters of one image, and each is the object
    of its own class (Böhle 2021).

    Args:
        folder: Images with NAME.mask.png or NAME.xml (Pascal VOC) beside them, or one boxes.csv
            with file,label,x0,y0,x1,y1; None for grids of sample photographs.
        methods: Whose attributions: any methods that have one, their kind after a colon as in
            saliency:smoothgrad.
        label: Class of masks, and of boxes without a label: an index, a name, or "top" for the
            predicted class.
        tolerance: How many pixels beside the object still hit; none in a grid, where another object
            is there.
    """
    tested_methods = [find_attribution_method(name) for name in methods]
    if not tested_methods:
        raise SightlineError(
            "methods is empty; name at least one that has an attribution, such as gradcam"
        )
    if label != "top":
        model.index(label)  # refuses an unknown label even if every object has one of its own

    problems: list[str] = []
    if folder:
        objects = read_annotated_objects(model, Path(folder), problems)
    else:
        objects = make_sample_grids(model)
        tolerance = 0
    game = PointingGame(model, tested_methods, label, tolerance, seed)
    scores = game.score_objects(objects, str(folder or "the grids"), problems)

    descriptions = [method.description for method in tested_methods]
    table = scores.average_by_method([*descriptions, *REFERENCE_NAMES])
    values = {
        "table": [vars(row) for row in table],
        "hits": scores.hits,
        "energies": scores.energies,
        "objects": scores.files,
        "broken": problems,
    }
    sheet = make_contact_sheet(scores.pictures, columns=len(scores.pictures), gap=4)
    panels = {"maps": sheet, "pointing": draw_pointing_bars(table)}
    names = ["the object of its class", *descriptions]
    map_row = FigureRow("", scores.pictures.split(1), names, lead_count=1)
    figures: dict[str, FigureData] = {
        "maps": PictureRows([map_row], MAP_TILE_SIDE),
        "pointing": make_pointing_plot(table),
    }
    first_file = scores.files[0] if folder else ""
    table_caption = describe_table(table, len(scores.files), tolerance, is_grid=not folder)
    captions = {
        "maps": describe_first_object(first_file, descriptions),
        "pointing": table_caption + describe_unused_images(problems),
    }
    return Result(panels, values, captions, figures=figures)


# ── scores ──


@dataclass(frozen=True)
class MethodScore:
    """A row of the table: mean share of hits and mean energy share of a method, 0 to 1."""

    method: str
    pointing: float
    energy: float


@dataclass(frozen=True)
class ObjectScores:
    """Hit and energy shares of M heatmaps, M×objects, the objects' files, and the first's pictures.

    The pictures, P×3×H×W, are the image with all but the object dimmed, and the methods' heatmaps.
    """

    hits: Tensor
    energies: Tensor
    files: list[str]
    pictures: Tensor

    def average_by_method(self, names: Sequence[str]) -> list[MethodScore]:
        """The means over the objects, for each of M names."""
        hit_means = self.hits.mean(1).tolist()
        energy_means = self.energies.mean(1).tolist()
        rows = zip(names, hit_means, energy_means, strict=True)
        return [MethodScore(name, hit, energy) for name, hit, energy in rows]


@dataclass(frozen=True)
class PointingGame:
    """The methods that play, and the rules: class of unlabelled objects, tolerance and seed."""

    model: Model
    methods: Sequence[AttributionMethod]
    label: int | str
    tolerance: int
    seed: int

    def score_objects(
        self, objects: Iterable[AnnotatedObject], source: str, problems: list[str]
    ) -> ObjectScores:
        """Scores every object; one that can't be explained is added to `problems`.

        Raises SightlineError if that leaves no object of the `source`.
        """
        hits: list[Tensor] = []
        energies: list[Tensor] = []
        files: list[str] = []
        pictures: Tensor | None = None
        for annotated in objects:
            try:
                heatmaps = self.compute_heatmaps(annotated)
            except SightlineError as error:
                problems.append(f"{annotated.name}: {get_first_error_line(error)}")
                continue
            region = annotated.region
            hit_shares = [compute_hit_share(item, region, self.tolerance) for item in heatmaps]
            energy_shares = [compute_energy_share(item, region) for item in heatmaps]
            hits.append(torch.stack(hit_shares))
            energies.append(torch.stack(energy_shares))
            files.append(annotated.name)
            if pictures is None:
                pictures = render_object(annotated, heatmaps[: len(self.methods)])
        if pictures is None:
            raise SightlineError(f"no image of {source!r} could be used; the first: {problems[0]}")
        return ObjectScores(torch.stack(hits, 1), torch.stack(energies, 1), files, pictures)

    def compute_heatmaps(self, annotated: AnnotatedObject) -> list[Tensor]:
        """The methods' heatmaps H×W for the object's class, then those of REFERENCE_NAMES."""
        image = annotated.image
        index = int(self.model.choose(annotated.label or self.label, image)[0])
        heatmaps = [
            method.compute_attribution(self.model, image, index, self.seed).heatmap
            for method in self.methods
        ]
        size = annotated.region.shape
        return [*heatmaps, torch.ones(size), make_middle_spot(*size)]


def make_middle_spot(height: int, width: int) -> Tensor:
    """A soft spot in the middle of the image, H×W, as wide as the image in each direction."""
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None]
    return torch.exp(-2 * (rows**2 + columns**2))


def compute_hit_share(heatmap: Tensor, region: Tensor, tolerance: int) -> Tensor:
    """Share of the maxima of a heatmap H×W that lie within `tolerance` pixels of the region H×W."""
    import cv2
    import numpy as np

    outside = (~region).numpy().astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    is_near = torch.from_numpy(distance) <= tolerance
    is_maximum = heatmap == heatmap.max()
    return is_near[is_maximum].double().mean()


def compute_energy_share(heatmap: Tensor, region: Tensor) -> Tensor:
    """Share of the positive part of a heatmap H×W that lies in the region H×W.

    Without a positive part, it is the region's share of the image.
    """
    positive = heatmap.double().clamp_min(0)
    total = positive.sum()
    if total > 0:
        return positive[region].sum() / total
    return region.double().mean()


# ── figure and captions ──


def render_object(annotated: AnnotatedObject, heatmaps: list[Tensor]) -> Tensor:
    """The image with all but the object dimmed, and the heatmaps H×W: P×3×H×W."""
    brightness = torch.where(annotated.region, 1, DIM_FACTOR)
    dimmed = annotated.image * brightness
    return torch.cat([dimmed.cpu(), render_heatmaps(heatmaps)])


def draw_pointing_bars(table: Sequence[MethodScore]) -> Tensor:
    """Two bars for each row of the table."""
    names: list[str] = []
    shares: list[float] = []
    for row in table:
        names += [f"{row.method}: pointing", f"{row.method}: energy"]
        shares += [row.pointing, row.energy]
    return draw_bar_chart(names, shares)


def make_pointing_plot(table: Sequence[MethodScore]) -> DotPlot:
    """Both measures of the methods, beside the references."""
    methods = table[: -len(REFERENCE_NAMES)]
    references = table[-len(REFERENCE_NAMES) :]
    names = [row.method for row in methods]
    return DotPlot(
        names,
        {
            "the maximum hits the object": [row.pointing for row in methods],
            "share of the attribution inside the object": [row.energy for row in methods],
        },
        {
            "the maximum hits the object": {row.method: row.pointing for row in references},
            "share of the attribution inside the object": {
                row.method: row.energy for row in references
            },
        },
    )


def describe_first_object(file: str, methods: Sequence[str]) -> str:
    """The caption of the first object's heatmaps; `file` is empty for a grid."""
    source = file or "Sample photographs in the quarters of one image"
    return (
        f"{source}, all but the object dimmed, and the attributions of its class: "
        f"{', '.join(methods)}, each on its own scale."
    )


def describe_table(
    table: Sequence[MethodScore], count: int, tolerance: int, *, is_grid: bool
) -> str:
    """The caption of the bars, for `count` objects."""
    objects = f"{count} objects"
    if is_grid:
        samples = ", ".join(GRID_SAMPLES)
        objects = f"{count} photographs in grids ({samples}; each of its own class)"
    tolerance_note = f" ({tolerance} pixels beside still count)" if tolerance else ""
    return (
        f"Share of {objects} that the attribution's maximum hits{tolerance_note}, and share of the "
        f"attribution inside them. {describe_successful_methods(table, count)}"
    )


def describe_successful_methods(table: Sequence[MethodScore], count: int) -> str:
    """Which methods find the objects; the last rows of the table are those of REFERENCE_NAMES."""
    references = table[-len(REFERENCE_NAMES) :]
    candidates = table[: -len(REFERENCE_NAMES)]
    chance = max(row.pointing for row in references)
    standard_error = (chance * (1 - chance) / count) ** 0.5
    threshold = chance + STANDARD_ERRORS * standard_error
    successful = [row.method for row in candidates if row.pointing > threshold]
    if not successful:
        subject = "None of these attributions hits"
    elif len(successful) == 1:
        subject = f"{successful[0]} hits"
    else:
        subject = f"{', '.join(successful)} hit"
    return f"{subject} them clearly more often than chance and the middle of the image."


def describe_unused_images(problems: Sequence[str]) -> str:
    """How many images could not be used, in a sentence, or nothing."""
    if not problems:
        return ""
    return f" {len(problems)} could not be used, the first: {problems[0]}."
