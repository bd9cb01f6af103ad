"""What an attack is after, the losses that lead there, and the record of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ascend import Callback, Step
from ..errors import SightlineError
from ..model import Model
from ..outputs import slope

Loss = Literal["cross_entropy", "margin", "dlr", "logit"]


@dataclass(frozen=True)
class Aim:
    """Per image: the class to leave, and the class to reach (None: any other)."""

    away: Tensor
    wanted: Tensor | None = None

    def rows(self, index: Tensor) -> "Aim":
        """The aims for some of the images."""
        return Aim(self.away[index], None if self.wanted is None else self.wanted[index])

    def reached(self, logits: Tensor) -> Tensor:
        """Whether the answer is what the attack is after, N."""
        answer = logits.argmax(1)
        return answer != self.away if self.wanted is None else answer == self.wanted


# ── losses: one number per image, to be increased ──


def cross_entropy(logits: Tensor, aim: Aim) -> Tensor:
    """Away from the class, or towards the wanted one (Goodfellow 2015)."""
    if aim.wanted is not None:
        return -F.cross_entropy(logits, aim.wanted, reduction="none")
    return F.cross_entropy(logits, aim.away, reduction="none")


def margin(logits: Tensor, aim: Aim) -> Tensor:
    """By how much the best score that would do exceeds the best that would not (Carlini & Wagner 2017): positive once it fools."""
    if aim.wanted is not None:
        return of(logits, aim.wanted) - best_but(logits, aim.wanted)
    return best_but(logits, aim.away) - of(logits, aim.away)


def dlr(logits: Tensor, aim: Aim) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6 and 7): the margin, whatever the scale of the scores."""
    least = 3 if aim.wanted is None else 4
    if logits.shape[1] < least:
        raise SightlineError(f"loss is 'dlr'; it compares {least} classes and this network has {logits.shape[1]}: choose margin")
    top = logits.topk(least, dim=1).values
    if aim.wanted is not None:
        return (of(logits, aim.wanted) - of(logits, aim.away)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
    return margin(logits, aim) / (top[:, 0] - top[:, 2] + 1e-12)


def logit(logits: Tensor, aim: Aim) -> Tensor:
    """The wanted score itself, or minus the one to leave: the lecture's ascent."""
    return of(logits, aim.wanted) if aim.wanted is not None else -of(logits, aim.away)


LOSSES: dict[Loss, Callable[[Tensor, Aim], Tensor]] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr, "logit": logit}


def of(logits: Tensor, index: Tensor) -> Tensor:
    """Each image's score of its class, N."""
    return logits.gather(1, index[:, None])[:, 0]


def best_but(logits: Tensor, index: Tensor) -> Tensor:
    """Each image's best score of another class, N."""
    return logits.scatter(1, index[:, None], -torch.inf).amax(1)


# ── a run ──


class Run:
    """One run of an attack on a batch: the network, the aim, and the record: `gradients` per image, the first step whose
    gradient was not a number (`halted`, 0 for none), and whether the callback stopped it.

    `rows` are the places in the batch of the images that are still under attack.
    """

    def __init__(self, model: Model, aim: Aim, loss: Loss, total: int, callback: Callback | None = None) -> None:
        self.model, self.aim, self.total, self.callback = model, aim, total, callback
        self.loss: Loss = loss
        self.gradients, self.halted = torch.zeros_like(aim.away), torch.zeros_like(aim.away)
        self.index, self.stopped = 0, False

    def answers(self, image: Tensor) -> Tensor:
        """Logits, in full precision."""
        return self.model.run(image, ["logits"])["logits"].float()

    def uphill(self, image: Tensor, rows: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, loss and logits of images. A gradient that is not a number is zero, so the picture stays as it is."""
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            logits = self.answers(leaf)
            losses = LOSSES[loss or self.loss](logits, self.aim.rows(rows))
            gradient = slope(losses, leaf, "the image")
        self.gradients[rows] += 1
        broken = ~gradient.flatten(1).isfinite().all(1)
        if broken.any():
            first = rows[broken & (self.halted[rows] == 0)]
            self.halted[first] = self.gradients[first]
            gradient[broken] = 0
        return gradient, losses.detach(), logits.detach()

    @torch.no_grad()
    def fools(self, image: Tensor, rows: Tensor) -> Tensor:
        """Whether the network is fooled, per image."""
        return self.aim.rows(rows).reached(self.answers(image))

    def settled(self, image: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Whether an image with these logits fools the network and still will when it is saved with 8 bits."""
        fooled = self.aim.rows(rows).reached(logits)
        if fooled.any():
            fooled[fooled.clone()] = self.fools(rounded(image[fooled]), rows[fooled])
        return fooled

    def tell(self, scores: Tensor, image: Tensor) -> bool:
        """Reports a step to the callback, with the images before it; True once the run is to stop."""
        self.index += 1
        if self.callback:
            self.stopped = bool(self.callback(Step(self.index, self.total, scores, image.detach().clone())))
        return self.stopped


def rounded(image: Tensor) -> Tensor:
    """The image as 8 bits keep it."""
    return (image * 255).round() / 255
