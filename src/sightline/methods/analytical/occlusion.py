"""Saliency by occlusion: cover a window, see how far the score falls (Zeiler & Fergus 2014, section 4.2)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render
from ...catalog import AttributionSpec, register_method
from ...errors import SightlineError
from ...incremental import score_occluded_windows
from ...knobs import ValueRange
from ...memory import estimate_max_batch
from ...model import Model
from ...result import Result
from ...transform import blur_image
from ...windows import OcclusionWindows

FillKind = Literal["gray", "mean", "blur", "zero"]
LabelChoice = int | str | tuple[int | str, ...]

MAX_OCCLUSION_BATCH = 32  # images run at once: more make no faster


@register_method(
    title="Saliency by occlusion",
    question="Which part of the image does the score depend on? Cover it and see.",
    reading="Red: covering this place lowers the class score, so the network used it. Blue: covering it raises the score.",
    caution="The gray patch is itself unusual input, and parts that can stand in for each other show little. The map is as coarse as the window.",
    quick_parameters={"stride": 16, "window": 32},
    # The default stride of 8 has four times the windows, and every randomized network is asked again.
    attribution=AttributionSpec("drop", costly_kinds=True, test_parameters={"stride": 16}),
)
def occlusion(
    model: Model,
    image: Tensor,
    *,
    label: LabelChoice = "top",
    window: Annotated[int, ValueRange(1, 1024)] = 16,
    stride: Annotated[int, ValueRange(1, 1024)] = 8,
    fill: Annotated[float | FillKind, ValueRange(0, 1)] = 0.5,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
    incremental: bool = True,
) -> Result:
    """Slides a covered window over the image and records the drop of a class score.

    Windows lie fully inside the image, top-left corners at multiples of the stride. `values["drop"]` is
    score(clean) − score(covered) before the softmax, N×rows×columns; of a list of labels, however short, N×labels×rows×columns,
    and `values["score"]` and `["label"]` are N×labels instead of N. All labels cost what one does.

    Args:
        label: Class to ask about, or a list of them: an index, a name or an unambiguous part of one, or "top" for the predicted class.
        window: Side of the covered square in pixels.
        stride: Pixels between neighbouring windows.
        fill: Gray value that covers, in [0, 1], or "gray" (0.5), "zero" (black), "mean" (the image's mean colour), "blur" (the image, blurred).
        batch: How many covered images are run at once; None for as many as `memory` allows, at most 32.
        incremental: Whether to compute only what each window can reach, which gives the same and is faster, or every covered image whole.
    """
    height, width = image.shape[-2:]
    if window > min(height, width):
        raise SightlineError(f"window is {window}; it must lie between 1 and {min(height, width)}, the image's shorter side")
    covers = make_fill_images(image, fill, window)
    index = choose_class_indices(model, label, image)
    places = [(y, x) for y in range(0, height - window + 1, stride) for x in range(0, width - window + 1, stride)]
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    with torch.no_grad():
        clean = model.run(image, ["logits"])["logits"].gather(1, index).cpu()
    at_once = batch or min(MAX_OCCLUSION_BATCH, estimate_max_batch(model, image, memory, gradients=False))
    found = [
        score_occluded_windows(
            model, OcclusionWindows(image[i : i + 1], covers[i : i + 1], places, window), index[i], batch=at_once, incremental=incremental
        )
        for i in range(len(image))
    ]
    drop = clean[:, :, None, None] - torch.stack([one.scores.T.cpu().unflatten(1, (rows, columns)) for one in found])
    panel, limit = draw_score_panel(image, average_drops_per_pixel(drop, places, window, height, width), clean)
    several = isinstance(label, (tuple, list))
    costs = drop[0].flatten(1).amax(1).tolist()
    details = ", ".join(
        f"{model.labels[i]} ({score:.2f}, {cost:.2f})" for i, score, cost in zip(index[0], clean[0].tolist(), costs, strict=True)
    )
    caption = (
        f"Image, then mean drop of the score over the {window}×{window} windows that cover each pixel (white 0, ±{limit:.3g} full colour)"
        f"{', one map for each label' if several else ', and both'}. Label, its clean score and what the worst window costs: {details}."
    )
    values = {"drop": drop, "score": clean, "label": index}
    values = {name: value if several else value[:, 0] for name, value in values.items()}
    return Result(
        {"occlusion": panel},
        {**values, "incremental": found[0].localized_share, "speedup_bound": found[0].speedup_bound},
        {"occlusion": caption},
    )


def choose_class_indices(model: Model, label: LabelChoice, image: Tensor) -> Tensor:
    """Class indices N×L of one label or of several. Raises SightlineError for none."""
    labels = label if isinstance(label, (tuple, list)) else (label,)
    if not labels:
        raise SightlineError("label is an empty list; give one class or more")
    return torch.stack([model.choose(one, image) for one in labels], 1)


def draw_score_panel(image: Tensor, attributions: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """The image and its signed maps N×L×H×W on one scale for each image, one map also over the image; where the first scale ends.

    What is left of `scores`, N×L, that nothing changes is rounding; it is not stretched to full colour.
    """
    limit = torch.maximum(attributions.abs().flatten(1).amax(1), 1e-5 * scores.abs().amax(1).clamp_min(1))
    shown = [render.render_signed_map(attributions[:, i], limit) for i in range(attributions.shape[1])]
    if len(shown) == 1:
        shown.append(render.overlay_heatmap(image, attributions[:, 0].clamp_min(0), limit))
    return render.arrange_in_row(image, *shown), float(limit[0])


def make_fill_images(image: Tensor, fill: float | str, window: int) -> Tensor:
    """What covers, N×3×H×W. Raises SightlineError for a word that is not a fill."""
    if isinstance(fill, (int, float)) and not isinstance(fill, bool):
        return torch.full_like(image, fill)
    plain = {"gray": 0.5, "zero": 0.0}
    if fill in plain:
        return torch.full_like(image, plain[fill])
    if fill == "mean":
        return image.mean((2, 3), keepdim=True).expand_as(image)
    if fill == "blur":
        return blur_image(image, window / 2)
    raise SightlineError(f"fill is {fill!r}; it must be a number from 0 to 1, gray, mean, blur or zero")


def average_drops_per_pixel(drops: Tensor, positions: list[tuple[int, int]], window: int, height: int, width: int) -> Tensor:
    """Drops …×rows×columns as …×H×W: at each pixel the mean over the windows that cover it, 0 where none does."""
    total, count = torch.zeros(*drops.shape[:-2], height, width), torch.zeros(height, width)
    for i, (y, x) in enumerate(positions):
        total[..., y : y + window, x : x + window] += drops.flatten(-2)[..., i, None, None]
        count[y : y + window, x : x + window] += 1
    return total / count.clamp_min(1)
