"""The goal of an attack, the losses that lead to it, and the record of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.models.heads.gradients import differentiate_scores
from sightline.models.heads.output_head import OutputHead
from sightline.models.model import Model
from sightline.optim.parameterizations.gray import make_gray_picture
from sightline.registry.progress import Callback, Step

AttackLoss = Literal["cross_entropy", "margin", "dlr", "logit"]


@dataclass(frozen=True)
class AttackGoal:
    """What an attack is to achieve.

    Attributes:
        source_labels: for each image the class to leave, N.
        target_labels: the class to reach, N; None for any other class.
        has_independent_labels: whether each label has a probability of its own, by a sigmoid. The
            goal is then that the label to leave falls below one half, or that the one to reach
            rises above it.
    """

    source_labels: Tensor
    target_labels: Tensor | None = None
    has_independent_labels: bool = False

    def select_images(self, index: Tensor) -> "AttackGoal":
        """The goals of the images at `index`."""
        target_labels = None if self.target_labels is None else self.target_labels[index]
        return replace(self, source_labels=self.source_labels[index], target_labels=target_labels)

    def measure_crossing(self, logits: Tensor) -> Tensor | None:
        """How far each image is beyond its one boundary, N; None where classes compete."""
        if not self.has_independent_labels:
            return None
        if self.target_labels is not None:
            return select_class_scores(logits, self.target_labels)
        return -select_class_scores(logits, self.source_labels)

    def is_reached(self, logits: Tensor) -> Tensor:
        """Whether each image fulfils the goal, N."""
        crossing = self.measure_crossing(logits)
        if crossing is not None:
            return crossing > 0
        top_class = logits.argmax(1)
        if self.target_labels is None:
            return top_class != self.source_labels
        return top_class == self.target_labels


@dataclass(frozen=True)
class ScoreGoal(AttackGoal):
    """A score that is to change by at least half of its magnitude.

    Attributes:
        source_labels: zeros, N: the score is the only column.
        clean_scores: the scores of the clean images, N.
        is_raised: whether it is to rise; else it is to fall.
    """

    clean_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    is_raised: bool = False

    def select_images(self, index: Tensor) -> "ScoreGoal":
        """The goals of the images at `index`."""
        return replace(
            self,
            source_labels=self.source_labels[index],
            clean_scores=self.clean_scores[index],
        )

    def measure_crossing(self, logits: Tensor) -> Tensor:
        """How far each score has changed beyond half of its clean magnitude, N."""
        return self.measure_change(logits) - self.clean_scores.abs() / 2

    def measure_change(self, logits: Tensor) -> Tensor:
        """How far each score has changed in the direction that is wanted, N."""
        change = logits[:, 0] - self.clean_scores
        return change if self.is_raised else -change

    def is_reached(self, logits: Tensor) -> Tensor:
        """Whether each score has changed enough, N; one that was zero has to change at all."""
        change = self.measure_change(logits)
        return (change >= self.clean_scores.abs() / 2) & (change > 0)


def make_class_goal(
    model: Model, source_labels: Tensor, target_labels: Tensor | None = None
) -> AttackGoal:
    """The goal for a model's classes, N each.

    Raises SightlineError for a network that has no classes, and for one with a probability of each
    label at every place, whose mean no boundary divides.
    """
    model.require_classes("an attack")
    head = model.head
    score_kind = head.score_kind if isinstance(head, OutputHead) else head.kind
    is_independent = score_kind in ("binary", "multilabel")
    if is_independent and isinstance(head, OutputHead) and head.has_mean_probabilities:
        raise SightlineError(
            f"{model.name} gives a probability of each label at every place; `adversarial` takes a "
            "score to change: score=sl.pixel(y, x, label), sl.region(mask, label) or a function"
        )
    return AttackGoal(source_labels, target_labels, is_independent)


# ── losses: one number per image, to be increased ──


def compute_cross_entropy_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """Cross-entropy of the class to leave, or minus that of the target (Goodfellow 2015).

    Of independent labels it is the binary one, and of a score the score itself.
    """
    crossing = goal.measure_crossing(logits)
    if isinstance(goal, ScoreGoal):
        return goal.measure_crossing(logits)
    if crossing is not None:
        if goal.target_labels is not None:
            return -F.softplus(-crossing)
        return F.softplus(crossing)
    if goal.target_labels is not None:
        return -F.cross_entropy(logits, goal.target_labels, reduction="none")
    return F.cross_entropy(logits, goal.source_labels, reduction="none")


def compute_margin_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """The lead of the classes that fulfil the goal over those that do not, in logits.

    It is positive exactly where the goal is reached (Carlini & Wagner 2017, f₆). Where there is
    one boundary, how far the image is beyond it.
    """
    crossing = goal.measure_crossing(logits)
    if crossing is not None:
        return crossing
    if goal.target_labels is not None:
        target_scores = select_class_scores(logits, goal.target_labels)
        return target_scores - find_best_other_scores(logits, goal.target_labels)
    source_scores = select_class_scores(logits, goal.source_labels)
    return find_best_other_scores(logits, goal.source_labels) - source_scores


def compute_dlr_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """Difference of logits ratio: a margin that does not depend on the scale of the logits.

    Croce & Hein 2020, eq. 6 (untargeted) and 7 (targeted). Raises SightlineError where the network
    has fewer than 3 (4) classes, and where they don't compete.
    """
    if goal.measure_crossing(logits) is not None:
        raise SightlineError(
            "loss is 'dlr'; it compares classes of which an image has one: choose margin"
        )
    class_count = 3 if goal.target_labels is None else 4
    if logits.shape[1] < class_count:
        raise SightlineError(
            f"loss is 'dlr'; it compares {class_count} classes and this network has "
            f"{logits.shape[1]}: choose margin"
        )
    top_scores = logits.topk(class_count, dim=1).values
    if goal.target_labels is None:
        spread = top_scores[:, 0] - top_scores[:, 2]
        return compute_margin_loss(logits, goal) / (spread + 1e-12)
    target_scores = select_class_scores(logits, goal.target_labels)
    source_scores = select_class_scores(logits, goal.source_labels)
    spread = top_scores[:, 0] - (top_scores[:, 2] + top_scores[:, 3]) / 2
    return (target_scores - source_scores) / (spread + 1e-12)


def compute_logit_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """The target's logit, or minus that of the class to leave: the lecture's ascent."""
    if isinstance(goal, ScoreGoal):
        return goal.measure_crossing(logits)
    if goal.target_labels is not None:
        return select_class_scores(logits, goal.target_labels)
    return -select_class_scores(logits, goal.source_labels)


ATTACK_LOSSES: dict[AttackLoss, Callable[[Tensor, AttackGoal], Tensor]] = {
    "cross_entropy": compute_cross_entropy_loss,
    "margin": compute_margin_loss,
    "dlr": compute_dlr_loss,
    "logit": compute_logit_loss,
}


def select_class_scores(logits: Tensor, class_indices: Tensor) -> Tensor:
    """Each image's score of its class, N."""
    return logits.gather(1, class_indices[:, None])[:, 0]


