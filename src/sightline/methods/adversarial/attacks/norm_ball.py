"""Norm balls around an image: norms, projections, random points and steepest steps.

Radii and norms are in units of pixel values in [0, 1].
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]

DUAL_NORMS: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}

# Share of the pixel values that one l1 step moves. Departure: the steepest l1 step moves a single
# value, which takes thousands of steps (Tramèr & Boneh 2019, section 3.3).
L1_STEP_SHARE = 0.01


@dataclass(frozen=True)
class NormBall:
    """The images in [0, 1] within `eps` of `center`, N×3×H×W; infinite `eps` leaves only [0, 1]."""

    center: Tensor
    eps: float
    norm: Norm

    def select_images(self, index: Tensor) -> "NormBall":
        """The balls of the images at `index`."""
        return replace(self, center=self.center[index])

    def project_image(self, image: Tensor) -> Tensor:
        """Projects images into the ball and [0, 1].

        For linf and l1 this is the nearest such image. For l2 it is the nearest image of the ball,
        then clamped to [0, 1].
        """
        return project_onto_ball(image, self.center, self.eps, self.norm)

    def sample_image(self, generator: torch.Generator) -> Tensor:
        """A random image of each ball."""
        offset = sample_unit_offset(self.center, self.norm, generator) * self.eps
        return self.project_image(self.center + offset)

    def find_steepest_step(self, gradient: Tensor, image: Tensor) -> Tensor:
        """The step of norm 1 with the largest product with the gradient; zero for a zero gradient.

        For l1 the step moves the 1 % of the pixel values with the largest gradient, among those
        that have room left in [0, 1].
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            length = compute_image_norms(gradient, "l2").clamp_min(1e-20)
            return gradient / reshape_per_image(length)

        magnitude = keep_feasible_gradient(gradient, image).abs().flatten(1)
        value_count = max(1, round(L1_STEP_SHARE * magnitude.shape[1]))
        largest = magnitude.topk(value_count, dim=1).indices
        is_largest = torch.zeros_like(magnitude).scatter_(1, largest, 1.0)
        moves = (is_largest * (magnitude > 0)).view_as(gradient)
        step = gradient.sign() * moves
        return step / reshape_per_image(compute_image_norms(step, "l1").clamp_min(1))


def reshape_per_image(numbers: Tensor) -> Tensor:
    """Reshapes one number per image (or one for all) to N×1×1×1, to broadcast over N×3×H×W."""
    return numbers.reshape(-1, 1, 1, 1)


def keep_feasible_gradient(gradient: Tensor, image: Tensor) -> Tensor:
    """Zeroes the gradient where following it would leave [0, 1]: up at 1, down at 0."""
    has_room = torch.where(gradient > 0, image < 1, image > 0)
    return gradient * has_room


def compute_image_norms(offset: Tensor, norm: Norm) -> Tensor:
    """The norm of each image of a batch, N."""
    flat = offset.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return flat.norm(dim=1)
    return flat.abs().sum(1)


def project_onto_ball(image: Tensor, center: Tensor, eps: Tensor | float, norm: Norm) -> Tensor:
    """Projects images N×3×H×W onto the ball around `center` and into [0, 1].

    `eps` is one radius or N of them. Clamping to [0, 1] last keeps the image in the ball, because
    the center lies in [0, 1].
    """
    if norm == "linf":
        radius = reshape_per_image(torch.as_tensor(eps).to(center))
        return image.clamp(center - radius, center + radius).clamp(0, 1)

    offset = image - center
    limit = None
    if norm == "l1":
        limit = torch.where(offset > 0, 1 - center, center)  # the room that is left in [0, 1]
    projected = project_offset(offset, eps, norm, limit)
    # Where the offset stays, take the image itself: center + offset would add a rounding error.
    return torch.where(projected == offset, image, center + projected).clamp(0, 1)


def project_offset(
    offset: Tensor, eps: Tensor | float, norm: Norm, limit: Tensor | None = None
) -> Tensor:
    """The nearest offset of norm at most `eps`, per image; offsets inside the ball are unchanged.

    `limit` is the largest magnitude of each value, for l1 only; None sets no limit.
    """
    radius = reshape_per_image(torch.as_tensor(eps).to(offset))
    if norm == "linf":
        return offset.clamp(-radius, radius)
    if norm == "l1":
        return project_offset_l1(offset, radius, offset.abs() if limit is None else limit)
    length = reshape_per_image(compute_image_norms(offset, "l2"))
    return torch.where(length <= radius, offset, offset * (radius / length))


def project_offset_l1(offset: Tensor, eps: Tensor, limit: Tensor) -> Tensor:
    """The nearest offset of l1 norm at most `eps` whose magnitudes are at most `limit`.

    The solution is sign · min(max(magnitude − λ, 0), limit) for some threshold λ ≥ 0 (Duchi 2008;
    with limits, Croce & Hein 2021). Its norm is a piecewise linear function of λ. Each value adds
    slope −1 between two breakpoints: where it leaves its limit and where it reaches zero. Sorting
    the breakpoints finds the segment in which the norm passes `eps`, and so λ.
    """
    magnitude = offset.abs().flatten(1).double()
    limit = limit.flatten(1).double()
    radius = eps.double().view(-1, 1)

    leaves_limit = (magnitude - limit).clamp_min(0)
    breakpoints, order = torch.cat([leaves_limit, magnitude], 1).sort(1)
    is_leaving_limit = order < magnitude.shape[1]
    slopes = torch.where(is_leaving_limit, -1.0, 1.0).double().cumsum(1)

    # The norm at every breakpoint.
    unshrunk_norm = torch.minimum(magnitude, limit).sum(1, keepdim=True)
    norm_changes = (slopes[:, :-1] * breakpoints.diff(dim=1)).cumsum(1)
    norms = torch.cat([unshrunk_norm, unshrunk_norm + norm_changes], 1)

    # The last breakpoint whose norm still exceeds the radius begins the segment.
    segment = ((norms > radius).sum(1, keepdim=True) - 1).clamp_min(0)
    segment_start = breakpoints.gather(1, segment)
    segment_norm = norms.gather(1, segment)
    segment_slope = slopes.gather(1, segment).clamp_max(-1)
    threshold = segment_start + (segment_norm - radius) / -segment_slope
    threshold = torch.where(unshrunk_norm > radius, threshold, 0)

    shrunk = torch.minimum((magnitude - threshold).clamp_min(0), limit)
    shrunk = shrunk.view_as(offset).to(offset.dtype)
    return torch.where(shrunk == offset.abs(), offset, offset.sign() * shrunk)


def sample_unit_offset(image: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A random offset of norm at most 1 for each image.

    For linf each value is uniform in [−1, 1]; for l2 and l1 a uniform direction has a uniform
    length.
    """
    if norm == "linf":
        return (2 * torch.rand(image.shape, generator=generator, dtype=torch.float32) - 1).to(
            image.device
        )

    direction = torch.randn(image.shape, generator=generator, dtype=torch.float32)
    if norm == "l1":
        # Laplace values with random signs have a uniform direction on the l1 sphere.
        uniform = torch.rand(image.shape, generator=generator, dtype=torch.float32).clamp_min(1e-12)
        direction = direction.sign() * -uniform.log()
    length = torch.rand(len(image), generator=generator, dtype=torch.float32)
    scale = reshape_per_image(length / compute_image_norms(direction, norm))
    return (direction * scale).to(image.device)
