"""Whether an image that fools one network fools another (Szegedy 2014; Liu 2017)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.images.plotting.charts import draw_share_matrix
from sightline.methods.adversarial.attacks.goal import make_class_goal, run_for_logits
from sightline.methods.adversarial.attacks.norm_ball import Norm
from sightline.methods.adversarial.attacks.registry import Attack, AttackName, set_attack_radius
from sightline.models.model import Model
from sightline.models.zoo.load import load_other_network
from sightline.optim.parameterizations.gray import make_gray_picture
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="generative",
    title="Transfer",
    question="Does what fools one network fool another?",
    reading="Each row is the network that was attacked, each column a network that is shown the "
    "changed images. The number is the share of images on which the shown network no longer "
    "predicts the class it predicted before. The diagonal is the attack itself; what lies off it "
    "transfers, because the networks are sensitive to the same directions.",
    caution="Each network is compared with its own prediction for the clean image, whatever its "
    "classes are. A network that is unsure changes its prediction easily: the row of random noise "
    "of the same size shows how easily.",
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
    """Attacks the images on each network and shows the changed images to every network.

    All networks see the images at the size they have, in gray if one of them sees luminance only.
    `values["fooled"]` is networks×networks:
    rows are the attacked, columns the shown networks. `["random"]` is one share per network, for
    random noise as large as the change made on the first network. `["names"]` gives the order of
    the networks, `["image"]` the images as changed on the first, N×C×H×W.

    Args:
        others: The other networks, by the names the command line takes; NAME=FILE sets the weights.
        attack: The attack, by its name in `adversarial`. Those without a radius hardly transfer,
            since they stop at the boundary.
        norm: Norm of the change that eps bounds.
        eps: Radius in units of [0, 1]; the usual one of the norm by default.
        steps: Number of steps; the usual number of the attack by default.
    """
    networks = [model, *(load_other_network(name, model.device) for name in others)]
    image = image.to(model.device)
    is_gray = any(network.is_gray for network in networks)
    if is_gray:
        image = make_gray_picture(image).contiguous()
    configured_attack = set_attack_radius(
        Attack(attack, norm, 0.0, steps, early=False, seed=seed), eps, image
    )
    clean_classes = [network.choose("top", image) for network in networks]
    changed_images: list[Tensor] = []
    for network, classes in zip(networks, clean_classes, strict=True):
        changed_image, _ = configured_attack(network, image, make_class_goal(network, classes))
        changed_images.append(changed_image.detach())
    noisy_image = add_equal_noise(image, changed_images[0], seed, is_gray=is_gray)

    rows: list[Tensor] = []
    for shown_image in (*changed_images, noisy_image):
        shares = [
            measure_changed_share(network, shown_image, classes)
            for network, classes in zip(networks, clean_classes, strict=True)
        ]
        rows.append(torch.tensor(shares))

    names = number_duplicate_names([network.name for network in networks])
    panel = draw_share_matrix(
        torch.stack(rows), [*names, "random noise"], names, ("made on", "shown to")
    )
    plural = "s" if len(image) > 1 else ""
    caption = (
        f"Share of {len(image)} image{plural} on which the network of the column changes its "
        f"prediction, after {attack} on the network of the row; in the last row after noise of "
        "the same size with random signs."
    )
    values = {
        "fooled": torch.stack(rows[:-1]),
        "random": rows[-1],
        "names": list(names),
        "image": changed_images[0].cpu(),
    }
    return Result({"transfer": panel}, values, {"transfer": caption})


def add_equal_noise(
    image: Tensor, changed_image: Tensor, seed: int, *, is_gray: bool = False
) -> Tensor:
    """The image with noise: at each pixel value the magnitude of the change, with a random sign.

    With `is_gray` the signs are those of gray levels.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = image[:, :1] if is_gray else image
    uniform = torch.rand(levels.shape, generator=generator, dtype=torch.float32)
    signs = (uniform.to(image.device) - 0.5).sign()
    magnitudes = (changed_image - image).abs()
    return (image + signs * magnitudes).clamp(0, 1)


@torch.no_grad()
def measure_changed_share(model: Model, image: Tensor, clean_classes: Tensor) -> float:
    """The share of images for which the network no longer predicts the clean class."""
    is_changed = make_class_goal(model, clean_classes).is_reached(run_for_logits(model, image))
    return float(is_changed.float().mean())


def number_duplicate_names(names: list[str]) -> list[str]:
    """The names, each duplicate followed by its position in the list, from 1."""
    return [
        name if names.count(name) == 1 else f"{name} {position}"
        for position, name in enumerate(names, 1)
    ]
