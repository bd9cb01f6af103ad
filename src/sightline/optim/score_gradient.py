"""The gradient of a score with respect to the image, for networks of any precision.

It also tells a network that is cut off from differentiation from a unit that is silent: both give
a gradient of zero.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sightline.errors import SightlineError, guard_backward
from sightline.models.model import Model
from sightline.optim.objectives.objective import ScoreFunction

LOW_PRECISION = (torch.float16, torch.bfloat16)

# Standard deviation of the noise that is added to images to see whether a score depends on them.
PROBE_NOISE = 0.05


def run_layers(model: Model, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Features by layer, in single precision where the network computes in less.

    Squares and sums over a layer overflow in half precision. `layers` are names as `Model.layer`
    gives them.
    """
    names = list(layers)
    features = model.run(image, names) if names else {}
    return {name: raise_precision(feature) for name, feature in features.items()}


def raise_precision(feature: Tensor) -> Tensor:
    """A feature in at least single precision, dequantized."""
    if feature.is_quantized:
        feature = feature.dequantize()
    return feature.float() if feature.dtype in LOW_PRECISION else feature


def compute_loss_gradient(
    model: Model, score_function: ScoreFunction, layers: Iterable[str], image: Tensor
) -> tuple[Tensor, Tensor]:
    """The score of each image, N, and the gradient of minus their sum, of the images' shape.

    It is minus the sum since a redirected ReLU lets pass what an optimizer that descends needs.
    Raises SightlineError where a layer is cut off from the image.
    """
    leaf = image.detach().requires_grad_()
    names = list(layers)
    features = model.run(leaf, names) if names else {}
    for name, feature in features.items():
        if not feature.requires_grad:
            raise make_cut_error(model, name)
    if any(feature.dtype in LOW_PRECISION for feature in features.values()):
        return _differentiate_low_precision(score_function, leaf, features)

    scores = score_function(leaf, features)
    if not scores.requires_grad:
        return scores.detach(), torch.zeros_like(leaf)
    with warnings.catch_warnings(), guard_backward():
        # Operations without a derivative warn; `require_image_gradient` says it in words.
        warnings.filterwarnings("ignore", message=".*autograd kernel was not registered.*")
        (gradient,) = torch.autograd.grad(-scores.sum(), leaf, materialize_grads=True)
    return scores.detach(), gradient


def _differentiate_low_precision(
    score_function: ScoreFunction, leaf: Tensor, features: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`compute_loss_gradient` through a network in half precision.

    What reaches the network's output is scaled for each image to magnitudes up to 1, and the
    gradient at the image is scaled back. Unscaled it would overflow, or vanish.
    """
    feature_leaves = {
        name: feature.detach().float().requires_grad_() for name, feature in features.items()
    }
    scores = score_function(leaf, feature_leaves)
    direct_gradient, *feature_gradients = torch.autograd.grad(
        -scores.sum(), [leaf, *feature_leaves.values()], materialize_grads=True
    )
    peaks = [gradient.flatten(1).abs().amax(1) for gradient in feature_gradients]
    peak = torch.stack(peaks).amax(0)
    scale = torch.where(peak > 0, peak, 1)

    scaled_gradients: list[Tensor] = []
    for gradient, feature in zip(feature_gradients, features.values(), strict=True):
        feature_scale = scale.view(-1, *[1] * (gradient.ndim - 1))
        scaled_gradients.append((gradient / feature_scale).to(feature.dtype))
    with guard_backward():
        (network_gradient,) = torch.autograd.grad(
            list(features.values()), leaf, scaled_gradients, materialize_grads=True
        )
    return scores.detach(), direct_gradient + network_gradient * scale.view(-1, 1, 1, 1)


# ── silent, or cut off ──


def require_image_gradient(
    model: Model,
    compute_scores: Callable[[Tensor], Tensor],
    image: Tensor,
    part: str = "its output",
) -> None:
    """Raises SightlineError where scores change with the image and their gradient is zero.

    A silent unit gives the same score for an image and the image with a little noise. A network
    that is cut off from differentiation, by `no_grad`, `detach`, rounding or quantization, gives
    another score, while its gradient is zero at every pixel of both images.

    Args:
        model: whose scores they are.
        compute_scores: the scores or features of images, N×…, differentiable.
        image: N×C×H×W.
        part: of the network, whose scores or features they are.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float32).to(image)
    noisy_image = (image + PROBE_NOISE * noise).clamp(0, 1)
    scores, has_gradient = _probe_gradient(compute_scores, image)
    if has_gradient:
        return
    noisy_scores, has_gradient = _probe_gradient(compute_scores, noisy_image)
    if not has_gradient and not torch.equal(scores, noisy_scores):
        raise make_cut_error(model, part)


def require_feature_gradient(model: Model, layers: Iterable[str], image: Tensor) -> None:
    """Raises SightlineError for a layer that is cut off from the image.

    An objective's penalties have a gradient in any case, so the features are checked by themselves.
    """
    for layer in layers:

        def compute_features(picture: Tensor, name: str = layer) -> Tensor:
            return run_layers(model, picture, [name])[name]

        require_image_gradient(model, compute_features, image, layer)


def _probe_gradient(
    compute_scores: Callable[[Tensor], Tensor], image: Tensor
) -> tuple[Tensor, bool]:
    """The scores of images, and whether a gradient reaches any pixel."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autograd kernel was not registered.*")
        leaf = image.detach().requires_grad_()
        scores = compute_scores(leaf)
        if not scores.requires_grad:
            return scores, False
        # Unequal weights: scores such as −z and z would cancel.
        weights = torch.arange(
            1, scores.numel() + 1, dtype=scores.dtype, device=scores.device
        ).view_as(scores)
        total = (scores * weights).sum()
        with guard_backward():
            (gradient,) = torch.autograd.grad(total, leaf, materialize_grads=True)
    return scores.detach(), bool((gradient != 0).any())


def make_cut_error(model: Model, part: str) -> SightlineError:
    """The error for a network that is cut off from differentiation."""
    return SightlineError(
        f"{model.name} has no gradient from {part} to the image: a step of it is cut off from "
        "differentiation (no_grad, detach, rounding, quantization); methods that only run the "
        "network work, such as occlusion and rise"
    )
