"""A plane through the space of images, coloured by what the network answers."""

import math
from typing import Annotated

import torch
from torch import Tensor

from sightline.images.plotting.charts import draw_decision_regions
from sightline.methods.adversarial.adversarial import make_attack_goal
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

PLANE_BATCH_SIZE = 64


@register_method(
    chapter="generative",
    title="Decision boundary",
    question="How do the classes lie around this image?",
    reading="The middle is the image. To the right it changes along the adversarial direction, up and down along a random one of the same length; each colour is a class. "
    "In the random direction the answer lasts far longer than in the adversarial one: the image lies close to a boundary that chance does not find.",
    caution="It is one plane of a space with as many directions as pixel values, and most of its points look like noise over the image. Another random direction "
    "gives another picture.",
    tour_runs=(),
)
def boundary(
    model: Model,
    image: Tensor,
    *,
    target: int | str | None = None,
    span: Annotated[float, ValueRange(1, 100)] = 4.0,
    cells: Annotated[int, ValueRange(3, 401)] = 41,
    steps: Annotated[int, ValueRange(1, 10_000)] = 100,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Answers over a plane through the first image: across the smallest adversarial change (FMN, l2), up a random one orthogonal to it.

    Each point of the plane is brought into [0, 1] before the network sees it. `values["answers"]` is rows×columns of class indices, from
    below; `["across"]` and `["up"]` are their places as lengths; `["direction"]` and `["random"]` the two of length 1, 1×3×H×W;
    `["image"]` the adversarial image, `["length"]` its distance.

    Args:
        target: Class that the adversarial direction leads to: index, name, "least"; None for the nearest.
        span: How far the plane reaches each way, in lengths of the adversarial change.
        cells: Points along each side.
        steps: Steps of the attack that finds the direction.
    """
    image = image[:1].to(model.device)
    with torch.no_grad():
        clean = model.run(image, ["logits"])["logits"].float()
    aim = make_attack_goal(model, image, clean, target)
    found, run = Attack("fmn", "l2", math.inf, steps)(model, image, aim, callback)
    change = (found - image).detach()
    distance = float(compute_image_norms(change, "l2"))
    # An attack that failed leaves no direction: then both are random.
    one, two = torch.randn(2, *image.shape, generator=torch.Generator().manual_seed(seed)).to(
        image.device
    )
    one = change if distance > 0 else one
    one = one / one.norm()
    two = two - (two * one).sum() * one
    two = two / two.norm()
    places = torch.linspace(-span, span, cells) * (distance or 1.0)
    answers = classify_plane(model, image, one, two, places)
    panel = draw_decision_regions(
        answers,
        model.labels,
        float(places[-1]),
        distance,
        ("along the adversarial direction", "along a random direction"),
    )
    index = int(run.compute_logits(found).detach().argmax())
    caption = (
        f"The image ({model.labels[int(aim.source_labels)]}) in the middle; {model.labels[index]} is reached {distance:.3g} to the right, in the Euclidean length of "
        f"[0, 1] pixel values. The same length up or down is as large a change in a random direction. {float((answers == int(aim.source_labels)).float().mean()):.0%} of the "
        "plane has the image's own class."
        if distance
        else "The attack found no adversarial direction: both are random. Try more steps."
    )
    values = {
        "answers": answers, "across": places, "up": places, "direction": one.cpu(), "random": two.cpu(), "image": found.detach().cpu(), "length": distance,
    }  # fmt: skip
    return Result({"boundary": panel}, values, {"boundary": caption})


@torch.no_grad()
def classify_plane(
    model: Model, image: Tensor, across_direction: Tensor, up_direction: Tensor, offsets: Tensor
) -> Tensor:
    """Class indices at the points of a plane, rows from below."""
    up, across = (
        grid.flatten().to(image.device) for grid in torch.meshgrid(offsets, offsets, indexing="ij")
    )
    parts = [
        model.run(
            (
                image + a.view(-1, 1, 1, 1) * across_direction + b.view(-1, 1, 1, 1) * up_direction
            ).clamp(0, 1),
            ["logits"],
        )["logits"].argmax(1)
        for a, b in zip(across.split(PLANE_BATCH_SIZE), up.split(PLANE_BATCH_SIZE), strict=True)
    ]
    return torch.cat(parts).view(len(offsets), len(offsets)).cpu()
