"""What an attack is after, the losses that lead there, and the record of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.outputs import differentiate_scores
from sightline.registry.progress import Callback, Step

AttackLoss = Literal["cross_entropy", "margin", "dlr", "logit"]


@dataclass(frozen=True)
class AttackGoal:
    """Per image: the class to leave, and the class to reach (None: any other)."""

    source_labels: Tensor
    target_labels: Tensor | None = None

    def select_images(self, index: Tensor) -> "AttackGoal":
        """The aims for some of the images."""
        return AttackGoal(
            self.source_labels[index],
            None if self.target_labels is None else self.target_labels[index],
        )

    def is_reached(self, logits: Tensor) -> Tensor:
        """Whether the answer is what the attack is after, N."""
        answer = logits.argmax(1)
        return (
            answer != self.source_labels
            if self.target_labels is None
            else answer == self.target_labels
        )


# ── losses: one number per image, to be increased ──


def compute_cross_entropy_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """Away from the class, or towards the wanted one (Goodfellow 2015)."""
    if goal.target_labels is not None:
        return -F.cross_entropy(logits, goal.target_labels, reduction="none")
    return F.cross_entropy(logits, goal.source_labels, reduction="none")


def compute_margin_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """By how much the best score that would do exceeds the best that would not (Carlini & Wagner 2017): positive once it fools."""
    if goal.target_labels is not None:
        return select_class_scores(logits, goal.target_labels) - find_best_other_scores(
            logits, goal.target_labels
        )
    return find_best_other_scores(logits, goal.source_labels) - select_class_scores(
        logits, goal.source_labels
    )


def compute_dlr_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6 and 7): the margin, whatever the scale of the scores."""
    least = 3 if goal.target_labels is None else 4
    if logits.shape[1] < least:
        raise SightlineError(
            f"loss is 'dlr'; it compares {least} classes and this network has {logits.shape[1]}: choose margin"
        )
    top = logits.topk(least, dim=1).values
    if goal.target_labels is not None:
        return (
            select_class_scores(logits, goal.target_labels)
            - select_class_scores(logits, goal.source_labels)
        ) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
    return compute_margin_loss(logits, goal) / (top[:, 0] - top[:, 2] + 1e-12)


def compute_logit_loss(logits: Tensor, goal: AttackGoal) -> Tensor:
    """The wanted score itself, or minus the one to leave: the lecture's ascent."""
    return (
        select_class_scores(logits, goal.target_labels)
        if goal.target_labels is not None
        else -select_class_scores(logits, goal.source_labels)
    )


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
    """Each image's best score of another class, N."""
    return logits.scatter(1, class_indices[:, None], -torch.inf).amax(1)


# ── a run ──


class AttackRun:
    """One run of an attack on a batch: the network, the aim, and the record: `gradients` per image, the first step whose
    gradient was not a number (`halted`, 0 for none), and whether the callback stopped it.

    `rows` are the places in the batch of the images that are still under attack.
    """

    def __init__(
        self,
        model: Model,
        goal: AttackGoal,
        loss: AttackLoss,
        total_steps: int,
        callback: Callback | None = None,
    ) -> None:
        self.model, self.goal, self.total_steps, self.callback = model, goal, total_steps, callback
        self.loss: AttackLoss = loss
        self.gradient_counts, self.first_nan_steps = (
            torch.zeros_like(goal.source_labels),
            torch.zeros_like(goal.source_labels),
        )
        self.step_index, self.is_stopped = 0, False

    def compute_logits(self, image: Tensor) -> Tensor:
        """Logits, in full precision."""
        return self.model.run(image, ["logits"])["logits"].float()

    def compute_gradient(
        self, image: Tensor, rows: Tensor, loss: AttackLoss | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, loss and logits of images. A gradient that is not a number is zero, so the picture stays as it is."""
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            logits = self.compute_logits(leaf)
            losses = ATTACK_LOSSES[loss or self.loss](logits, self.goal.select_images(rows))
            gradient = differentiate_scores(losses, leaf, "the image")
        self.gradient_counts[rows] += 1
        broken = ~gradient.flatten(1).isfinite().all(1)
        if broken.any():
            first = rows[broken & (self.first_nan_steps[rows] == 0)]
            self.first_nan_steps[first] = self.gradient_counts[first]
            gradient[broken] = 0
        return gradient, losses.detach(), logits.detach()

    @torch.no_grad()
    def is_fooled(self, image: Tensor, rows: Tensor) -> Tensor:
        """Whether the network is fooled, per image."""
        return self.goal.select_images(rows).is_reached(self.compute_logits(image))

    def is_fooled_after_rounding(self, image: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Whether an image with these logits fools the network and still will when it is saved with 8 bits."""
        fooled = self.goal.select_images(rows).is_reached(logits)
        if fooled.any():
            fooled[fooled.clone()] = self.is_fooled(round_to_8_bits(image[fooled]), rows[fooled])
        return fooled

    def report_step(self, scores: Tensor, image: Tensor) -> bool:
        """Reports a step to the callback, with the images before it; True once the run is to stop."""
        self.step_index += 1
        if self.callback:
            self.is_stopped = bool(
                self.callback(
                    Step(self.step_index, self.total_steps, scores, image.detach().clone())
                )
            )
        return self.is_stopped


def round_to_8_bits(image: Tensor) -> Tensor:
    """The image as 8 bits keep it."""
    return (image * 255).round() / 255
