"""An attack by its name, with the constants of its paper where nothing else is asked for."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..ascend import Callback
from ..errors import SightlineError
from ..model import Model
from .aim import Aim, Loss, Run
from .auto import Auto
from .ball import Ball, Norm
from .bounded import Once, Steps, restarted
from .carlini import SEARCHES, carlini_wagner
from .minimal import deepfool, fmn, nearer
from .peers import borrowed

Name = Literal["pgd", "fgsm", "ifgsm", "mifgsm", "apgd", "ascent", "deepfool", "fmn", "cw"]
STEPS: dict[Name, int] = {
    "pgd": 40, "fgsm": 1, "ifgsm": 10, "mifgsm": 10, "apgd": 100, "ascent": 200, "deepfool": 50, "fmn": 100, "cw": 100,
}  # fmt: skip
MINIMAL: tuple[Name, ...] = ("deepfool", "fmn", "cw")
BOUNDLESS: tuple[Name, ...] = (*MINIMAL, "ascent")
OWN_STEPS: tuple[Name, ...] = ("fgsm", "apgd", "deepfool", "fmn")


@dataclass(frozen=True)
class Attack:
    """What to do to an image. None stands for the paper's constant, an infinite `eps` for the nearest picture that fools;
    `peer` names an attack of another library that takes the place of `name`."""

    name: Name = "pgd"
    norm: Norm = "linf"
    eps: float = 4 / 255
    steps: int | None = None
    step_size: float | None = None
    loss: Loss = "cross_entropy"
    restarts: int = 1
    early: bool = True
    peer: str | None = None
    seed: int = 0

    @property
    def minimal(self) -> bool:
        """Whether it looks for the smallest change, so that the length of what it finds says what every radius would do."""
        return self.name in MINIMAL and not self.peer

    def __call__(self, model: Model, image: Tensor, aim: Aim, callback: Callback | None = None) -> tuple[Tensor, Run]:
        """The changed images, on the model's device, and the record of the run."""
        image = image.contiguous(memory_format=torch.channels_last)  # as the network wants it: every step is cheaper
        ball, steps = Ball(image, self.eps, self.norm), self.steps or STEPS[self.name]
        total = steps * (SEARCHES if self.name == "cw" else self.restarts)
        run = Run(model, aim, "logit" if self.name == "ascent" else self.loss, total, callback)
        if self.peer:
            return borrowed(self.peer, model, ball, aim, steps=self.steps, seed=self.seed), run
        if self.minimal:
            return nearer(run, image, self.smallest(run, image, steps)), run
        generator = torch.Generator().manual_seed(self.seed)
        return restarted(run, ball, self.once(steps, image), self.restarts, generator), run

    def smallest(self, run: Run, image: Tensor, steps: int) -> Tensor:
        """By an attack that looks for the smallest change itself."""
        if self.name == "cw":
            return carlini_wagner(run, image, steps, self.step_size or 0.01)
        return (deepfool if self.name == "deepfool" else fmn)(run, image, self.norm, steps)

    def once(self, steps: int, image: Tensor) -> Once:
        """One run of projected steps."""
        if self.name == "apgd":
            return Auto(steps, self.early)
        usual = {
            "pgd": 2.5 * self.eps / steps,  # Madry 2018
            "fgsm": self.eps,
            "ascent": usual_radius(self.norm, image) / 10,
        }.get(self.name, self.eps / steps)
        momentum = 1.0 if self.name == "mifgsm" else 0.0
        return Steps(steps, self.step_size or usual, momentum, random=self.name == "pgd", early=self.early)


def usual_radius(norm: Norm, image: Tensor) -> float:
    """A radius that no eye follows: every pixel value by 4/255 at most, by 2/255 in the root mean square, by 1/255 on average."""
    count = math.prod(image.shape[1:])
    return {"linf": 4 / 255, "l2": 2 / 255 * math.sqrt(count), "l1": count / 255}[norm]


def chosen(attack: Attack, eps: float | None, image: Tensor) -> Attack:
    """The attack with its radius: the given one, the usual one of its norm, or infinite for attacks that have none.

    Raises SightlineError for knobs that the attack does not have.
    """
    if attack.peer:
        return replace(attack, eps=usual_radius(attack.norm, image) if eps is None else eps)
    if attack.name == "cw" and attack.norm != "l2":
        raise SightlineError(f"norm is {attack.norm!r}; cw has only l2: choose fmn or deepfool for others")
    if attack.step_size is not None and attack.name in OWN_STEPS:
        raise SightlineError(f"step_size is {attack.step_size}; {attack.name} finds the length of its steps itself: leave it out")
    if attack.name in BOUNDLESS:
        if eps is not None:
            raise SightlineError(f"eps is {eps}; {attack.name} has no radius, it stops where the network is fooled: leave it out")
        return replace(attack, eps=math.inf)
    return replace(attack, eps=usual_radius(attack.norm, image) if eps is None else eps)
