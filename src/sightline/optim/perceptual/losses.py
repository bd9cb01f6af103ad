"""Content and style of an image as a network's features hold them, and how far two images are apart in each.

There is one Gram matrix here, G = FFᵀ/M: the mean over the M positions of the products of C channels. A layer's loss is
Gatys' E = Σ(G − A)²/4C² (Gatys 2016, eq. 4, with his 1/M² inside G, so that images of different sizes compare). Who
divides differently is found in `presets`, which converts weights into those of E.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

StyleDistanceKind = Literal["gram", "w2", "sliced"]

STYLE_COVARIANCE_RIDGE = (
    1e-4  # added to covariances before their square roots, as in style-transfer-pytorch
)

# ── statistics of features ──


def compute_feature_products(features: Tensor) -> Tensor:
    """XᵀX of the M×C places of each image of N×C×H×W: N×C×C."""
    if not is_convolution_faster(features):
        rows = flatten_positions(features)
        return rows.mT @ rows
    kernel = (features.shape[1], features.shape[1], 1, 1)
    return torch.stack(
        [conv2d_weight(one, kernel, one, dilation=2)[:, :, 0, 0] for one in features.split(1)]
    )


def multiply_positions(features: Tensor, matrices: Tensor) -> Tensor:
    """Each place of N×C×H×W times its image's symmetric matrix, N×C×C."""
    if not is_convolution_faster(features):
        return (flatten_positions(features) @ matrices).mT.unflatten(2, features.shape[2:])
    pairs = zip(features.split(1), matrices[..., None, None], strict=True)
    parts = [F.conv2d(one, matrix, dilation=2) for one, matrix in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def is_convolution_faster(features: Tensor) -> bool:
    """Whether products of places are taken as 1×1 convolutions: oneDNN has AVX-512 on every processor, MKL's products on Intel's only
    (AMD EPYC: 2.2 ms where those took 5.3). A dilation does nothing to a window of one place, but torch hands such to oneDNN always."""
    return features.device.type == "cpu" and torch.backends.mkldnn.is_available()


class GramFunction(torch.autograd.Function):
    """XᵀX of N×C×H×W, one product forward and one backward, where autograd would take two."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        with torch.autocast(features.device.type, enabled=False):
            return compute_feature_products(features)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A new tensor with nothing around it: autograd then adds the network's own gradient in place.
        return multiply_positions(ctx.saved_tensors[0], grad_output + grad_output.mT)


class GramLossFunction(torch.autograd.Function):
    """Gatys' E of N×C×H×W beside a Gram matrix 1×C×C or N×C×C, in which no matrix is formed but the difference."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, target: Tensor) -> Tensor:
        difference = (
            compute_feature_products(features)
            .div_(features.shape[2] * features.shape[3])
            .sub_(target)
        )
        ctx.save_for_backward(features, difference)
        return difference.square().flatten(1).mean(1) / 4

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, difference = ctx.saved_tensors
        return multiply_positions(
            features,
            difference * (grad_output.view(-1, 1, 1) / features[0].numel() / features.shape[1]),
        ), None


def flatten_positions(features: Tensor) -> Tensor:
    """N×M×C, a view of N×C×H×W whether channels or places come last in memory."""
    return (
        features.permute(0, 2, 3, 1).flatten(1, 2)
        if features.stride(1) == 1
        else features.flatten(2).mT
    )


def compute_gram(features: Tensor) -> Tensor:
    """G = FFᵀ/M of N×C×H×W: N×C×C, symmetric, positive semidefinite, the same for every circular shift. In float32 always."""
    product: Tensor = GramFunction.apply(features.float())
    return product / (features.shape[2] * features.shape[3])


@dataclass(frozen=True)
class FeatureMoments:
    """First and second raw moments of features over all positions: mean N×C and Gram matrix N×C×C. Styles blend linearly in both."""

    mean: Tensor
    gram: Tensor

    @property
    def covariance(self) -> Tensor:
        """N×C×C, with the ridge that keeps its square root differentiable."""
        identity = torch.eye(self.mean.shape[1], device=self.mean.device)
        return (
            self.gram
            - self.mean.unsqueeze(2) * self.mean.unsqueeze(1)
            + STYLE_COVARIANCE_RIDGE * identity
        )


def compute_moments(
    features: Tensor,
    weights: Tensor | None = None,
    *,
    normalized: bool = False,
    with_mean: bool = True,
) -> FeatureMoments:
    """The moments of N×C×H×W, all places alike or by `weights` N×H×W, which are brought to a sum of 1 unless they are `normalized`.

    Without `mean` only the Gram matrix is computed, and the mean is left at 0.
    """
    features = features.float()
    zero = features.new_zeros(features.shape[:2])
    if weights is None:
        return FeatureMoments(features.mean((2, 3)) if with_mean else zero, compute_gram(features))
    shares = weights.unsqueeze(1)
    shares = shares if normalized else shares / shares.sum((2, 3), keepdim=True).clamp_min(1e-12)
    product: Tensor = GramFunction.apply(features * shares.sqrt())
    return FeatureMoments((features * shares).sum((2, 3)) if with_mean else zero, product)


def blend_moments(parts: Sequence[FeatureMoments], weights: Sequence[float]) -> FeatureMoments:
    """One style of several, by weights that are brought to a sum of 1."""
    shares = [weight / sum(weights) for weight in weights]
    return FeatureMoments(
        torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0),
        torch.stack([share * part.gram for share, part in zip(shares, parts, strict=True)]).sum(0),
    )


