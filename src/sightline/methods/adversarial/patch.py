"""A patch that makes the network see the target class wherever it is pasted (Brown 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import arrange_in_row, enlarge_pixels
from sightline.methods.adversarial.adversarial import take_attacked_image
from sightline.methods.adversarial.attacks.goal import (
    AttackGoal,
    AttackRun,
    make_class_goal,
    run_for_logits,
)
from sightline.methods.adversarial.attacks.universal import (
    optimize_adversarial_patch,
    paste_round_patch,
    sample_patch_positions,
)
from sightline.methods.adversarial.image_split import split_attack_images
from sightline.models.model import Model
from sightline.optim.score_gradient import require_image_gradient
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_PATCHED_IMAGES = 4  # images in the figure

POSITIONS_PER_IMAGE = 16  # random positions at which success is measured

GRAY = 0.5

# The smallest probability whose logarithm is taken, in double precision.
SMALLEST_PROBABILITY = 1e-300


@register_method(
    chapter="generative",
    title="Adversarial patch",
    question="Can a sticker make the network see something else, wherever it lies?",
    reading="The patch alone, then images with the patch at random positions, sizes and "
    "rotations, and the class the network predicts for each. The patch need not be small or "
    "hidden: it dominates everything else in the image.",
    caution="A patch is learned for this network, for this class and for images like these; "
    "printed and photographed it works less well. Compare it with how often a gray disc of the "
    "same size reaches the class.",
    tour_runs=(),
)
def adversarial_patch(
    model: Model,
    image: Tensor,
    *,
    target: int | str = "least",
    folder: str | None = None,
    k: Annotated[int, ValueRange(1, 10_000)] = 64,
    share: Annotated[float, ValueRange(0.05, 1)] = 0.4,
    steps: Annotated[int, ValueRange(1, 10_000)] = 150,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Learns a round patch that makes the network predict the target class on any image.

    The patch is averaged over random positions, sizes and rotations. It is learned from half of
    the folder's pictures and tested on the other half; without a folder, learned from the images
    themselves. `values["patch"]` is 1×C×s×s. `["reached"]` is the share of the images that
    get the target class, `["reached_new"]` the share of the test images, and `["reached_gray"]`
    the share with a gray disc instead; each over 16 positions per image, without the images
    that have the class already. `["image"]` is the given images with the patch, N×3×H×W, with
    their `["logits"]` and `["success"]`.

    Args:
        target: Class to reach: index or name, or "least" for the least likely one over the images.
        folder: Folder of pictures to learn from and to test on; None for the given images.
        k: Largest number of pictures taken from the folder.
        share: Diameter of the patch as a share of the image's short side; it varies by a fifth.
        steps: Number of steps, each on 16 random images and positions.
    """
    image = take_attacked_image(model, image)
    train_images, test_images = split_attack_images(model, image, folder, k, seed)
    predicted_classes, target_class = choose_patch_target(model, train_images, target)
    target_labels = torch.full_like(predicted_classes, target_class)
    goal = make_class_goal(model, predicted_classes, target_labels)
    run = AttackRun(model, goal, "cross_entropy", steps, callback)
    require_image_gradient(model, run.compute_logits, train_images[:1])
    generator = torch.Generator().manual_seed(seed)
    train_levels = train_images[:, :1] if model.is_gray else train_images
    patch = optimize_adversarial_patch(run, train_levels, share, steps, generator).detach()
    patch = patch.expand(-1, image.shape[1], -1, -1)

    gray_disc = torch.full_like(patch, GRAY)
    shares = {
        "reached": measure_patch_success(model, train_images, patch, target_class, share),
        "reached_gray": measure_patch_success(model, train_images, gray_disc, target_class, share),
    }
    if test_images is not None:
        shares["reached_new"] = measure_patch_success(
            model, test_images, patch, target_class, share
        )

    position_generator = torch.Generator().manual_seed(seed + 2)
    positions = sample_patch_positions(image, share, position_generator)
    patched_image = paste_round_patch(image, patch, positions)
    with torch.no_grad():
        logits = run.compute_logits(patched_image)
    predicted = logits.argmax(1)

    shown_image = patched_image[:MAX_PATCHED_IMAGES]
    panels = {
        "patch": arrange_in_row(*map(model.to_picture, (patch.cpu(), *shown_image.cpu().split(1)))),
        "sticker": enlarge_pixels(model.to_picture(patch.cpu()), 128),
    }
    values = {
        "patch": patch.cpu(),
        **shares,
        "image": patched_image.cpu(),
        "logits": logits.cpu(),
        "success": make_target_goal(model, target_class, len(image)).is_reached(logits).cpu(),
    }
    captions = {
        "patch": describe_patch(model, target_class, predicted, shares, len(train_images)),
        "sticker": "The patch alone.",
    }
    return Result(panels, values, captions)


def choose_patch_target(model: Model, image: Tensor, target: int | str) -> tuple[Tensor, int]:
    """Each image's predicted class, N, and the one target class for all images.

    Raises SightlineError for a class that is unknown, or that all images have already.
    """
    model.require_classes("adversarial_patch")
    with torch.no_grad():
        logits = model.run(image, ["logits"])["logits"].float()
    predicted = logits.argmax(1)
    if target == "least":
        probabilities = model.to_probabilities(logits.double())
        target_class = int(probabilities.clamp_min(SMALLEST_PROBABILITY).log().mean(0).argmin())
    else:
        target_class = model.index(target)
    goal = make_target_goal(model, target_class, len(image))
    if bool(goal.is_reached(logits).all()):
        raise SightlineError(
            f"the target {model.labels[target_class]} is what the network already predicts; "
            "choose another class"
        )
    return predicted, target_class


def make_target_goal(model: Model, target_class: int, count: int) -> AttackGoal:
    """The goal that each of so many images shows the class."""
    labels = torch.full((count,), target_class, device=model.device)
    return make_class_goal(model, labels, labels)


@torch.no_grad()
def measure_patch_success(
    model: Model, image: Tensor, patch: Tensor, target_class: int, diameter_share: float
) -> float:
    """The share of images and random positions at which the patch reaches the class.

    Images that have the class without the patch are left out; 1 if all have it.
    """
    has_class = make_target_goal(model, target_class, len(image))
    candidates = image[~has_class.is_reached(run_for_logits(model, image))]
    if not len(candidates):
        return 1.0
    generator = torch.Generator().manual_seed(1)
    is_reached: list[Tensor] = []
    for _ in range(POSITIONS_PER_IMAGE):
        positions = sample_patch_positions(candidates, diameter_share, generator)
        patched_image = paste_round_patch(candidates, patch, positions)
        goal = make_target_goal(model, target_class, len(patched_image))
        is_reached.append(goal.is_reached(run_for_logits(model, patched_image)))
    return float(torch.cat(is_reached).float().mean())


def describe_patch(
    model: Model,
    target_class: int,
    predicted: Tensor,
    shares: dict[str, float],
    train_count: int,
) -> str:
    """The caption of the figure."""
    predictions = ", ".join(model.labels[int(index)] for index in predicted[:MAX_PATCHED_IMAGES])
    on_test_images = ""
    if "reached_new" in shares:
        on_test_images = f" and on {shares['reached_new']:.0%} of new images"
    return (
        f"A patch for {model.labels[target_class]}, and images with the patch, predicted as "
        f"{predictions}. At random positions it reaches the class on {shares['reached']:.0%} of "
        f"the {train_count} images it was learned from{on_test_images}; a gray disc on "
        f"{shares['reached_gray']:.0%}."
    )
