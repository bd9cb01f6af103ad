"""The attacks of foolbox and torchattacks, run on a Sightline model through one adapter."""

import inspect
import math
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.methods.adversarial.attacks.goal import (
    AttackGoal,
    ScoreGoal,
    run_for_logits,
)
from sightline.methods.adversarial.attacks.norm_ball import NormBall
from sightline.models.model import Model

ATTACK_LIBRARIES = {"foolbox": "foolbox.attacks", "torchattacks": "torchattacks"}


class LogitsModule(nn.Module):
    """A model as a module from images in [0, 1], as `run_for_logits` takes them, to logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        # The libraries take the device from the module's parameters.
        self.device_parameter = nn.Parameter(torch.zeros((), device=model.device))

    def forward(self, image: Tensor) -> Tensor:
        """Logits N×classes."""
        if image.requires_grad:
            # torchattacks calls view() on the gradient, which fails in channels-last layout.
            image.register_hook(lambda gradient: gradient.contiguous())
        return run_for_logits(self.model, image)


def find_attack_class(name: str) -> tuple[str, Any]:
    """The library and the class of a name such as "foolbox:LinfPGD" or "torchattacks:AutoAttack".

    Raises SightlineError for other libraries, for one that is not installed, and for names that
    are not attacks of the library.
    """
    library, _, attack_name = name.partition(":")
    if library not in ATTACK_LIBRARIES or not attack_name:
        raise SightlineError(
            f"peer is {name!r}; it must be foolbox:NAME or torchattacks:NAME, such as "
            "foolbox:L2FMNAttack"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = import_module(ATTACK_LIBRARIES[library])
    except ImportError as error:
        requirement = "sightline[attacks]" if library == "foolbox" else library
        raise SightlineError(
            f"{name} needs {library} ({get_first_error_line(error)}); "
            f"pip install '{requirement}' adds it"
        ) from error
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if attack_name not in classes:
        raise make_unknown_name_error(f"attack of {library}", attack_name, classes)
    return library, classes[attack_name]


def run_peer_attack(
    name: str, model: Model, norm_ball: NormBall, goal: AttackGoal, *, steps: int | None, seed: int
) -> Tensor:
    """Runs the attack of another library; gives the changed images N×3×H×W.

    `steps` and `seed` are passed on where the attack takes them; torch's global random state is
    seeded for the attack and restored. Raises SightlineError where the attack fails, and for goals
    that other libraries don't know.
    """
    library, attack_type = find_attack_class(name)
    if isinstance(goal, ScoreGoal) or model.output_kind == "multilabel":
        raise SightlineError(
            f"{name} attacks classes of which an image has one; leave out peer for a score or for "
            "independent labels"
        )
    parameters = inspect.signature(attack_type.__init__).parameters
    options: dict[str, Any] = {}
    if steps is not None and "steps" in parameters:
        options["steps"] = steps
    if "seed" in parameters:
        options["seed"] = seed

    run_attack = run_foolbox_attack if library == "foolbox" else run_torchattacks_attack
    module = LogitsModule(model).eval()
    contiguous_ball = replace(norm_ball, center=norm_ball.center.contiguous())
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            changed_image = run_attack(attack_type, options, module, contiguous_ball, goal)
        except SightlineError:
            raise
        except Exception as error:
            # Other libraries raise anything, from AssertionError to RuntimeError.
            reason = get_first_error_line(error) or type(error).__name__
            raise SightlineError(f"{name} can't attack {model.name} ({reason})") from error
    return changed_image.detach()


def run_foolbox_attack(
    attack_type: Any,
    options: dict[str, Any],
    network: LogitsModule,
    norm_ball: NormBall,
    goal: AttackGoal,
) -> Tensor:
    """Runs an attack of foolbox; an infinite radius lets it look for the smallest change."""
    import foolbox

    foolbox_model = foolbox.PyTorchModel(  # pyright: ignore[reportPrivateImportUsage]
        network, bounds=(0, 1), device=norm_ball.center.device
    )
    if goal.target_labels is None:
        criterion = foolbox.criteria.Misclassification(goal.source_labels)
    else:
        criterion = foolbox.criteria.TargetedMisclassification(goal.target_labels)
    eps = None if math.isinf(norm_ball.eps) else norm_ball.eps
    attack = attack_type(**options)
    _, clipped_image, _ = attack(foolbox_model, norm_ball.center, criterion, epsilons=eps)
    return clipped_image


def run_torchattacks_attack(
    attack_type: Any,
    options: dict[str, Any],
    network: LogitsModule,
    norm_ball: NormBall,
    goal: AttackGoal,
) -> Tensor:
    """Runs an attack of torchattacks, with radius, norm and class count where it takes them."""
    parameters = inspect.signature(attack_type.__init__).parameters
    with torch.no_grad():
        class_count = network(norm_ball.center[:1]).shape[1]
    settings: dict[str, Any] = {"norm": norm_ball.norm.capitalize(), "n_classes": class_count}
    if not math.isinf(norm_ball.eps):
        settings["eps"] = norm_ball.eps
    accepted = {name: value for name, value in settings.items() if name in parameters}
    attack = attack_type(network, **options, **accepted)

    if goal.target_labels is None:
        return attack(norm_ball.center, goal.source_labels)
    attack.set_mode_targeted_by_label(quiet=True)
    return attack(norm_ball.center, goal.target_labels)
