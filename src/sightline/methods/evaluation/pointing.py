"""On pictures whose objects are marked: does a map's brightest point hit the object (Zhang 2016), how much of the map lies in it (Wang 2020)?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.plotting.maps import draw_bar_chart, draw_heatmap_row
from sightline.methods.evaluation.annotations import (
    GRID_SAMPLES,
    AnnotatedObject,
    make_sample_grids,
    read_annotated_objects,
)
from sightline.methods.evaluation.attribution_map import AttributionMethod, find_attribution_method
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# A map has to beat chance and the middle of the picture by so many standard errors to be said to find the objects.
STANDARD_ERRORS = 2

DIM_FACTOR = 0.4


@register_method(
    chapter="analytical",
    title="Pointing game",
    question="On pictures whose objects are marked: do the maps point at them?",
    reading="The upper bar of a method is the share of objects that its brightest point hits, the lower one how much of its map lies inside them. A good method "
    "beats both chance and the middle of the picture, where photographers put things.",
    caution="It asks whether a map agrees with people, not whether it is true to the network: a network may look at the rails to see the train.",
    # The report has one picture of which nothing is marked; the samples' grids show which of its maps tell classes apart.
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
    """Plays the pointing game and measures the energy in the objects, for several methods, on marked pictures: one table.

    A hit is a maximum within `tolerance` pixels of the object (Zhang 2016, section 4.1); of several equal maxima the share that
    hits counts. Energy is the map's sum inside over its sum (Wang 2020, section 4.3), of its positive part; a map without any
    counts as the same everywhere. Both are means over the objects. `values["table"]` has `method`, `pointing`, `energy` for every
    method, then the rows chance (a random point, an even map) and middle (a soft spot there); `hits` and `energies` M×objects in
    that order; `objects` their files; `broken` what could not be used and why. Distances are in pixels of what the network sees.
    Without a folder, four sample photographs are the quarters of one image, and each is the object of its own class (Böhle 2021).

    Args:
        folder: Pictures with NAME.mask.png or NAME.xml (Pascal VOC) beside them, or one boxes.csv with file,label,x0,y0,x1,y1; None for
            grids of sample photographs.
        methods: Whose maps: any methods that give one, their kind after a colon as in saliency:smoothgrad.
        label: Class of masks, and of boxes without a label: an index, a name, or "top" for the predicted class.
        tolerance: How many pixels beside the object still hit; none in a grid, where the next object is there.
    """
    asked = [find_attribution_method(name) for name in methods]
    if label != "top":
        model.index(label)  # refused now even where every object has a label of its own
    if not asked:
        raise SightlineError(
            "methods is empty; name at least one that gives a map, such as gradcam"
        )
    broken: list[str] = []
    files: list[str] = []
    scores: list[Tensor] = []
    pictures: list[Tensor] = []
    tolerance = tolerance if folder else 0
    for one in (
        read_annotated_objects(model, Path(folder), broken) if folder else make_sample_grids(model)
    ):
        try:
            maps = compute_object_heatmaps(model, one, asked, label, seed)
        except SightlineError as error:
            broken.append(f"{one.name}: {get_first_error_line(error)}")
            continue
        scores.append(
            torch.stack(
                [
                    torch.stack(
                        [
                            compute_hit_share(map_, one.region, tolerance),
                            compute_energy_share(map_, one.region),
                        ]
                    )
                    for map_ in maps
                ]
            )
        )
        files.append(one.name)
        # The picture outside of the object is dimmed.
        pictures = pictures or [
            draw_heatmap_row(one.image * torch.where(one.region, 1, DIM_FACTOR), maps[:-2])
        ]
    if not scores:
        raise SightlineError(
            f"no picture of {str(folder or 'the grids')!r} could be used; the first: {broken[0]}"
        )
    hits, energies = torch.stack(scores, 1).unbind(2)
    table: list[dict[str, Any]] = [
        {"method": name, "pointing": float(hits[i].mean()), "energy": float(energies[i].mean())}
        for i, name in enumerate([*(one.description for one in asked), "chance", "middle"])
    ]
    what = (
        f"{len(files)} objects"
        if folder
        else f"{len(files)} photographs in grids ({', '.join(GRID_SAMPLES)}; each of its own class)"
    )
    values = {
        "table": table,
        "hits": hits,
        "energies": energies,
        "objects": files,
        "broken": broken,
    }
    first = files[0] if folder else "Sample photographs in the quarters of one image"
    shown = f"{first}, all but the object dimmed, and the maps of its class: {', '.join(one.description for one in asked)}, each on its own scale."
    beside = f" ({tolerance} pixels beside still count)" if tolerance else ""
    told = f"{what} that the map's brightest point hits{beside}, and share of the map inside them"
    return Result(
        {"maps": pictures[0], "pointing": draw_pointing_bars(table)},
        values,
        {
            "maps": shown,
            "pointing": f"Share of {told}. {describe_successful_methods(table, len(files))}{describe_unused_images(broken)}",
        },
    )


def compute_object_heatmaps(
    model: Model,
    annotated: AnnotatedObject,
    methods: Sequence[AttributionMethod],
    label: int | str,
    seed: int,
) -> list[Tensor]:
    """The methods' maps H×W of one object's class, an even one, and a soft spot in the middle."""
    index = int(model.choose(annotated.label or label, annotated.image)[0])
    found = [
        method_.compute_attribution(model, annotated.image, index, seed).heatmap
        for method_ in methods
    ]
    rows, columns = (torch.linspace(-1, 1, side) for side in annotated.region.shape)
    return [
        *found,
        torch.ones(annotated.region.shape),
        torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2)),
    ]


def compute_hit_share(heatmap: Tensor, region: Tensor, tolerance: int) -> Tensor:
    """Share of the map's maxima H×W that lie within `tolerance` pixels of the region H×W."""
    import cv2
    import numpy as np

    away = cv2.distanceTransform(
        (~region).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return (torch.from_numpy(away) <= tolerance)[heatmap == heatmap.max()].double().mean()


def compute_energy_share(heatmap: Tensor, region: Tensor) -> Tensor:
    """Share of the map's positive part H×W that lies in the region; of a map without any, the region's share of the image."""
    positive = heatmap.double().clamp_min(0)
    return positive[region].sum() / positive.sum() if positive.sum() > 0 else region.double().mean()


def draw_pointing_bars(table: Sequence[Mapping[str, Any]]) -> Tensor:
    """Two bars for each row of the table."""
    names, shares = zip(
        *(
            (f"{row['method']}: {key}", float(row[key]))
            for row in table
            for key in ("pointing", "energy")
        ),
        strict=True,
    )
    return draw_bar_chart(list(names), list(shares))


def describe_successful_methods(table: Sequence[Mapping[str, Any]], count: int) -> str:
    """Which methods find the objects."""
    floor = max(row["pointing"] for row in table[-2:])
    floor += STANDARD_ERRORS * (floor * (1 - floor) / count) ** 0.5
    good = [row["method"] for row in table[:-2] if row["pointing"] > floor]
    found = (
        f"{', '.join(good)} {'hits' if len(good) == 1 else 'hit'}"
        if good
        else "None of these maps hits"
    )
    return f"{found} them clearly more often than chance and the middle of the picture."


def describe_unused_images(problems: Sequence[str]) -> str:
    """What could not be used, in a sentence, or nothing."""
    return f" {len(problems)} could not be used, the first: {problems[0]}." if problems else ""
