"""Adversarial examples: a change too small to see that makes the network say something else (Goodfellow 2015; Madry 2018)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.charts import draw_length_histogram
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import (
    UNBOUNDED_ATTACKS,
    Attack,
    AttackName,
    set_attack_radius,
)
from sightline.methods.adversarial.figure import evaluate_attack
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result


@register_method(
    chapter="generative",
    title="Adversarial example",
    question="How small a change makes the network say something else?",
    reading="Left the image, right the changed image and what the network takes it for, between them their difference enlarged by the factor in the "
    "caption. At a small radius the two look the same to us. The curve shows how the answer gives way as the change may grow: an attack that does not "
    "bring it to zero at a large radius is broken, not the network strong.",
    caution="It shows that the class score has steep directions no eye follows, not that the network looked at the wrong thing in the photograph. Success at "
    "one size of change says nothing about smaller ones, and an attack's failure is no proof that none exists.",
    tour_runs=({"target": "least", "early": False, "curve": 5},),
)
def adversarial(
    model: Model,
    image: Tensor,
    *,
    target: int | str | None = None,
    attack: AttackName = "pgd",
    norm: Literal["auto", "linf", "l2", "l1"] = "auto",
    eps: Annotated[float | None, ValueRange(1e-6, 1_000_000)] = None,
    steps: Annotated[int | None, ValueRange(1, 10_000)] = None,
    step_size: Annotated[float | None, ValueRange(1e-9, 1_000_000)] = None,
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy",
    restarts: Annotated[int, ValueRange(1, 100)] = 1,
    early: bool = True,
    curve: Annotated[int, ValueRange(0, 30)] = 0,
    peer: str | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Changes an image as little as it can so that the network leaves its answer, or takes it for the target.

    Bounded by eps: "pgd" (Madry 2018), "fgsm" (Goodfellow 2015), "ifgsm" (Kurakin 2017), "mifgsm" (Dong 2018), "apgd" (Croce & Hein 2020).
    Looking for the smallest change: "deepfool" (Moosavi-Dezfooli 2016), "fmn" (Pintor 2021), "cw" (Carlini & Wagner 2017).
    "ascent" is the lecture's: up the target's score until it is the answer. `values["image"]` is N×3×H×W, unrounded, with its
    `["logits"]`, `["success"]` and lengths `["linf"]`, `["l2"]`, `["l1"]`, N each; `["image_8bit"]` what a PNG holds (a smallest change
    is enlarged until it outlives the rounding) and `["success_8bit"]`; `["gradients"]` how many each image took and
    `["halted"]` the first that was no number, or 0. With a curve, `["curve_eps"]` and `["curve_accuracy"]`, the share that withstands.

    Args:
        target: Class to reach: index, name, "least" for the least likely one; None just to leave the predicted class.
        attack: Which attack, see above.
        norm: What is kept small: "linf" the largest change of a pixel value, "l2" the Euclidean length, "l1" the sum; "auto" is l2 for
            attacks without a radius, else linf.
        eps: Radius in units of [0, 1] pixel values; 4/255 for linf, 2/255 in the root mean square for l2, 1/255 on average for l1.
        steps: How many steps; by default 1 of fgsm, 10 of ifgsm and mifgsm, 40 of pgd, 50 of deepfool, 200 of ascent, else 100.
        step_size: Length of a step in the norm (of cw: Adam's); by default 2.5·eps/steps for pgd, eps/steps for ifgsm and mifgsm.
        loss: What the steps of the bounded attacks increase.
        restarts: How many times the bounded attacks try; what fools is not tried again.
        early: Whether an image leaves the batch as soon as it fools, in 8 bits too; otherwise all steps make it fool more surely.
        curve: At how many radii the attack is repeated, from a quarter of eps to four times; of a smallest change every radius is known.
        peer: Attack of another library instead: "foolbox:LinfPGD" (extra attacks), "torchattacks:AutoAttack".
    """
    image = image.to(model.device)
    with torch.no_grad():
        before = model.run(image, ["logits"])["logits"].float()
    aim = make_attack_goal(model, image, before, target)
    kind: Norm = (
        ("l2" if attack in UNBOUNDED_ATTACKS and not peer else "linf") if norm == "auto" else norm
    )
    asked = set_attack_radius(
        Attack(attack, kind, 0.0, steps, step_size, loss, restarts, early, peer, seed), eps, image
    )
    found, run = asked(model, image, aim, callback)
    outcome = evaluate_attack(asked, run, image, before, found.detach())
    values = outcome.collect_values()
    panels, captions = (
        {"adversarial": outcome.render_comparison(), "image": outcome.rounded_image[:1].cpu()},
        {"adversarial": outcome.describe_outcome(), "image": outcome.describe_saved_file()},
    )
    if curve:
        radii, accuracy, probability = outcome.compute_accuracy_curve(curve)
        values |= {"curve_eps": radii, "curve_accuracy": accuracy, "curve_probability": probability}
        panels["curve"], captions["curve"] = outcome.render_accuracy_curve(
            radii, accuracy, probability
        )
    success = aim.is_reached(outcome.changed_logits).cpu()
    if asked.is_minimal and len(image) > 1 and success.any():
        panels["lengths"] = draw_length_histogram(
            compute_image_norms((found - image).cpu(), kind)[success].tolist(),
            f"{kind} length of the smallest change",
        )
        captions["lengths"] = (
            f"How large a change each of {len(image)} images needs, as {attack} finds it."
        )
    return Result(panels, values, captions)


def make_attack_goal(
    model: Model, image: Tensor, logits: Tensor, target: int | str | None
) -> AttackGoal:
    """The aim for images with these logits. Raises SightlineError for a class that all of them have already, or that there is not."""
    clean = logits.argmax(1)
    wanted = (
        logits.argmin(1)
        if target == "least"
        else None
        if target is None
        else model.choose(target, image)
    )
    if wanted is not None and bool((wanted == clean).all()):
        raise SightlineError(
            f"the target {model.labels[int(wanted[0])]} is what the network already sees; choose another class"
        )
    return AttackGoal(clean, wanted)
