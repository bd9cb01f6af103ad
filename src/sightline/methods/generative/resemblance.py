"""What inversion asks of a picture, and how it descends, by the constants of Mahendran & Vedaldi (2015)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ... import image as images
from ...model import Model
from ...objective import Objective
from ...optimizers import Stepper
from ...outputs import positions

Looking = Callable[[Tensor, Tensor], Tensor]  # what of the features of an image is compared

# Root mean square of a pixel's distance to gray in photographs, of 255 (measured on Imagenette's training images).
NATURAL = 72.0
SMOOTHNESS = (1.0, 10.0, 100.0)  # the weight of total variation for the first, middle and last third of the layers (their table 2)
PLAN = ((1.0, 0.25), (0.1, 0.5), (0.01, 0.25))  # their learning rates for 100, 200 and 100 steps


class Levels:
    """Pixels in gray levels around the middle, 255·(image − ½), as the published constants count them; kept in [0, 1] as an image."""

    def __init__(self, like: Tensor, seed: int) -> None:
        start = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(len(like), -1, -1, -1)
        self.levels = (start * NATURAL).to(like.device).clamp(-127.5, 127.5).requires_grad_()
        self.parameters = [self.levels]

    def __call__(self) -> Tensor:
        return self.levels / 255 + 0.5

    @torch.no_grad()
    def project_(self) -> None:
        """A picture must be one that can be saved; the published norm only discourages what can't."""
        self.levels.clamp_(-127.5, 127.5)


class Annealed(Stepper):
    """Gradient descent with momentum 0.9 whose learning rate drops in stages; the momentum starts anew at each (invert_nn.m)."""

    def __init__(self, parameters: list[Tensor], lr: float, steps: int) -> None:
        super().__init__(parameters)
        ends = [round(steps * sum(share for _, share in PLAN[:stage])) for stage in range(1, len(PLAN))]
        self.drops = {end: lr * factor for end, (factor, _) in zip(ends, PLAN[1:], strict=True)}
        self.lr, self.done, self.momentum = lr, 0, dict[int, Tensor]()

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        if self.done in self.drops:
            self.lr, self.momentum = self.drops[self.done], {}
        super().step()
        self.done += 1

    def move_(self, number: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        before = self.momentum.get(number)
        self.momentum[number] = gradient.clone() if before is None else before.mul_(0.9).add_(gradient)
        parameter.add_(self.momentum[number], alpha=-self.lr)


# ── what is asked of the picture ──


def resemblance(layer: str, wanted: Tensor, look: Looking) -> Objective:
    """−‖Φ(x) − Φ₀‖² / ‖Φ₀‖² for each image, of what `look` takes of both."""

    def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return -relative_error(look(features[layer], image), look(wanted, image))

    return Objective(f"resemblance({layer!r})", (layer,), lambda _: score)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖², per image."""
    return (found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(1).clamp_min(1e-12)


def middle(features: Tensor, image: Tensor, patch: int | None) -> Tensor:
    """The features at the `patch`×`patch` positions in the middle."""
    if patch is None:
        return features
    maps = positions(features, image)
    return images.center_crop(maps, *(min(patch, side) for side in maps.shape[2:]))


def pooled(features: Tensor, image: Tensor) -> Tensor:
    """The mean over positions, N×C: what a scan keeps of an image. A vector is its own."""
    return positions(features, image).mean((2, 3))


def smoothness(model: Model, layer: str) -> float:
    """The published weight of total variation for a layer, by its place in the network."""
    names = list(model.layers)
    place = names.index(layer.removesuffix(":in")) if layer.removesuffix(":in") in names else len(names) - 1
    return SMOOTHNESS[3 * place // len(names)]