# ── losses, one number for each image of the batch ──


def compute_content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, N, of N×C×H×W to 1×C×H×W or N×C×H×W. Gatys' ½Σ is ½CHW times as much."""
    return (features.float() - target.float()).square().flatten(1).mean(1)


def compute_gram_loss(gram_matrix: Tensor, target: Tensor) -> Tensor:
    """Gatys' E_l = Σ(G − A)²/4C², N, of Gram matrices N×C×C."""
    return (gram_matrix - target).square().flatten(1).mean(1) / 4


def compute_gram_loss_from_features(features: Tensor, target: Tensor) -> Tensor:
    """`gram_loss` of the Gram matrices of N×C×H×W, N, sooner found."""
    with torch.autocast(features.device.type, enabled=False):
        distance: Tensor = GramLossFunction.apply(features.float(), target)
    return distance


def compute_w2_loss(image_moments: FeatureMoments, target: FeatureMoments) -> Tensor:
    """Squared 2-Wasserstein distance between the Gaussians of the same mean and covariance, divided by C: N.

    |μ − ν|² + tr(A + B − 2(B^½AB^½)^½) (as in style-transfer-pytorch); the trace of the root is read off eigenvalues.
    """
    one, two = image_moments.covariance, target.covariance
    root = compute_matrix_root(two.detach())
    inner = root @ one @ root
    shared = (
        torch.linalg.eigvalsh((inner + inner.mT) / 2)
        .clamp_min(STYLE_COVARIANCE_RIDGE**2)
        .sqrt()
        .sum(-1)
    )
    spread = (one + two).diagonal(dim1=-2, dim2=-1).sum(-1) - 2 * shared
    return ((image_moments.mean - target.mean).square().sum(1) + spread) / image_moments.mean.shape[
        1
    ]


def compute_matrix_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of positive semidefinite N×C×C."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT


def compute_sliced_loss(features: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    """Sliced Wasserstein distance (Heitz 2021), N: sorted projections of the positions on unit `directions` K×C, mean squared difference.

    The target's sorted projections are read at as many ranks as the features have positions.
    """
    found, aim = (
        (flatten_positions(part).float() @ directions.T).sort(1).values
        for part in (features, target)
    )
    if aim.shape[1] != found.shape[1]:
        aim = torch.nn.functional.interpolate(
            aim.mT, size=found.shape[1], mode="linear", align_corners=False
        ).mT
    return (found - aim).square().flatten(1).mean(1)


def draw_random_directions(
    channels: int, generator: torch.Generator, count: int | None = None
) -> Tensor:
    """Unit vectors, count×C, as many as channels by default."""
    drawn = torch.randn(count or channels, channels, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)
