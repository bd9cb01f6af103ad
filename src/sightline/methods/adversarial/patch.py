"""A sticker that makes the network see something else wherever it lies (Brown 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import arrange_in_row, enlarge_pixels
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.universal import (
    optimize_adversarial_patch,
    paste_round_patch,
    sample_patch_positions,
)
from sightline.methods.adversarial.image_split import split_attack_images
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_PATCHED_IMAGES = 4  # images in the picture

PATCH_PLACEMENT_TRIES = 16  # places at which a patch is tried on each image


@register_method(
    chapter="generative",
    title="Adversarial patch",
    question="Can a sticker make the network see something else, wherever it lies?",
    reading="The patch alone, and pasted at random places, sizes and turns on images with what the network then takes them for. It need not be small or hidden: "
    "it shouts louder than everything else in the image.",
    caution="A patch is learned for this network, for this class and for such images; printed and photographed it loses. How often a gray disc of the same "
    "size reaches the class is told beside it.",
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
    """Learns a round patch that makes the network answer the target on any image, averaged over random places, sizes and turns.

    Learned from half of the folder's pictures and tried on the other half; without a folder, from the images themselves. `values["patch"]`
    is 1×3×s×s; `["reached"]`, `["reached_new"]` and `["reached_gray"]` (a gray disc) are shares over 16 places on each image, of images that
    are not of the class already; `["image"]` the given images with the patch on them, `["logits"]` and `["success"]` theirs.

    Args:
        target: Class that the patch stands for: index or name, or "least" for the one that the images are least taken for.
        folder: Folder of pictures to learn from and to be tried on; None for the given images.
        k: At most how many pictures of the folder.
        share: Diameter of the patch as a share of the image's short side; it varies by a fifth of it.
        steps: How many steps, each on 16 random images and places.
    """
    image = image.to(model.device)
    learned, new = split_attack_images(model, image, folder, k, seed)
    with torch.no_grad():
        logits = model.run(learned, ["logits"])["logits"].float()
    wanted = (
        int(logits.log_softmax(1).mean(0).argmin()) if target == "least" else model.index(target)
    )
    if bool((logits.argmax(1) == wanted).all()):
        raise SightlineError(
            f"the target {model.labels[wanted]} is what the network already sees; choose another class"
        )
    aim = AttackGoal(logits.argmax(1), torch.full((len(learned),), wanted, device=model.device))
    run = AttackRun(model, aim, "cross_entropy", steps, callback)
    patch = optimize_adversarial_patch(
        run, learned, share, steps, torch.Generator().manual_seed(seed)
    ).detach()
    gray = torch.full_like(patch, 0.5)
    shares = {
        "reached": measure_patch_success(model, learned, patch, wanted, share),
        "reached_gray": measure_patch_success(model, learned, gray, wanted, share),
    }
    if new is not None:
        shares["reached_new"] = measure_patch_success(model, new, patch, wanted, share)
    after = paste_round_patch(
        image, patch, sample_patch_positions(image, share, torch.Generator().manual_seed(seed + 2))
    )
    with torch.no_grad():
        logits = run.compute_logits(after)
    answers = ", ".join(model.labels[int(i)] for i in logits[:MAX_PATCHED_IMAGES].argmax(1))
    panel = arrange_in_row(*(one[None].cpu() for one in (patch[0], *after[:MAX_PATCHED_IMAGES])))
    told = f", {shares['reached_new']:.0%} on new ones" if "reached_new" in shares else ""
    caption = (
        f"A patch for {model.labels[wanted]}, and images with it, taken for {answers}. Over random places it reaches the class on {shares['reached']:.0%} of the "
        f"{len(learned)} images it was learned from{told}; a gray disc on {shares['reached_gray']:.0%}."
    )
    values = {
        "patch": patch.cpu(),
        **shares,
        "image": after.cpu(),
        "logits": logits.cpu(),
        "success": (logits.argmax(1) == wanted).cpu(),
    }
    return Result(
        {"patch": panel, "sticker": enlarge_pixels(patch.cpu(), 128)},
        values,
        {"patch": caption, "sticker": "The patch alone."},
    )


@torch.no_grad()
def measure_patch_success(
    model: Model, image: Tensor, patch: Tensor, target_class: int, diameter_share: float
) -> float:
    """How often the patch reaches the class, at random places on images that are not of it already."""
    others = image[model.choose("top", image) != target_class]
    if not len(others):
        return 1.0
    generator = torch.Generator().manual_seed(1)
    reached = [
        model.run(
            paste_round_patch(
                others, patch, sample_patch_positions(others, diameter_share, generator)
            ),
            ["logits"],
        )["logits"].argmax(1)
        == target_class
        for _ in range(PATCH_PLACEMENT_TRIES)
    ]
    return float(torch.cat(reached).float().mean())
