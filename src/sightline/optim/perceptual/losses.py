"""Feature statistics of content and style, and the losses between them.

There is one definition of the Gram matrix: G = FFᵀ/M, the mean over M positions of the products of
C channels. A layer's loss is Gatys' E = Σ(G − A)²/4C² (Gatys 2016, eq. 4, with the 1/M² inside G,
so that images of different sizes compare). `presets` converts the weights of implementations that
divide differently.
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

# Added to covariances before their square roots, as in style-transfer-pytorch.
STYLE_COVARIANCE_RIDGE = 1e-4

# ── products of features ──


def compute_feature_products(features: Tensor) -> Tensor:
    """XᵀX of the M×C positions of each image of N×C×H×W: N×C×C."""
    if not is_convolution_faster(features):
        rows = flatten_positions(features)
        return rows.mT @ rows
    channels = features.shape[1]
    kernel_size = (channels, channels, 1, 1)
    products = [
        conv2d_weight(image, kernel_size, image, dilation=2)[:, :, 0, 0]
        for image in features.split(1)
    ]
    return torch.stack(products)


def multiply_positions(features: Tensor, matrices: Tensor) -> Tensor:
    """Each position of N×C×H×W times its image's symmetric matrix, N×C×C: N×C×H×W."""
    if not is_convolution_faster(features):
        rows = flatten_positions(features) @ matrices
        return rows.mT.unflatten(2, features.shape[2:])
    kernels = matrices[..., None, None]
    products = [
        F.conv2d(image, kernel, dilation=2)
        for image, kernel in zip(features.split(1), kernels, strict=True)
    ]
    return products[0] if len(products) == 1 else torch.cat(products)


def is_convolution_faster(features: Tensor) -> bool:
    """Whether products over positions are computed as 1×1 convolutions.

    oneDNN uses AVX-512 on every processor, MKL's matrix products only on Intel's (AMD EPYC: 2.2 ms
    against 5.3). A dilation has no effect on a 1×1 kernel, but torch always hands dilated
    convolutions to oneDNN.
    """
    return features.device.type == "cpu" and torch.backends.mkldnn.is_available()


class GramFunction(torch.autograd.Function):
    """XᵀX of N×C×H×W with one product backward, where autograd would compute two."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        with torch.autocast(features.device.type, enabled=False):
            return compute_feature_products(features)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor
    ) -> Tensor:
        # A fresh tensor that nothing else refers to lets autograd add the network's gradient in
        # place.
        (features,) = ctx.saved_tensors
        return multiply_positions(features, grad_output + grad_output.mT)


class GramLossFunction(torch.autograd.Function):
    """Gatys' E between N×C×H×W and a Gram matrix 1×C×C or N×C×C: N.

    The difference of the Gram matrices is the only matrix in memory.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, target: Tensor) -> Tensor:
        position_count = features.shape[2] * features.shape[3]
        gram = compute_feature_products(features).div_(position_count)
        difference = gram.sub_(target)
        ctx.save_for_backward(features, difference)
        return difference.square().flatten(1).mean(1) / 4

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor, None]:
        features, difference = ctx.saved_tensors
        channels = features.shape[1]
        weight = grad_output.view(-1, 1, 1) / features[0].numel() / channels
        gradient = multiply_positions(features, difference * weight)
        return gradient, None


def flatten_positions(features: Tensor) -> Tensor:
    """N×C×H×W as a view N×M×C, in both memory formats."""
    if features.stride(1) == 1:
        return features.permute(0, 2, 3, 1).flatten(1, 2)
    return features.flatten(2).mT


# ── statistics of features ──


def compute_gram(features: Tensor) -> Tensor:
    """G = FFᵀ/M of N×C×H×W: N×C×C, symmetric and positive semidefinite. Always in float32.

    It is the same for every permutation of the positions.
    """
    products: Tensor = GramFunction.apply(features.float())
    return products / (features.shape[2] * features.shape[3])


@dataclass(frozen=True)
class FeatureMoments:
    """First and second raw moments of features over all positions. Styles blend linearly in both.

    Attributes:
        mean: N×C.
        gram: The Gram matrix, N×C×C.
    """

    mean: Tensor
    gram: Tensor

    @property
    def covariance(self) -> Tensor:
        """N×C×C, with a ridge that keeps its square root differentiable."""
        channels = self.mean.shape[1]
        identity = torch.eye(channels, device=self.mean.device)
        ridge = STYLE_COVARIANCE_RIDGE * identity
        mean_products = self.mean.unsqueeze(2) * self.mean.unsqueeze(1)
        return self.gram - mean_products + ridge


