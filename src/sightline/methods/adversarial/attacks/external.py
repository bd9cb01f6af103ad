"""The attacks of foolbox and torchattacks, on a network of ours: one adapter instead of a second copy of each."""

import inspect
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import NormBall
from sightline.models.model import Model

ATTACK_LIBRARIES = {"foolbox": "foolbox.attacks", "torchattacks": "torchattacks"}


class LogitsModule(nn.Module):
    """A network as these libraries want it: images in [0, 1] to logits; it normalizes itself."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.device_parameter = nn.Parameter(
            torch.zeros((), device=model.device)
        )  # they ask the parameters for the device

    def forward(self, image: Tensor) -> Tensor:
        """Logits N×classes."""
        if image.requires_grad:
            image.register_hook(lambda gradient: gradient.contiguous())  # torchattacks views them
        return self.model.run(image, ["logits"])["logits"].float()


def find_attack_class(name: str) -> tuple[str, Any]:
    """The library and the class of «foolbox:LinfPGD» or «torchattacks:AutoAttack».

    Raises SightlineError for other libraries, one that is not installed, and names that are no attacks.
    """
    library, _, attack = name.partition(":")
    if library not in ATTACK_LIBRARIES or not attack:
        raise SightlineError(
            f"peer is {name!r}; it must be foolbox:NAME or torchattacks:NAME, such as foolbox:L2FMNAttack"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = import_module(ATTACK_LIBRARIES[library])
    except ImportError as error:
        extra = "sightline[attacks]" if library == "foolbox" else library
        raise SightlineError(
            f"{name} needs {library} ({get_first_error_line(error)}); pip install '{extra}' adds it"
        ) from error
    known = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if attack not in known:
        raise make_unknown_name_error(f"attack of {library}", attack, known)
    return library, known[attack]


def run_peer_attack(
    name: str, model: Model, norm_ball: NormBall, goal: AttackGoal, *, steps: int | None, seed: int
) -> Tensor:
    """What the attack of another library makes of the images. Raises SightlineError where it can't do what is asked."""
    library, kind = find_attack_class(name)
    taken = inspect.signature(kind.__init__).parameters
    wanted = {"steps": steps, "seed": seed}
    options = {name: value for name, value in wanted.items() if name in taken and value is not None}
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            run = run_foolbox_attack if library == "foolbox" else run_torchattacks_attack
            found = run(
                kind,
                options,
                LogitsModule(model).eval(),
                replace(norm_ball, center=norm_ball.center.contiguous()),
                goal,
            )
        except SightlineError:
            raise
        except Exception as error:
            raise SightlineError(
                f"{name} can't attack {model.name} ({get_first_error_line(error) or type(error).__name__})"
            ) from error
    return found.detach()


def run_foolbox_attack(
    attack_type: Any,
    options: dict[str, Any],
    network: LogitsModule,
    norm_ball: NormBall,
    goal: AttackGoal,
) -> Tensor:
    """Of foolbox, bounded by eps where it is finite."""
    import foolbox

    victim = foolbox.PyTorchModel(  # pyright: ignore[reportPrivateImportUsage]
        network, bounds=(0, 1), device=norm_ball.center.device
    )
    criterion = (
        foolbox.criteria.Misclassification(goal.source_labels)
        if goal.target_labels is None
        else foolbox.criteria.TargetedMisclassification(goal.target_labels)
    )
    eps = norm_ball.eps if norm_ball.eps != float("inf") else None
    _, clipped, _ = attack_type(**options)(victim, norm_ball.center, criterion, epsilons=eps)
    return clipped


def run_torchattacks_attack(
    attack_type: Any,
    options: dict[str, Any],
    network: LogitsModule,
    norm_ball: NormBall,
    goal: AttackGoal,
) -> Tensor:
    """Of torchattacks, with what its attacks may want to know."""
    taken = inspect.signature(attack_type.__init__).parameters
    with torch.no_grad():
        classes = network(norm_ball.center[:1]).shape[1]
    told: dict[str, Any] = {
        "eps": norm_ball.eps,
        "norm": norm_ball.norm.capitalize(),
        "n_classes": classes,
    }
    attack = attack_type(
        network,
        **options,
        **{name: value for name, value in told.items() if name in taken and value != float("inf")},
    )
    if goal.target_labels is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(
        norm_ball.center, goal.source_labels if goal.target_labels is None else goal.target_labels
    )
