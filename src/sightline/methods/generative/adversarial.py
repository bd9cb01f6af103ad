"""Adversarial examples: a change too small to see that makes the network say something else (Goodfellow 2015; Madry 2018)."""

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render
from ...ascend import Callback, Steepest, ascend
from ...catalog import method
from ...errors import SightlineError
from ...knobs import Between
from ...model import Model
from ...objective import cross_entropy
from ...parameterize import Nearby, Norm, within
from ...result import Result


@method(
    title="Adversarial example",
    question="How small a change makes the network say something else?",
    reading="Left the image, right the changed image and what the network takes it for, between them their difference enlarged by the factor in the "
    "caption. At a small radius the two look the same to us.",
    caution="It shows that the class score has steep directions no eye follows, not that the network looked at the wrong thing in the photograph. Success at "
    "one size of change says nothing about smaller ones.",
    tour=({"target": "least"},),
)
def adversarial(
    model: Model,
    image: Tensor,
    *,
    target: int | str | None = None,
    attack: Literal["pgd", "fgsm"] = "pgd",
    norm: Norm = "linf",
    eps: Annotated[float, Between(0, 1000)] = 4 / 255,
    steps: Annotated[int, Between(1, 10_000)] = 40,
    step_size: Annotated[float | None, Between(0, 1000)] = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Moves an image by at most eps so that the network leaves its answer, or takes it for the target.

    Projected gradient descent (Madry 2018) from a random point of the ball on the cross-entropy; "fgsm" is its single step
    of length eps from the image itself (Goodfellow 2015). `values["image"]` is N×3×H×W, unrounded; `values["logits"]` its
    logits; `values["success"]` N booleans, and `values["success_8bit"]` the same after rounding to the 8 bits of a PNG.

    Args:
        target: Class to reach: index, name, "least" for the least likely one; None just to leave the predicted class.
        attack: "pgd" takes many small projected steps, "fgsm" one.
        norm: "linf" bounds the change of every pixel value, "l2" its Euclidean length over the image.
        eps: Radius in units of [0, 1] pixel values.
        steps: How many steps, for "pgd".
        step_size: Length of a step in units of the norm; 2.5·eps/steps by default (Madry 2018).
    """
    image = image.to(model.device)
    with torch.no_grad():
        before = model.run(image, ["logits"])["logits"]
    clean = before.argmax(1)
    wanted = before.argmin(1) if target == "least" else None if target is None else model.choose(target, image)
    if wanted is not None and bool((wanted == clean).all()):
        raise SightlineError(f"the target {model.labels[int(wanted[0])]} is what the network already sees; choose another class")
    # Increased: away from the answer, or (with a minus) towards the target.
    objective = cross_entropy(tuple(clean.tolist())) if wanted is None else -cross_entropy(tuple(wanted.tolist()))
    single = attack == "fgsm"
    noise = None if single else random_in_ball(image, eps, norm, seed)
    length = eps if single else step_size if step_size is not None else 2.5 * eps / steps
    start = Nearby(image, eps, norm, noise=noise)
    found, scores = ascend(model, objective, start, partial(Steepest, lr=length, norm=norm), 1 if single else steps, callback=callback)
    with torch.no_grad():
        after = model.run(found, ["logits"])["logits"]
        rounded = model.run((found * 255).round() / 255, ["logits"])["logits"]
    fooled, fooled_8bit = (hit(logits.argmax(1), clean, wanted) for logits in (after, rounded))
    change = (found - image).cpu()
    values = {
        "image": found.cpu(), "logits": after.cpu(), "clean_logits": before.cpu(), "success": fooled.cpu(), "success_8bit": fooled_8bit.cpu(),
        "linf": change.abs().flatten(1).amax(1), "l2": change.flatten(1).norm(dim=1), "losses": scores.cpu(),
    }  # fmt: skip
    factor = 0.5 / max(float(change[0].abs().max()), 1e-6)
    panel = render.beside(image.cpu(), (0.5 + change * factor).clamp(0, 1), found.cpu())
    caption = (
        f"{spoken(model, before[0])} on the left; the change, ×{factor:.0f} around gray (largest {float(values['linf'][0]) * 255:.1f}/255, "
        f"length {float(values['l2'][0]):.2f}); {spoken(model, after[0])} on the right. "
        f"{outcome(model, clean, wanted, after.argmax(1), fooled_8bit)}"
    )
    return Result({"adversarial": panel}, values, {"adversarial": caption})


def random_in_ball(image: Tensor, eps: float, norm: Norm, seed: int) -> Tensor:
    """A random offset of norm at most eps for each image: uniform per pixel for linf, a random direction and radius for l2."""
    generator = torch.Generator().manual_seed(seed)
    if norm == "linf":
        return ((2 * torch.rand(image.shape, generator=generator) - 1) * eps).to(image.device)
    direction = torch.randn(image.shape, generator=generator)
    radius = torch.rand(len(image), 1, 1, 1, generator=generator) * eps
    return within(direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radius, eps, norm).to(image.device)


def hit(answer: Tensor, clean: Tensor, wanted: Tensor | None) -> Tensor:
    """Whether the aim is reached, per image."""
    return answer != clean if wanted is None else answer == wanted


def outcome(model: Model, clean: Tensor, wanted: Tensor | None, answer: Tensor, fooled_8bit: Tensor) -> str:
    """What came of the first image, in words."""
    if answer[0] == clean[0]:
        return "The answer did not change: try a larger eps or more steps."
    if wanted is not None and answer[0] != wanted[0]:
        return f"The network is fooled, but the target {model.labels[int(wanted[0])]} was not reached."
    return f"It {'still' if bool(fooled_8bit[0]) else 'no longer'} fools the network once rounded to 8 bits."


def spoken(model: Model, logits: Tensor) -> str:
    """The answer in words: «tench (98 %)»."""
    probability, index = logits.softmax(0).max(0)
    return f"{model.labels[int(index)]} ({float(probability):.0%})"
