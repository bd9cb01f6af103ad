"""The most probable classes of an image."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.charts import draw_bar_chart
from sightline.images.plotting.figures import BarChart
from sightline.images.plotting.maps import arrange_in_row
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="methods",
    title="Predictions",
    question="Which classes does the network see in this image?",
    reading="The bars are the probabilities of the classes. Everything below asks why the longest "
    "bar is the longest.",
    caution="The network can only choose among the classes it was trained on, and it is often too "
    "sure of itself: a high bar is not a promise.",
)
def predictions(
    model: Model, image: Tensor, *, k: Annotated[int, ValueRange(1, 100)] = 5
) -> Result:
    """Lists the most probable classes of each image, or the numbers of a regression.

    `values["labels"]` is a list of k class names for each image, most probable first;
    `values["indices"]` and `values["probabilities"]` are N×k, and `values["logits"]` N×classes.
    Probabilities are the softmax of the logits, or the sigmoid where labels don't exclude each
    other. A regression has `values["numbers"]`, N×k, in the output's order, and no probabilities.

    Args:
        k: How many classes; all, if the network has fewer.
    """
    with torch.no_grad():
        logits = model.run(image, ["logits"])["logits"].cpu()
    if not logits.isfinite().all():
        raise SightlineError(
            f"{model.name} gives NaN or infinite scores for this image; its weights may be damaged"
        )
    if model.output_kind == "embedding":
        model.require_classes("predictions")
    if model.gives_numbers or model.output_kind == "target":
        return describe_numbers(model, image, logits, k)

    class_count = min(k, logits.shape[1])
    probabilities, indices = model.to_probabilities(logits).topk(class_count)
    labels = [[model.labels[index] for index in row] for row in indices.tolist()]
    values = {
        "labels": labels,
        "indices": indices,
        "probabilities": probabilities,
        "logits": logits,
    }

    charts = [
        draw_bar_chart(names, shares)
        for names, shares in zip(labels, probabilities.tolist(), strict=True)
    ]
    panel = arrange_in_row(model.to_picture(image), torch.cat(charts))
    shares_of_first = zip(labels[0], probabilities[0].tolist(), strict=True)
    listing = ", ".join(f"{name} {share:.1%}" for name, share in shares_of_first)
    caption = f"{model.name} on this image: {listing}."
    first_shares: list[float] = probabilities[0].tolist()
    chart = BarChart(labels[0], first_shares)
    captions = {"predictions": caption}
    return Result({"predictions": panel}, values, captions, figures={"predictions": chart})


def describe_numbers(model: Model, image: Tensor, logits: Tensor, k: int) -> Result:
    """The result for a regression or a target: the image, and its numbers in words."""
    count = min(k, logits.shape[1])
    numbers = logits[:, :count]
    labels = [list(model.labels[:count]) for _ in logits]
    unit = f" {model.unit}" if model.unit and model.gives_numbers else ""
    listing = ", ".join(
        f"{name} {number:.4g}{unit}"
        for name, number in zip(labels[0], numbers[0].tolist(), strict=True)
    )
    values = {"labels": labels, "numbers": numbers, "logits": logits}
    caption = f"{model.name} on this image: {listing}."
    panel = arrange_in_row(model.to_picture(image))
    return Result({"predictions": panel}, values, {"predictions": caption})
