"""A plane through the space of images, coloured by the class the network predicts."""

import math
from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.charts import draw_decision_regions
from sightline.methods.adversarial.adversarial import make_attack_goal, take_attacked_image
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.models.heads.labels import ClassChoice
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

PLANE_BATCH_SIZE = 64


@register_method(
    chapter="generative",
    title="Decision boundary",
    question="How do the classes lie around this image?",
    reading="The middle is the image. To the right it changes along the adversarial direction, up "
    "and down along a random direction by the same length; each colour is a predicted class. "
    "Along the random direction the prediction lasts far longer than along the adversarial one: "
    "the image lies close to a boundary that random changes do not find.",
    caution="This is one plane of a space with as many dimensions as the image has pixel values, "
    "and most of its points look like noise over the image. Another random direction gives "
    "another figure.",
    tour_runs=(),
)
def boundary(
    model: Model,
    image: Tensor,
    *,
    target: ClassChoice | None = None,
    span: Annotated[float, ValueRange(1, 100)] = 4.0,
    cells: Annotated[int, ValueRange(3, 401)] = 41,
    steps: Annotated[int, ValueRange(1, 10_000)] = 100,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Predicted classes over a plane through the first image.

    The plane is spanned by the smallest adversarial change (FMN, l2), across, and a random
    direction orthogonal to it, up. Each point is clamped to [0, 1] before the network sees it.
    `values["answers"]` is rows×columns of class indices, the lowest row first; `["across"]` and
    `["up"]` are the lengths along the axes; `["direction"]` and `["random"]` the two unit
    directions, 1×C×H×W; `["image"]` the adversarial image, `["length"]` its distance.

    The rows are classified from the middle outward. Those that a stopped run did not reach are -1.

    Args:
        target: Class that the adversarial direction leads to: index, name, "least"; None for the
            nearest one.
        span: How far the plane extends each way, in lengths of the adversarial change.
        cells: Points along each side.
        steps: Steps of the attack that finds the direction.
    """
    image = take_attacked_image(model, image[:1])
    with torch.no_grad():
        clean_logits = model.run(image, ["logits"])["logits"].float()
    if model.output_kind in ("multilabel", "target"):
        raise SightlineError(
            "boundary colours a plane by the one class of each image; "
            f"{model.name} gives {model.output_kind}"
        )
    goal = make_attack_goal(model, image, clean_logits, target)
    attack = Attack("fmn", "l2", math.inf, steps)
    progress = BoundaryProgress(callback, steps, math.ceil(cells**2 / PLANE_BATCH_SIZE))
    adversarial_image, run = attack(model, image, goal, progress.report_attack)
    change = (adversarial_image - image).detach()
    distance = float(compute_image_norms(change, "l2"))

    across_direction, up_direction = span_plane(change, seed, is_gray=model.is_gray)
    offsets = torch.linspace(-span, span, cells) * (distance or 1.0)
    classes = classify_plane(
        model, image, across_direction, up_direction, offsets, progress=progress
    )
    panel = draw_decision_regions(
        classes,
        model.labels,
        float(offsets[-1]),
        distance,
        ("along the adversarial direction", "along a random direction"),
    )
    values = {
        "answers": classes,
        "across": offsets,
        "up": offsets,
        "direction": across_direction.cpu(),
        "random": up_direction.cpu(),
        "image": adversarial_image.detach().cpu(),
        "length": distance,
    }
    clean_class = int(goal.source_labels)
    reached_class = int(run.compute_logits(adversarial_image).detach().argmax())
    caption = "The attack found no adversarial direction: both are random. Try more steps."
    is_known = classes >= 0
    if distance:
        clean_share = float((classes[is_known] == clean_class).float().mean())
        caption = (
            f"The image ({model.labels[clean_class]}) in the middle; {model.labels[reached_class]} "
            f"is reached {distance:.3g} to the right, in Euclidean length of [0, 1] pixel values. "
            "The same length up or down is as large a change in a random direction. "
            f"{clean_share:.0%} of the plane has the image's own class."
        )
    if not is_known.all():
        known_share = float(is_known.float().mean())
        caption += f" Stopped: of the plane only {known_share:.0%} was classified."
    return Result({"boundary": panel}, values, {"boundary": caption})


def span_plane(change: Tensor, seed: int, *, is_gray: bool = False) -> tuple[Tensor, Tensor]:
    """Two orthogonal unit directions 1×C×H×W: along the change, and a random one.

    A zero change has no direction; the first is random then, too. `is_gray` keeps the random
    one gray.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = change[:, :1] if is_gray else change
    noise = torch.randn(2, *levels.shape, generator=generator, dtype=torch.float32)
    across, up = noise.to(change.device).expand(2, *change.shape)
    if float(change.norm()) > 0:
        across = change
    across = across / across.norm()
    up = up - (up * across).sum() * across
    return across, up / up.norm()


class BoundaryProgress:
    """Reports the steps of the attack and then the batches of the plane, counted together.

    `is_stopped` tells whether the callback asked to stop.
    """

    def __init__(self, callback: Callback | None, attack_steps: int, batch_count: int) -> None:
        self.callback = callback
        self.total = attack_steps + batch_count
        self.done = 0
        self.is_stopped = False

    def report_attack(self, step: Step) -> bool:
        """The callback of the attack."""
        return self.report(step.scores, step.image)

    def report(self, scores: Tensor, image: Tensor) -> bool:
        """Reports one more step. Returns whether to stop."""
        self.done += 1
        if self.callback is not None:
            self.is_stopped = bool(self.callback(Step(self.done, self.total, scores, image)))
        return self.is_stopped


@torch.no_grad()
def classify_plane(
    model: Model,
    image: Tensor,
    across_direction: Tensor,
    up_direction: Tensor,
    offsets: Tensor,
    *,
    progress: BoundaryProgress,
) -> Tensor:
    """Predicted classes at the points of a plane, rows×columns, the lowest row first.

    Goes from the middle row outward. After a stop the rest is -1; the first batch is classified
    even then.
    """
    rows_from_middle = offsets.abs().argsort(stable=True)
    columns = torch.arange(len(offsets))
    row_grid, column_grid = torch.meshgrid(rows_from_middle, columns, indexing="ij")
    row_batches = row_grid.flatten().split(PLANE_BATCH_SIZE)
    column_batches = column_grid.flatten().split(PLANE_BATCH_SIZE)

    classes = torch.full((len(offsets), len(offsets)), -1)
    for rows, batch_columns in zip(row_batches, column_batches, strict=True):
        up = offsets[rows].view(-1, 1, 1, 1).to(image.device)
        across = offsets[batch_columns].view(-1, 1, 1, 1).to(image.device)
        points = (image + across * across_direction + up * up_direction).clamp(0, 1)
        logits = model.run(points, ["logits"])["logits"]
        classes[rows, batch_columns] = logits.argmax(1).cpu()
        if progress.is_stopped or progress.report(logits.amax(1), points):
            break
    return classes
