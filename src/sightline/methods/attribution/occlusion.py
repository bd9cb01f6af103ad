"""Saliency by occlusion: cover a window, see how far the score falls (Zeiler & Fergus 2014, section 4.2)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.methods.attribution.masking import (
    MAX_OCCLUSION_BATCH,
    FillKind,
    LabelChoice,
    choose_class_indices,
    draw_score_panel,
    make_fill_images,
)
from sightline.models.model import Model
from sightline.models.tracing.batch_size import estimate_max_batch
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionWindows
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="analytical",
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
        raise SightlineError(
            f"window is {window}; it must lie between 1 and {min(height, width)}, the image's shorter side"
        )
    covers = make_fill_images(image, fill, window)
    index = choose_class_indices(model, label, image)
    places = [
        (y, x)
        for y in range(0, height - window + 1, stride)
        for x in range(0, width - window + 1, stride)
    ]
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    with torch.no_grad():
        clean = model.run(image, ["logits"])["logits"].gather(1, index).cpu()
    at_once = batch or min(
        MAX_OCCLUSION_BATCH, estimate_max_batch(model, image, memory, gradients=False)
    )
    found = [
        score_occluded_windows(
            model,
            OcclusionWindows(image[i : i + 1], covers[i : i + 1], places, window),
            index[i],
            batch=at_once,
            incremental=incremental,
        )
        for i in range(len(image))
    ]
    drop = clean[:, :, None, None] - torch.stack(
        [one.scores.T.cpu().unflatten(1, (rows, columns)) for one in found]
    )
    panel, limit = draw_score_panel(
        image, average_drops_per_pixel(drop, places, window, height, width), clean
    )
    several = isinstance(label, (tuple, list))
    costs = drop[0].flatten(1).amax(1).tolist()
    details = ", ".join(
        f"{model.labels[i]} ({score:.2f}, {cost:.2f})"
        for i, score, cost in zip(index[0], clean[0].tolist(), costs, strict=True)
    )
    caption = (
        f"Image, then mean drop of the score over the {window}×{window} windows that cover each pixel (white 0, ±{limit:.3g} full colour)"
        f"{', one map for each label' if several else ', and both'}. Label, its clean score and what the worst window costs: {details}."
    )
    values = {"drop": drop, "score": clean, "label": index}
    values = {name: value if several else value[:, 0] for name, value in values.items()}
    return Result(
        {"occlusion": panel},
        {
            **values,
            "incremental": found[0].localized_share,
            "speedup_bound": found[0].speedup_bound,
        },
        {"occlusion": caption},
    )


def average_drops_per_pixel(
    drops: Tensor, positions: list[tuple[int, int]], window: int, height: int, width: int
) -> Tensor:
    """Drops …×rows×columns as …×H×W: at each pixel the mean over the windows that cover it, 0 where none does."""
    total, count = torch.zeros(*drops.shape[:-2], height, width), torch.zeros(height, width)
    for i, (y, x) in enumerate(positions):
        total[..., y : y + window, x : x + window] += drops.flatten(-2)[..., i, None, None]
        count[y : y + window, x : x + window] += 1
    return total / count.clamp_min(1)
