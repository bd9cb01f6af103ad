"""Whether what fools one network fools another (Szegedy 2014; Liu 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.images.plotting.charts import draw_share_matrix
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import Norm
from sightline.methods.adversarial.attacks.registry import Attack, AttackName, set_attack_radius
from sightline.models.model import Model
from sightline.models.zoo.load import load_other_network
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="generative",
    title="Transfer",
    question="Does what fools one network fool another?",
    reading="Each row is the network that the change was made on, each column a network that is shown the changed images, and the number the share of images on which "
    "that one leaves its own answer. The diagonal is the attack itself; what lies off it transfers: the networks share weak directions.",
    caution="Each network is compared with its own answer to the clean image, whatever its classes are. A network that is unsure anyway leaves its answer easily: "
    "the row of random noise of the same size says how easily.",
    tour_runs=(),
)
def transfer(
    model: Model,
    image: Tensor,
    *,
    others: tuple[str, ...] = ("sightnet",),
    attack: AttackName = "pgd",
    norm: Norm = "linf",
    eps: Annotated[float | None, ValueRange(1e-6, 1_000_000)] = None,
    steps: Annotated[int | None, ValueRange(1, 10_000)] = None,
    seed: int = 0,
) -> Result:
    """Attacks the images on each network and shows every network the results.

    All networks see the images at the size they have. `values["fooled"]` is networks×networks, rows made on, columns shown to;
    `["random"]` one share per network, for random noise as large as the attack's change on the first; `["names"]` the networks in this order; `["image"]`
    the images as changed on the first.

    Args:
        others: The other networks, as the command line names them; NAME=FILE takes the weights from a file.
        attack: The attack, as `adversarial` has it; those without a radius hardly transfer, since they stop at the boundary.
        norm: What of the change is kept small.
        eps: Radius in units of [0, 1]; the usual one of the norm by default.
        steps: How many steps; the usual number of the attack by default.
    """
    models = [model, *(load_other_network(other, model.device) for other in others)]
    image = image.to(model.device)
    asked = set_attack_radius(Attack(attack, norm, 0.0, steps, early=False, seed=seed), eps, image)
    clean = [one.choose("top", image) for one in models]
    made = [
        asked(one, image, AttackGoal(answer))[0].detach()
        for one, answer in zip(models, clean, strict=True)
    ]
    signs = (
        torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))
        .to(image.device)
        .sub(0.5)
        .sign()
    )
    noise = (image + signs * (made[0] - image).abs()).clamp(0, 1)
    rows = [
        torch.tensor(
            [
                measure_changed_share(one, pictures, answer)
                for one, answer in zip(models, clean, strict=True)
            ]
        )
        for pictures in (*made, noise)
    ]
    shares, names = torch.stack(rows[:-1]), number_duplicate_names([one.name for one in models])
    panel = draw_share_matrix(
        torch.stack(rows), [*names, "random noise"], names, ("made on", "shown to")
    )
    caption = (
        f"Share of {len(image)} image{'s' if len(image) > 1 else ''} on which the network of a column leaves its answer, after {attack} on the network of the row; "
        "in the last row after noise of the same size with random signs."
    )
    return Result(
        {"transfer": panel},
        {"fooled": shares, "random": rows[-1], "names": list(names), "image": made[0].cpu()},
        {"transfer": caption},
    )


@torch.no_grad()
def measure_changed_share(model: Model, image: Tensor, clean_classes: Tensor) -> float:
    """The share of images on which the network leaves its clean answer."""
    return float((model.run(image, ["logits"])["logits"].argmax(1) != clean_classes).float().mean())


def number_duplicate_names(names: list[str]) -> list[str]:
    """The names, numbered where two are the same."""
    return [
        name if names.count(name) == 1 else f"{name} {place + 1}"
        for place, name in enumerate(names)
    ]