def find_best_other_scores(logits: Tensor, class_indices: Tensor) -> Tensor:
    """Each image's best score of any other class, N."""
    other_logits = logits.scatter(1, class_indices[:, None], -torch.inf)
    return other_logits.amax(1)


# ── a run ──


class AttackRun:
    """One run of an attack on a batch: the model, the goal, and a record of the run.

    `gradient_counts` counts the gradients each image took, N. `first_nan_steps` is the number of
    the first gradient that was not finite, N; 0 where there was none. `is_stopped` tells whether
    the callback stopped the run. In the methods, `rows` are the batch indices of the images passed.
    """

    def __init__(
        self,
        model: Model,
        goal: AttackGoal,
        loss: AttackLoss,
        total_steps: int,
        callback: Callback | None = None,
    ) -> None:
        self.model = model
        self.goal = goal
        self.loss: AttackLoss = loss
        self.total_steps = total_steps
        self.callback = callback
        self.gradient_counts = torch.zeros_like(goal.source_labels)
        self.first_nan_steps = torch.zeros_like(goal.source_labels)
        self.step_index = 0
        self.is_stopped = False

    def compute_logits(self, image: Tensor) -> Tensor:
        """Logits N×classes, in float32, of images N×C×H×W or gray levels N×1×H×W."""
        return run_for_logits(self.model, image)

    def compute_gradient(
        self, image: Tensor, rows: Tensor, loss: AttackLoss | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the loss N×3×H×W, the losses N and the logits N×classes of images.

        A gradient that is not finite is recorded and set to zero, so its image does not move.
        """
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            logits = self.compute_logits(leaf)
            losses = ATTACK_LOSSES[loss or self.loss](logits, self.goal.select_images(rows))
            gradient = differentiate_scores(losses, leaf, "the image")
        self.gradient_counts[rows] += 1

        is_broken = ~gradient.flatten(1).isfinite().all(1)
        if is_broken.any():
            newly_broken = rows[is_broken & (self.first_nan_steps[rows] == 0)]
            self.first_nan_steps[newly_broken] = self.gradient_counts[newly_broken]
            gradient[is_broken] = 0
        return gradient, losses.detach(), logits.detach()

    @torch.no_grad()
    def is_fooled(self, image: Tensor, rows: Tensor) -> Tensor:
        """Whether each image reaches its goal, N."""
        logits = self.compute_logits(image)
        return self.goal.select_images(rows).is_reached(logits)

    def is_fooled_after_rounding(self, image: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Whether each image, with these logits, reaches its goal as it is and in 8 bits, N."""
        is_fooled = self.goal.select_images(rows).is_reached(logits)
        if is_fooled.any():
            rounded = round_to_8_bits(image[is_fooled])
            is_fooled[is_fooled.clone()] = self.is_fooled(rounded, rows[is_fooled])
        return is_fooled

    def report_step(self, scores: Tensor, image: Tensor) -> bool:
        """Reports a step to the callback, with the images before it; True if the run is to stop."""
        self.step_index += 1
        if self.callback:
            shown = show_all_channels(self.model, image.detach()).clone()
            step = Step(self.step_index, self.total_steps, scores, shown)
            self.is_stopped = bool(self.callback(step))
        return self.is_stopped


def show_all_channels(model: Model, image: Tensor) -> Tensor:
    """Images as the model takes them.

    Attacks on a network that sees luminance change gray levels N×1×H×W, which become three equal
    channels here.
    """
    if image.shape[1] == 1 and model.is_gray:
        return make_gray_picture(image)
    return image


def run_for_logits(model: Model, image: Tensor) -> Tensor:
    """Logits N×classes, in float32, of images N×C×H×W or gray levels N×1×H×W."""
    return model.run(show_all_channels(model, image), ["logits"])["logits"].float()


def round_to_8_bits(image: Tensor) -> Tensor:
    """The image rounded to multiples of 1/255, as a PNG stores it."""
    return (image * 255).round() / 255
