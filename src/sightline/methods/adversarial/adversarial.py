"""Adversarial examples: small changes that make the network misclassify an image
(Goodfellow 2015; Madry 2018)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.charts import draw_length_histogram, draw_line_plots
from sightline.images.plotting.figures import FigureData, LineChart
from sightline.methods.adversarial.attacks.goal import AttackGoal, ScoreGoal, make_class_goal
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import (
    UNBOUNDED_ATTACKS,
    Attack,
    AttackName,
    set_attack_radius,
)
from sightline.methods.adversarial.figure import (
    compute_accuracy_curve,
    describe_accuracy_curve,
    evaluate_attack,
)
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.optim.parameterizations.gray import make_gray_picture
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result


@register_method(
    chapter="generative",
    title="Adversarial example",
    question="How small a change makes the network say something else?",
    reading="On the left the image, on the right the changed image and the class the network "
    "predicts for it, between them their difference, enlarged by the factor in the caption. At a "
    "small radius the two images look the same to us. The curve shows how accuracy falls as the "
    "change may grow: an attack that does not bring it to zero at a large radius is broken, it "
    "does not show that the network is robust.",
    caution="It shows that small changes, invisible to us, can change the class score a lot; not "
    "that the network looked at the wrong thing in the photograph. Success at one size of change "
    "says nothing about smaller ones, and an attack's failure does not prove that none exists.",
    tour_runs=({"early": False, "curve": 3, "steps": 20},),
    quick_parameters={"steps": 10, "curve": 3},
)
def adversarial(
    model: Model,
    image: Tensor,
    *,
    target: ClassChoice | None = None,
    score: TargetChoice | None = None,
    direction: Literal["lower", "higher"] = "lower",
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
    """Changes an image slightly so that the network predicts another class, or the target.

    Bounded by eps: "pgd" (Madry 2018), "fgsm" (Goodfellow 2015), "ifgsm" (Kurakin 2017), "mifgsm"
    (Dong 2018), "apgd" (Croce & Hein 2020). Looking for the smallest change: "deepfool"
    (Moosavi-Dezfooli 2016), "fmn" (Pintor 2021), "cw" (Carlini & Wagner 2017). "ascent" is the
    lecture's: it increases the target's score until the target is predicted.

    Of labels that don't exclude each other, the predicted one is to fall below one half, or the
    target to rise above it. With `score`, success is a change by half of its clean magnitude;
    `values["clean_score"]` and `["score"]`, N each, are before and after. For a network that sees
    luminance, all images and changes are gray.

    `values["image"]` is N×C×H×W, unrounded, with its `["logits"]`, `["success"]` and the norms of
    the change, `["linf"]`, `["l2"]`, `["l1"]`, N each. `["image_8bit"]` is the image as a PNG
    stores it (a smallest change is enlarged until it survives the rounding), with
    `["success_8bit"]`. `["gradients"]` is the number of gradients each image took, `["halted"]`
    the number of the first that was not finite, or 0. With a curve, `["curve_eps"]` are the radii
    and `["curve_accuracy"]` the share of images that withstand each.

    Args:
        target: Class to reach: index, name, "least" for the least likely one, or one for each
            image; None for any class but the predicted one.
        score: What to attack in place of the classes: a target such as `sl.unit("layer4", 7)`, its
            text, or a function of the network's output.
        direction: Whether the score is to become lower or higher.
        attack: Which attack, see above.
        norm: Norm of the change to keep small: "linf" the largest change of a pixel value, "l2"
            the Euclidean length, "l1" the sum; "auto" is l2 for attacks without a radius, linf
            for others.
        eps: Radius in units of [0, 1] pixel values; by default 4/255 for linf, a root mean square
            of 2/255 for l2, a mean of 1/255 for l1.
        steps: Number of steps; by default 1 for fgsm, 10 for ifgsm and mifgsm, 40 for pgd, 50 for
            deepfool, 200 for ascent, else 100.
        step_size: Length of a step in the norm (learning rate of Adam for cw); by default
            2.5·eps/steps for pgd, eps/steps for ifgsm and mifgsm.
        loss: Loss that the bounded attacks increase.
        restarts: How often the bounded attacks start anew on the images not yet fooled.
        early: Whether an image leaves the batch as soon as it fools the network, in 8 bits too;
            otherwise it takes all steps and fools more surely.
        curve: Number of radii, from eps/4 to 4·eps, at which the attack is repeated; an attack
            for the smallest change needs no repetition.
        peer: Attack of another library instead: "foolbox:LinfPGD" (extra attacks) or
            "torchattacks:AutoAttack".
    """
    model = model.with_target(score)
    image = take_attacked_image(model, image)
    with torch.no_grad():
        clean_logits = model.run(image, ["logits"])["logits"].float()
    goal = make_attack_goal(model, image, clean_logits, target, is_raised=direction == "higher")
    change_norm: Norm = choose_default_norm(attack, peer) if norm == "auto" else norm
    configured_attack = set_attack_radius(
        Attack(attack, change_norm, 0.0, steps, step_size, loss, restarts, early, peer, seed),
        eps,
        image,
    )
    changed_image, run = configured_attack(model, image, goal, callback)
    changed_image = changed_image.detach()
    outcome = evaluate_attack(configured_attack, run, image, clean_logits, changed_image)

    values = outcome.collect_values()
    panels = {
        "adversarial": outcome.render_comparison(),
        "image": model.to_picture(outcome.rounded_image[:1].cpu()),
    }
    captions = {
        "adversarial": outcome.describe_outcome(),
        "image": outcome.describe_saved_file(),
    }
    figures: dict[str, FigureData] = {"adversarial": outcome.list_pictures()}
    if curve:
        accuracy_curve = compute_accuracy_curve(outcome, curve)
        values["curve_eps"] = accuracy_curve.radii
        values["curve_accuracy"] = accuracy_curve.accuracy
        values["curve_probability"] = accuracy_curve.probability
        plot, captions["curve"] = describe_accuracy_curve(outcome, accuracy_curve)
        panels["curve"] = draw_line_plots([plot])
        figures["curve"] = LineChart([plot])

    success = goal.is_reached(outcome.changed_logits).cpu()
    if configured_attack.is_minimal and len(image) > 1 and success.any():
        distances = compute_image_norms((changed_image - image).cpu(), change_norm)
        panels["lengths"] = draw_length_histogram(
            distances[success].tolist(), f"{change_norm} norm of the smallest change"
        )
        captions["lengths"] = (
            f"How large a change each of {len(image)} images needs, as {attack} finds it."
        )
    return Result(panels, values, captions, figures=figures)


def choose_default_norm(attack: AttackName, peer: str | None) -> Norm:
    """l2 for attacks without a radius, else linf."""
    return "l2" if attack in UNBOUNDED_ATTACKS and not peer else "linf"


def take_attacked_image(model: Model, image: Tensor) -> Tensor:
    """The image on the model's device; in gray for a network that sees luminance."""
    image = image.to(model.device)
    return make_gray_picture(image).contiguous() if model.is_gray else image


