"""One small change that fools the network on many images (Moosavi-Dezfooli 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.images.plotting.maps import arrange_in_row
from sightline.methods.adversarial.adversarial import take_attacked_image
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun, make_class_goal
from sightline.methods.adversarial.attacks.norm_ball import (
    Norm,
    NormBall,
    compute_image_norms,
    sample_unit_offset,
)
from sightline.methods.adversarial.attacks.registry import (
    GRAY_NORM_FACTORS,
    compute_default_radius,
)
from sightline.methods.adversarial.attacks.universal import optimize_universal_change
from sightline.methods.adversarial.image_split import split_attack_images
from sightline.models.model import Model
from sightline.optim.score_gradient import require_image_gradient
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_UNIVERSAL_IMAGES = 4  # images in the figure


@register_method(
    chapter="generative",
    title="Universal perturbation",
    question="Is there one small change that fools the network on most images?",
    reading="On the left the change, enlarged by the factor in the caption; beside it images "
    "without and with the change. A single pattern works on images that it was not made from: the "
    "directions to which the network is sensitive are largely the same for all images.",
    caution="Compare the share of fooled images with the share that random noise of the same size "
    "fools, and look at the share of new images: a change made from few images fits only those.",
    tour_runs=(),
)
def universal(
    model: Model,
    image: Tensor,
    *,
    folder: str | None = None,
    k: Annotated[int, ValueRange(1, 10_000)] = 64,
    target: int | str | None = None,
    norm: Norm = "linf",
    eps: Annotated[float | None, ValueRange(1e-6, 1_000_000)] = None,
    steps: Annotated[int, ValueRange(1, 10_000)] = 100,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Finds one change of norm at most eps that fools the network on as many images as possible.

    It is learned from half of the folder's pictures and tested on the other half; without a
    folder, learned from the images themselves. `values["change"]` is 1×C×H×W. `["fooled"]` is the
    share of the images it fools, `["fooled_new"]` the share of the test images, and
    `["fooled_random"]` the share that random noise of the same norm fools. `["image"]` is the
    given images with the change, N×3×H×W, with their `["logits"]` and `["success"]`.

    Args:
        folder: Folder of pictures to learn from and to test on; None for the given images.
        k: Largest number of pictures taken from the folder.
        target: Class to reach on all images: index or name; None for any class but the predicted.
        norm: Norm of the change that eps bounds.
        eps: Radius in units of [0, 1]; 10/255 for linf as published, else 2.5 times the usual one.
        steps: Number of steps, each on up to 16 images.
    """
    image = take_attacked_image(model, image)
    train_images, test_images = split_attack_images(model, image, folder, k, seed)
    radius = compute_universal_radius(norm, image) if eps is None else eps
    goal = make_universal_goal(model, train_images, target)
    run = AttackRun(model, goal, "cross_entropy", steps, callback)
    require_image_gradient(model, run.compute_logits, train_images[:1])
    generator = torch.Generator().manual_seed(seed)
    if model.is_gray:
        radius /= GRAY_NORM_FACTORS[norm]
        train_levels = train_images[:, :1]
    else:
        train_levels = train_images
    norm_ball = NormBall(torch.zeros_like(train_levels[:1]), radius, norm)
    levels = optimize_universal_change(run, train_levels, norm_ball, steps, generator).detach()
    change = levels.expand_as(image[:1])

    noise = sample_unit_offset(levels, norm, torch.Generator().manual_seed(seed + 1))
    noise = noise.expand_as(change)
    noise = noise / compute_image_norms(noise, norm) * compute_image_norms(change, norm)
    shares = {
        "fooled": measure_perturbation_success(model, train_images, change, target),
        "fooled_random": measure_perturbation_success(model, train_images, noise, target),
    }
    if test_images is not None:
        shares["fooled_new"] = measure_perturbation_success(model, test_images, change, target)

    changed_image = (image + change).clamp(0, 1)
    with torch.no_grad():
        logits = run.compute_logits(changed_image)
    success = make_universal_goal(model, image, target).is_reached(logits)

    display_factor = 0.5 / max(float(change.abs().max()), 1e-6)
    pattern = (0.5 + change * display_factor).clamp(0, 1)
    pictures = (pattern.expand_as(image), image, changed_image)
    panel = arrange_in_row(
        *(model.to_picture(picture[:MAX_UNIVERSAL_IMAGES].cpu()) for picture in pictures)
    )
    values = {
        "change": change.cpu(),
        **shares,
        "image": changed_image.cpu(),
        "logits": logits.cpu(),
        "success": success.cpu(),
    }
    caption = describe_perturbation(shares, display_factor, norm, len(train_images))
    return Result({"universal": panel}, values, {"universal": caption})


def compute_universal_radius(norm: Norm, image: Tensor) -> float:
    """The radius where none is given."""
    if norm == "linf":
        return 10 / 255  # Moosavi-Dezfooli 2017
    return 2.5 * compute_default_radius(norm, image)


def make_universal_goal(model: Model, image: Tensor, target: int | str | None) -> AttackGoal:
    """Away from each image's predicted class, to the target if there is one."""
    predicted = model.choose("top", image)
    if target is None:
        return make_class_goal(model, predicted)
    return make_class_goal(model, predicted, model.choose(target, image))


@torch.no_grad()
def measure_perturbation_success(
    model: Model, image: Tensor, change: Tensor, target: int | str | None
) -> float:
    """The share of images that reach the goal when the change is added."""
    goal = make_universal_goal(model, image, target)
    changed_image = (image + change).clamp(0, 1)
    logits = model.run(changed_image, ["logits"])["logits"]
    is_reached = goal.is_reached(logits)
    return float(is_reached.float().mean())


def describe_perturbation(
    shares: dict[str, float], display_factor: float, norm: Norm, train_count: int
) -> str:
    """The caption of the figure."""
    on_test_images = ""
    if "fooled_new" in shares:
        on_test_images = f" and on {shares['fooled_new']:.0%} of new images"
    return (
        f"The change, ×{display_factor:.0f} around gray, and images without and with it. It fools "
        f"the network on {shares['fooled']:.0%} of the {train_count} images it was learned from"
        f"{on_test_images}; random noise of the same {norm} norm on {shares['fooled_random']:.0%}."
    )
