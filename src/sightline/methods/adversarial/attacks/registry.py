"""An attack by its name; what is not set takes the constants of its paper."""

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
from sightline.optim.parameterizations.gray import make_gray_picture
from sightline.optim.score_gradient import require_image_gradient
from sightline.registry.progress import Callback

AttackName = Literal["pgd", "fgsm", "ifgsm", "mifgsm", "apgd", "ascent", "deepfool", "fmn", "cw"]

DEFAULT_ATTACK_STEPS: dict[AttackName, int] = {
    "pgd": 40,
    "fgsm": 1,
    "ifgsm": 10,
    "mifgsm": 10,
    "apgd": 100,
    "ascent": 200,
    "deepfool": 50,
    "fmn": 100,
    "cw": 100,
}

DEFAULT_CW_LEARNING_RATE = 0.01

MINIMAL_ATTACKS: tuple[AttackName, ...] = ("deepfool", "fmn", "cw")

UNBOUNDED_ATTACKS: tuple[AttackName, ...] = (*MINIMAL_ATTACKS, "ascent")

OWN_STEP_SIZE_ATTACKS: tuple[AttackName, ...] = ("fgsm", "apgd", "deepfool", "fmn")


# The norm of three equal channels as a multiple of the norm of one.
GRAY_NORM_FACTORS: dict[Norm, float] = {"linf": 1.0, "l2": math.sqrt(3), "l1": 3.0}


@dataclass(frozen=True)
class Attack:
    """An attack and its parameters.

    None stands for the paper's constant; an infinite `eps` bounds the image by [0, 1] only. `peer`
    names an attack of another library, to be run instead of `name`.
    """

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
        """Whether it looks for the smallest change, which settles success at every radius."""
        return self.name in MINIMAL_ATTACKS and not self.peer

    def __call__(
        self, model: Model, image: Tensor, goal: AttackGoal, callback: Callback | None = None
    ) -> tuple[Tensor, AttackRun]:
        """Attacks images N×C×H×W; gives the changed images, on the model's device, and the run.

        For a network that sees luminance, images of three equal channels keep them equal.

        Raises SightlineError for a network that is cut off from differentiation.
        """
        if model.is_gray and image.shape[1] == 3:
            levels, run = self.reduce_to_gray()(model, image[:, :1], goal, callback)
            return make_gray_picture(levels).contiguous(), run
        # Convolutions are faster in this layout, in every step.
        image = image.contiguous(memory_format=torch.channels_last)
        norm_ball = NormBall(image, self.eps, self.norm)
        steps = self.steps or DEFAULT_ATTACK_STEPS[self.name]
        run_count = WEIGHT_SEARCHES if self.name == "cw" else self.restarts
        loss: AttackLoss = "logit" if self.name == "ascent" else self.loss
        run = AttackRun(model, goal, loss, steps * run_count, callback)
        require_image_gradient(model, run.compute_logits, image[:1])

        if self.peer:
            changed_image = run_peer_attack(
                self.peer, model, norm_ball, goal, steps=self.steps, seed=self.seed
            )
        elif self.is_minimal:
            changed_image = self.find_smallest_change(run, image, steps)
            changed_image = bisect_to_boundary(run, image, changed_image)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            run_once = self.make_single_run(steps, image)
            changed_image = run_with_restarts(run, norm_ball, run_once, self.restarts, generator)
        return changed_image, run

    def reduce_to_gray(self) -> "Attack":
        """The attack on one channel of gray levels that is this one on three equal channels."""
        factor = GRAY_NORM_FACTORS[self.norm]
        step_size = self.step_size
        if step_size is not None and self.name != "cw":
            step_size = step_size / factor
        return replace(self, eps=self.eps / factor, step_size=step_size)

    def find_smallest_change(self, run: AttackRun, image: Tensor, steps: int) -> Tensor:
        """Runs the attack, which must be one that looks for the smallest change."""
        if self.name == "cw":
            lr = self.step_size or DEFAULT_CW_LEARNING_RATE
            return run_carlini_wagner(run, image, steps, lr)
        if self.name == "deepfool":
            return run_deepfool(run, image, self.norm, steps)
        return run_fmn(run, image, self.norm, steps)

    def make_single_run(self, steps: int, image: Tensor) -> SingleAttackRun:
        """The run from one starting point of an attack that takes projected steps."""
        if self.name == "apgd":
            return ApgdSteps(steps, self.early)
        return ProjectedSteps(
            steps,
            self.step_size or self.compute_default_step_size(steps, image),
            momentum=1.0 if self.name == "mifgsm" else 0.0,
            random_start=self.name == "pgd",
            early=self.early,
        )

    def compute_default_step_size(self, steps: int, image: Tensor) -> float:
        """The norm of a projected step where none is given."""
        if self.name == "pgd":
            return 2.5 * self.eps / steps  # Madry 2018
        if self.name == "fgsm":
            return self.eps
        if self.name == "ascent":
            return compute_default_radius(self.norm, image) / 10
        return self.eps / steps


def compute_default_radius(norm: Norm, image: Tensor) -> float:
    """A radius within which changes are hard to see.

    4/255 for linf; for l2 a root mean square of 2/255 over the pixel values, for l1 a mean of
    1/255.
    """
    value_count = math.prod(image.shape[1:])
    if norm == "linf":
        return 4 / 255
    if norm == "l2":
        return 2 / 255 * math.sqrt(value_count)
    return value_count / 255


def set_attack_radius(attack: Attack, eps: float | None, image: Tensor) -> Attack:
    """The attack with radius `eps`; None sets the default of its norm, or infinity if it has none.

    Raises SightlineError for parameters that the attack does not have.
    """
    radius = compute_default_radius(attack.norm, image) if eps is None else eps
    if attack.peer:
        return replace(attack, eps=radius)
    if attack.name == "cw" and attack.norm != "l2":
        raise SightlineError(
            f"norm is {attack.norm!r}; cw has only l2: choose fmn or deepfool for other norms"
        )
    if attack.step_size is not None and attack.name in OWN_STEP_SIZE_ATTACKS:
        raise SightlineError(
            f"step_size is {attack.step_size}; {attack.name} sets its own step size: leave it out"
        )
    if attack.name not in UNBOUNDED_ATTACKS:
        return replace(attack, eps=radius)
    if eps is not None:
        raise SightlineError(
            f"eps is {eps}; {attack.name} has no radius, it stops where the network is fooled: "
            "leave it out"
        )
    return replace(attack, eps=math.inf)
