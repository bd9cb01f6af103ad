"""The attacks of foolbox and torchattacks, on a network of ours: one adapter instead of a second copy of each."""

import inspect
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SightlineError, first_line, unknown
from ..model import Model
from .aim import Aim
from .ball import Ball

LIBRARIES = {"foolbox": "foolbox.attacks", "torchattacks": "torchattacks"}


class Network(nn.Module):
    """A network as these libraries want it: images in [0, 1] to logits; it normalizes itself."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.anchor = nn.Parameter(torch.zeros((), device=model.device))  # they ask the parameters for the device

    def forward(self, image: Tensor) -> Tensor:
        """Logits N×classes."""
        if image.requires_grad:
            image.register_hook(lambda gradient: gradient.contiguous())  # torchattacks views them
        return self.model.run(image, ["logits"])["logits"].float()


def attack_class(name: str) -> tuple[str, Any]:
    """The library and the class of «foolbox:LinfPGD» or «torchattacks:AutoAttack».

    Raises SightlineError for other libraries, one that is not installed, and names that are no attacks.
    """
    library, _, attack = name.partition(":")
    if library not in LIBRARIES or not attack:
        raise SightlineError(f"peer is {name!r}; it must be foolbox:NAME or torchattacks:NAME, such as foolbox:L2FMNAttack")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = import_module(LIBRARIES[library])
    except ImportError as error:
        extra = "sightline[attacks]" if library == "foolbox" else library
        raise SightlineError(f"{name} needs {library} ({first_line(error)}); pip install '{extra}' adds it") from error
    known = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if attack not in known:
        raise unknown(f"attack of {library}", attack, known)
    return library, known[attack]


def borrowed(name: str, model: Model, ball: Ball, aim: Aim, *, steps: int | None, seed: int) -> Tensor:
    """What the attack of another library makes of the images. Raises SightlineError where it can't do what is asked."""
    library, kind = attack_class(name)
    taken = inspect.signature(kind.__init__).parameters
    wanted = {"steps": steps, "seed": seed}
    options = {name: value for name, value in wanted.items() if name in taken and value is not None}
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            run = with_foolbox if library == "foolbox" else with_torchattacks
            found = run(kind, options, Network(model).eval(), replace(ball, center=ball.center.contiguous()), aim)
        except SightlineError:
            raise
        except Exception as error:
            raise SightlineError(f"{name} can't attack {model.name} ({first_line(error) or type(error).__name__})") from error
    return found.detach()


def with_foolbox(kind: Any, options: dict[str, Any], network: Network, ball: Ball, aim: Aim) -> Tensor:
    """Of foolbox, bounded by eps where it is finite."""
    import foolbox

    victim = foolbox.PyTorchModel(  # pyright: ignore[reportPrivateImportUsage]
        network, bounds=(0, 1), device=ball.center.device
    )
    criterion = (
        foolbox.criteria.Misclassification(aim.away) if aim.wanted is None else foolbox.criteria.TargetedMisclassification(aim.wanted)
    )
    eps = ball.eps if ball.eps != float("inf") else None
    _, clipped, _ = kind(**options)(victim, ball.center, criterion, epsilons=eps)
    return clipped


def with_torchattacks(kind: Any, options: dict[str, Any], network: Network, ball: Ball, aim: Aim) -> Tensor:
    """Of torchattacks, with what its attacks may want to know."""
    taken = inspect.signature(kind.__init__).parameters
    with torch.no_grad():
        classes = network(ball.center[:1]).shape[1]
    told: dict[str, Any] = {"eps": ball.eps, "norm": ball.norm.capitalize(), "n_classes": classes}
    attack = kind(network, **options, **{name: value for name, value in told.items() if name in taken and value != float("inf")})
    if aim.wanted is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(ball.center, aim.away if aim.wanted is None else aim.wanted)
