"""An attack by its name, with the constants of its paper where nothing else is asked for."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.methods.adversarial.attacks.apgd import ApgdSteps
from sightline.methods.adversarial.attacks.carlini_wagner import WEIGHT_SEARCHES, run_carlini_wagner
from sightline.methods.adversarial.attacks.external import run_peer_attack
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackLoss, AttackRun
from sightline.methods.adversarial.attacks.minimum_norm import (
    bisect_to_boundary,
    run_deepfool,
    run_fmn,
)
from sightline.methods.adversarial.attacks.norm_ball import Norm, NormBall
from sightline.methods.adversarial.attacks.pgd import (
    ProjectedSteps,
    SingleAttackRun,
    run_with_restarts,
)
from sightline.models.model import Model
from sightline.registry.progress import Callback

AttackName = Literal["pgd", "fgsm", "ifgsm", "mifgsm", "apgd", "ascent", "deepfool", "fmn", "cw"]

DEFAULT_ATTACK_STEPS: dict[AttackName, int] = {
    "pgd": 40, "fgsm": 1, "ifgsm": 10, "mifgsm": 10, "apgd": 100, "ascent": 200, "deepfool": 50, "fmn": 100, "cw": 100,
}  # fmt: skip

MINIMAL_ATTACKS: tuple[AttackName, ...] = ("deepfool", "fmn", "cw")

UNBOUNDED_ATTACKS: tuple[AttackName, ...] = (*MINIMAL_ATTACKS, "ascent")

OWN_STEP_SIZE_ATTACKS: tuple[AttackName, ...] = ("fgsm", "apgd", "deepfool", "fmn")


@dataclass(frozen=True)
class Attack:
    """What to do to an image. None stands for the paper's constant, an infinite `eps` for the nearest picture that fools;
    `peer` names an attack of another library that takes the place of `name`."""

    name: AttackName = "pgd"
    norm: Norm = "linf"
    eps: float = 4 / 255
    steps: int | None = None
    step_size: float | None = None
    loss: AttackLoss = "cross_entropy"
    restarts: int = 1
    early: bool = True
    peer: str | None = None
    seed: int = 0

    @property
    def is_minimal(self) -> bool:
        """Whether it looks for the smallest change, so that the length of what it finds says what every radius would do."""
        return self.name in MINIMAL_ATTACKS and not self.peer

    def __call__(
        self, model: Model, image: Tensor, goal: AttackGoal, callback: Callback | None = None
    ) -> tuple[Tensor, AttackRun]:
        """The changed images, on the model's device, and the record of the run."""
        image = image.contiguous(
            memory_format=torch.channels_last
        )  # as the network wants it: every step is cheaper
        ball, steps = (
            NormBall(image, self.eps, self.norm),
            self.steps or DEFAULT_ATTACK_STEPS[self.name],
        )
        total = steps * (WEIGHT_SEARCHES if self.name == "cw" else self.restarts)
        run = AttackRun(
            model, goal, "logit" if self.name == "ascent" else self.loss, total, callback
        )
        if self.peer:
            return run_peer_attack(
                self.peer, model, ball, goal, steps=self.steps, seed=self.seed
            ), run
        if self.is_minimal:
            return bisect_to_boundary(run, image, self.find_smallest_change(run, image, steps)), run
        generator = torch.Generator().manual_seed(self.seed)
        return run_with_restarts(
            run, ball, self.make_single_run(steps, image), self.restarts, generator
        ), run

    def find_smallest_change(self, run: AttackRun, image: Tensor, steps: int) -> Tensor:
        """By an attack that looks for the smallest change itself."""
        if self.name == "cw":
            return run_carlini_wagner(run, image, steps, self.step_size or 0.01)
        return (run_deepfool if self.name == "deepfool" else run_fmn)(run, image, self.norm, steps)

    def make_single_run(self, steps: int, image: Tensor) -> SingleAttackRun:
        """One run of projected steps."""
        if self.name == "apgd":
            return ApgdSteps(steps, self.early)
        usual = {
            "pgd": 2.5 * self.eps / steps,  # Madry 2018
            "fgsm": self.eps,
            "ascent": compute_default_radius(self.norm, image) / 10,
        }.get(self.name, self.eps / steps)
        momentum = 1.0 if self.name == "mifgsm" else 0.0
        return ProjectedSteps(
            steps,
            self.step_size or usual,
            momentum,
            random_start=self.name == "pgd",
            early=self.early,
        )


def compute_default_radius(norm: Norm, image: Tensor) -> float:
    """A radius that no eye follows: every pixel value by 4/255 at most, by 2/255 in the root mean square, by 1/255 on average."""
    count = math.prod(image.shape[1:])
    return {"linf": 4 / 255, "l2": 2 / 255 * math.sqrt(count), "l1": count / 255}[norm]


def set_attack_radius(attack: Attack, eps: float | None, image: Tensor) -> Attack:
    """The attack with its radius: the given one, the usual one of its norm, or infinite for attacks that have none.

    Raises SightlineError for knobs that the attack does not have.
    """
    if attack.peer:
        return replace(
            attack, eps=compute_default_radius(attack.norm, image) if eps is None else eps
        )
    if attack.name == "cw" and attack.norm != "l2":
        raise SightlineError(
            f"norm is {attack.norm!r}; cw has only l2: choose fmn or deepfool for others"
        )
    if attack.step_size is not None and attack.name in OWN_STEP_SIZE_ATTACKS:
        raise SightlineError(
            f"step_size is {attack.step_size}; {attack.name} finds the length of its steps itself: leave it out"
        )
    if attack.name in UNBOUNDED_ATTACKS:
        if eps is not None:
            raise SightlineError(
                f"eps is {eps}; {attack.name} has no radius, it stops where the network is fooled: leave it out"
            )
        return replace(attack, eps=math.inf)
    return replace(attack, eps=compute_default_radius(attack.norm, image) if eps is None else eps)
