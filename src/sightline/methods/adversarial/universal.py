"""One small change for all images (Moosavi-Dezfooli 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.images.plotting.maps import arrange_in_row
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.norm_ball import (
    Norm,
    NormBall,
    compute_image_norms,
    sample_unit_offset,
)
from sightline.methods.adversarial.attacks.registry import compute_default_radius
from sightline.methods.adversarial.attacks.universal import optimize_universal_change as shared
from sightline.methods.adversarial.image_split import split_attack_images
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_UNIVERSAL_IMAGES = 4  # images in the picture


@register_method(
    chapter="generative",
    title="Universal perturbation",
    question="Is there one small change that fools the network on most images?",
    reading="Left the one change, enlarged by the factor in the caption, beside it images before and after it is added. That a single pattern works on images "
    "it was not made from shows that the network's weak directions are largely the same everywhere.",
    caution="Compare with the share that random noise of the same size fools, and look at the share on new images: made from few images, it fits those.",
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
    """Looks for one change of norm at most eps that makes the network leave its answer on as many images as it can.

    Learned from half of the folder's pictures and tried on the other half; without a folder, from the images themselves. `values["change"]`
    is 1×3×H×W; `["fooled"]`, `["fooled_new"]` (of the half that was kept back) and `["fooled_random"]` (random noise of that size) are
    shares; `["image"]` the given images with the change added, `["logits"]` and `["success"]` theirs.

    Args:
        folder: Folder of pictures to learn from and to be tried on; None for the given images.
        k: At most how many pictures of the folder.
        target: Class that all images are to be taken for: index or name; None just to leave their own.
        norm: What of the change is kept small.
        eps: Radius in units of [0, 1]; 10/255 for linf as published, 2.5 times the usual radius of the other norms.
        steps: How many steps, each on up to 16 of the pictures.
    """
    image = image.to(model.device)
    learned, new = split_attack_images(model, image, folder, k, seed)
    ball = NormBall(
        torch.zeros_like(image[:1]),
        (10 / 255 if norm == "linf" else 2.5 * compute_default_radius(norm, image))
        if eps is None
        else eps,
        norm,
    )
    run = AttackRun(
        model, make_universal_goal(model, learned, target), "cross_entropy", steps, callback
    )
    change = shared(run, learned, ball, steps, torch.Generator().manual_seed(seed)).detach()
    noise = sample_unit_offset(change, norm, torch.Generator().manual_seed(seed + 1))
    noise = noise / compute_image_norms(noise, norm) * compute_image_norms(change, norm)
    shares = {
        "fooled": measure_perturbation_success(model, learned, change, target),
        "fooled_random": measure_perturbation_success(model, learned, noise, target),
    }
    if new is not None:
        shares["fooled_new"] = measure_perturbation_success(model, new, change, target)
    after = (image + change).clamp(0, 1)
    with torch.no_grad():
        logits = run.compute_logits(after)
    reached = make_universal_goal(model, image, target).is_reached(logits)
    factor = 0.5 / max(float(change.abs().max()), 1e-6)
    pattern = (0.5 + change * factor).clamp(0, 1)
    panel = arrange_in_row(
        *(part[:MAX_UNIVERSAL_IMAGES].cpu() for part in (pattern.expand_as(image), image, after))
    )
    told = f" and on {shares['fooled_new']:.0%} of new ones" if "fooled_new" in shares else ""
    caption = (
        f"The change, ×{factor:.0f} around gray, and images before and after it. It fools the network on {shares['fooled']:.0%} of the {len(learned)} images it "
        f"was learned from{told}; random noise of the same {norm} length on {shares['fooled_random']:.0%}."
    )
    values = {
        "change": change.cpu(),
        **shares,
        "image": after.cpu(),
        "logits": logits.cpu(),
        "success": reached.cpu(),
    }
    return Result({"universal": panel}, values, {"universal": caption})


def make_universal_goal(model: Model, image: Tensor, target: int | str | None) -> AttackGoal:
    """What the change is after on these images."""
    clean = model.choose("top", image)
    return AttackGoal(clean, None if target is None else model.choose(target, image))


@torch.no_grad()
def measure_perturbation_success(
    model: Model, image: Tensor, change: Tensor, target: int | str | None
) -> float:
    """The share of images on which a change does what it is after."""
    aim = make_universal_goal(model, image, target)
    return float(
        aim.is_reached(model.run((image + change).clamp(0, 1), ["logits"])["logits"]).float().mean()
    )