def make_attack_goal(
    model: Model,
    image: Tensor,
    logits: Tensor,
    target: ClassChoice | None,
    *,
    is_raised: bool = False,
) -> AttackGoal:
    """The goal for images with these logits; `is_raised` tells the direction of a target's score.

    Raises SightlineError for a network without classes, for a class that is unknown, for a goal
    that all images have reached already, and for scores that are not finite.
    """
    if not logits.isfinite().all():
        raise SightlineError(
            f"{model.name} gives infinite scores for this image, of which none can be raised or "
            "lowered; its weights may be damaged"
        )
    if model.output_kind == "target":
        if target is not None:
            raise SightlineError(
                f"target is {target!r}, a class, and a score is attacked; leave out one"
            )
        only_column = torch.zeros_like(logits[:, 0], dtype=torch.long)
        return ScoreGoal(only_column, clean_scores=logits[:, 0], is_raised=is_raised)
    if is_raised:
        raise SightlineError("direction is that of a score; give score=, or leave direction out")
    predicted = logits.argmax(1)
    if target is None:
        goal = make_class_goal(model, predicted)
        if bool(goal.is_reached(logits).all()):
            raise SightlineError(
                f"{model.name} gives no label one half or more, so there is none to take away; "
                "name the one to reach with target="
            )
        return goal
    target_labels = logits.argmin(1) if target == "least" else model.choose(target, image)
    goal = make_class_goal(model, predicted, target_labels)
    if bool(goal.is_reached(logits).all()):
        raise SightlineError(
            f"the target {model.labels[int(target_labels[0])]} is what the network already "
            "predicts; choose another class"
        )
    return goal