def compute_moments(
    features: Tensor,
    weights: Tensor | None = None,
    *,
    normalized: bool = False,
    with_mean: bool = True,
) -> FeatureMoments:
    """The moments of N×C×H×W, over all positions alike or with weights N×H×W.

    The weights are scaled to a sum of 1 for each image, unless they are `normalized` already.
    Without `with_mean` only the Gram matrix is computed, and the mean is 0.
    """
    features = features.float()
    mean = features.new_zeros(features.shape[:2])
    if weights is None:
        if with_mean:
            mean = features.mean((2, 3))
        return FeatureMoments(mean, compute_gram(features))

    shares = weights.unsqueeze(1)
    if not normalized:
        shares = shares / shares.sum((2, 3), keepdim=True).clamp_min(1e-12)
    gram: Tensor = GramFunction.apply(features * shares.sqrt())
    if with_mean:
        mean = (features * shares).sum((2, 3))
    return FeatureMoments(mean, gram)


def blend_moments(parts: Sequence[FeatureMoments], weights: Sequence[float]) -> FeatureMoments:
    """The weighted mean of several styles' moments; the weights needn't sum to 1."""
    total = sum(weights)
    means: list[Tensor] = []
    grams: list[Tensor] = []
    for weight, moments in zip(weights, parts, strict=True):
        share = weight / total
        means.append(share * moments.mean)
        grams.append(share * moments.gram)
    mean = torch.stack(means).sum(0)
    gram = torch.stack(grams).sum(0)
    return FeatureMoments(mean, gram)


# ── losses, one number for each image of the batch ──


def compute_content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of N×C×H×W to 1×C×H×W or N×C×H×W: N.

    Gatys' content loss ½Σ(F − P)² is ½CHW times as large.
    """
    return (features.float() - target.float()).square().flatten(1).mean(1)


def compute_gram_loss(gram_matrix: Tensor, target: Tensor) -> Tensor:
    """Gatys' E = Σ(G − A)²/4C² of Gram matrices N×C×C: N."""
    return (gram_matrix - target).square().flatten(1).mean(1) / 4


def compute_gram_loss_from_features(features: Tensor, target: Tensor) -> Tensor:
    """`compute_gram_loss` of the Gram matrix of N×C×H×W, computed faster: N."""
    with torch.autocast(features.device.type, enabled=False):
        loss: Tensor = GramLossFunction.apply(features.float(), target)
    return loss


def compute_w2_loss(image_moments: FeatureMoments, target: FeatureMoments) -> Tensor:
    """Squared 2-Wasserstein distance between Gaussians of these moments, divided by C: N.

    |μ − ν|² + tr(A + B − 2(B^½AB^½)^½), as in style-transfer-pytorch. The trace of the root is the
    sum of the roots of eigenvalues.
    """
    image_covariance = image_moments.covariance
    target_covariance = target.covariance
    target_root = compute_matrix_root(target_covariance.detach())

    # Rounding leaves the product slightly asymmetric.
    inner = target_root @ image_covariance @ target_root
    symmetric = (inner + inner.mT) / 2
    eigenvalues = torch.linalg.eigvalsh(symmetric)
    eigenvalues = eigenvalues.clamp_min(STYLE_COVARIANCE_RIDGE**2)
    root_trace = eigenvalues.sqrt().sum(-1)

    covariance_sum = image_covariance + target_covariance
    trace = covariance_sum.diagonal(dim1=-2, dim2=-1).sum(-1)
    covariance_distance = trace - 2 * root_trace

    mean_difference = image_moments.mean - target.mean
    mean_distance = mean_difference.square().sum(1)
    channels = mean_difference.shape[1]
    return (mean_distance + covariance_distance) / channels


def compute_matrix_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of positive semidefinite N×C×C."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT


def compute_sliced_loss(features: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    """Sliced Wasserstein distance (Heitz 2021) along unit vectors K×C: N.

    The mean squared difference between the sorted projections of the positions. If the target has
    another number of positions, its sorted projections are interpolated.
    """
    projections = sort_projections(features, directions)
    target_projections = sort_projections(target, directions)
    position_count = projections.shape[1]
    if target_projections.shape[1] != position_count:
        target_projections = F.interpolate(
            target_projections.mT, size=position_count, mode="linear", align_corners=False
        ).mT
    return (projections - target_projections).square().flatten(1).mean(1)


def sort_projections(features: Tensor, directions: Tensor) -> Tensor:
    """The positions of N×C×H×W projected on K×C, sorted along each direction: N×M×K."""
    projections = flatten_positions(features).float() @ directions.T
    return projections.sort(1).values


def draw_random_directions(
    channels: int, generator: torch.Generator, count: int | None = None
) -> Tensor:
    """Random unit vectors, count×C; by default as many as channels."""
    vectors = torch.randn(count or channels, channels, generator=generator)
    return vectors / vectors.norm(dim=1, keepdim=True)
