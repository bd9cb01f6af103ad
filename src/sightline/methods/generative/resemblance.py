"""What inversion asks of a picture, and how it descends, by the constants of Mahendran & Vedaldi (2015)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ... import image as images
from ...model import Model
from ...objective import Objective
from ...optimizers import BaseOptimizer
from ...outputs import reshape_to_unit_grid

FeatureView = Callable[[Tensor, Tensor], Tensor]  # what of the features of an image is compared

# Root mean square of a pixel's distance to gray in photographs, of 255 (measured on Imagenette's training images).
NATURAL_PIXEL_RMS = 72.0
TV_WEIGHTS = (1.0, 10.0, 100.0)  # the weight of total variation for the first, middle and last third of the layers (their table 2)
LEARNING_RATE_STAGES = ((1.0, 0.25), (0.1, 0.5), (0.01, 0.25))  # their learning rates for 100, 200 and 100 steps


class GrayLevelPixels:
    """Pixels in gray levels around the middle, 255·(image − ½), as the published constants count them; kept in [0, 1] as an image."""

    def __init__(self, like: Tensor, seed: int) -> None:
        start = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(len(like), -1, -1, -1)
        self.levels = (start * NATURAL_PIXEL_RMS).to(like.device).clamp(-127.5, 127.5).requires_grad_()
        self.parameters = [self.levels]

    def __call__(self) -> Tensor:
        return self.levels / 255 + 0.5

    @torch.no_grad()
    def project_(self) -> None:
        """A picture must be one that can be saved; the published norm only discourages what can't."""
        self.levels.clamp_(-127.5, 127.5)


class StagedDescent(BaseOptimizer):
    """Gradient descent with momentum 0.9 whose learning rate drops in stages; the momentum starts anew at each (invert_nn.m)."""

    def __init__(self, parameters: list[Tensor], lr: float, steps: int) -> None:
        super().__init__(parameters)
        ends = [round(steps * sum(share for _, share in LEARNING_RATE_STAGES[:stage])) for stage in range(1, len(LEARNING_RATE_STAGES))]
        self.rate_drops = {end: lr * factor for end, (factor, _) in zip(ends, LEARNING_RATE_STAGES[1:], strict=True)}
        self.lr, self.steps_done, self.momentum = lr, 0, dict[int, Tensor]()

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        if self.steps_done in self.rate_drops:
            self.lr, self.momentum = self.rate_drops[self.steps_done], {}
        super().step()
        self.steps_done += 1

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        before = self.momentum.get(index)
        self.momentum[index] = gradient.clone() if before is None else before.mul_(0.9).add_(gradient)
        parameter.add_(self.momentum[index], alpha=-self.lr)


# ── what is asked of the picture ──


def make_resemblance_objective(layer: str, target_features: Tensor, view_features: FeatureView) -> Objective:
    """−‖Φ(x) − Φ₀‖² / ‖Φ₀‖² for each image, of what `look` takes of both."""

    def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return -compute_relative_error(view_features(features[layer], image), view_features(target_features, image))

    return Objective(f"resemblance({layer!r})", (layer,), lambda _: score)


def compute_relative_error(features: Tensor, target_features: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖², per image."""
    return (features - target_features).flatten(1).square().sum(1) / target_features.flatten(1).square().sum(1).clamp_min(1e-12)


def crop_middle_positions(features: Tensor, image: Tensor, patch: int | None) -> Tensor:
    """The features at the `patch`×`patch` positions in the middle."""
    if patch is None:
        return features
    maps = reshape_to_unit_grid(features, image)
    return images.crop_center(maps, *(min(patch, side) for side in maps.shape[2:]))


def average_over_positions(features: Tensor, image: Tensor) -> Tensor:
    """The mean over positions, N×C: what a scan keeps of an image. A vector is its own."""
    return reshape_to_unit_grid(features, image).mean((2, 3))


def choose_tv_weight(model: Model, layer: str) -> float:
    """The published weight of total variation for a layer, by its place in the network."""
    names = list(model.layers)
    place = names.index(layer.removesuffix(":in")) if layer.removesuffix(":in") in names else len(names) - 1
    return TV_WEIGHTS[3 * place // len(names)]
