"""What the network answers: its most probable classes."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import arrange_in_row, draw_bar_chart
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="methods",
    title="What the network answers",
    question="Which classes does the network see in this image?",
    reading="The bars are the softmax of the class scores. Everything below asks why the longest bar is the longest.",
    caution="The network can only choose among the classes it was trained on, and it is often too sure of itself: a high bar is not a promise.",
)
def predictions(
    model: Model, image: Tensor, *, k: Annotated[int, ValueRange(1, 100)] = 5
) -> Result:
    """Lists the most probable classes of each image.

    `values["labels"]` are lists of names, `values["indices"]` and `values["probabilities"]` N×k, `values["logits"]` N×classes.

    Args:
        k: How many classes.
    """
    with torch.no_grad():
        logits = model.run(image, ["logits"])["logits"].cpu()
    if not logits.isfinite().all():
        raise SightlineError(
            f"{model.name} answers with NaN or infinite scores on this image; are its weights whole?"
        )
    probabilities, indices = logits.softmax(1).topk(min(k, logits.shape[1]))
    names = [[model.labels[i] for i in row] for row in indices.tolist()]
    charts = torch.cat(
        [
            draw_bar_chart(row, shares)
            for row, shares in zip(names, probabilities.tolist(), strict=True)
        ]
    )
    caption = f"{model.name} on this image: " + ", ".join(
        f"{name} {share:.1%}"
        for name, share in zip(names[0], probabilities[0].tolist(), strict=True)
    )
    values = {"labels": names, "indices": indices, "probabilities": probabilities, "logits": logits}
    return Result(
        {"predictions": arrange_in_row(image, charts)}, values, {"predictions": f"{caption}."}
    )
