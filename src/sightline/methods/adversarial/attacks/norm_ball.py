"""Balls of three norms around an image: lengths, nearest points, random points, steepest steps. Sizes are in units of [0, 1]."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]

DUAL_NORMS: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}

# Share of the pixel values that one l1 step moves: the steepest step moves a single one (Tramèr & Boneh 2019, section 3.3).
L1_STEP_SHARE = 0.01


@dataclass(frozen=True)
class NormBall:
    """The pictures in [0, 1] within `eps` of `center` N×3×H×W. An infinite `eps` leaves only [0, 1]."""

    center: Tensor
    eps: float
    norm: Norm

    def select_images(self, index: Tensor) -> "NormBall":
        """The balls of some of the images."""
        return replace(self, center=self.center[index])

    def project_image(self, image: Tensor) -> Tensor:
        """A picture of the ball near an image: the nearest one for linf and l1, the nearest of the l2 ball brought into [0, 1]."""
        return project_onto_ball(image, self.center, self.eps, self.norm)

    def sample_image(self, generator: torch.Generator) -> Tensor:
        """A random picture of each ball."""
        return self.project_image(
            self.center + sample_unit_offset(self.center, self.norm, generator) * self.eps
        )

    def find_steepest_step(self, gradient: Tensor, image: Tensor) -> Tensor:
        """The step of length 1 that follows the gradient most; zero stays zero. For l1 it moves the 1 % of pixel values
        with the largest slope among those with room in [0, 1]."""
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / reshape_per_image(
                compute_image_norms(gradient, "l2").clamp_min(1e-20)
            )
        slope = keep_feasible_gradient(gradient, image).abs().flatten(1)
        chosen = torch.zeros_like(slope).scatter_(
            1, slope.topk(max(1, round(L1_STEP_SHARE * slope.shape[1])), dim=1).indices, 1.0
        )
        step = gradient.sign() * (chosen * (slope > 0)).view_as(gradient)
        return step / reshape_per_image(compute_image_norms(step, "l1").clamp_min(1))


def reshape_per_image(numbers: Tensor) -> Tensor:
    """One number for each image (or for all of them), to go with N×3×H×W."""
    return numbers.reshape(-1, 1, 1, 1)


def keep_feasible_gradient(gradient: Tensor, image: Tensor) -> Tensor:
    """The part of a gradient that an image in [0, 1] can follow: nothing makes white brighter or black darker."""
    return gradient * torch.where(gradient > 0, image < 1, image > 0)


def compute_image_norms(offset: Tensor, norm: Norm) -> Tensor:
    """The norm of each image of a batch, N."""
    flat = offset.flatten(1)
    return (
        flat.abs().amax(1)
        if norm == "linf"
        else flat.norm(dim=1)
        if norm == "l2"
        else flat.abs().sum(1)
    )


def project_onto_ball(image: Tensor, center: Tensor, eps: Tensor | float, norm: Norm) -> Tensor:
    """Onto the ball and [0, 1]; `eps` is one number or N. [0, 1] can't leave the ball, since the centre lies in it."""
    if norm == "linf":
        radius = reshape_per_image(torch.as_tensor(eps).to(center))
        return image.clamp(center - radius, center + radius).clamp(0, 1)
    offset = image - center
    near = project_offset(
        offset, eps, norm, torch.where(offset > 0, 1 - center, center) if norm == "l1" else None
    )
    # Adding the offset back would round a point that is inside already.
    return torch.where(near == offset, image, center + near).clamp(0, 1)


def project_offset(
    offset: Tensor, eps: Tensor | float, norm: Norm, limit: Tensor | None = None
) -> Tensor:
    """The nearest offset of norm at most `eps`, per image; offsets inside the ball stay as they are.

    For l1, `room` is how far each value may go at most (by default as far as it likes).
    """
    radius = reshape_per_image(torch.as_tensor(eps).to(offset))
    if norm == "linf":
        return offset.clamp(-radius, radius)
    if norm == "l1":
        return project_offset_l1(offset, radius, offset.abs() if limit is None else limit)
    size = reshape_per_image(compute_image_norms(offset, "l2"))
    return torch.where(size <= radius, offset, offset * (radius / size))


def project_offset_l1(offset: Tensor, eps: Tensor, limit: Tensor) -> Tensor:
    """The nearest offset of l1 norm at most `eps` and magnitudes at most `room` (Duchi 2008; with `room`, Croce & Hein 2021).

    It is sign · min(max(magnitude − λ, 0), room). Its norm falls with λ, in straight pieces with a bend wherever a value
    starts to shrink or arrives at zero: the bends are sorted, and λ lies where the piece that passes `eps` does.
    """
    size, most = (value.flatten(1).double() for value in (offset.abs(), limit))
    bends, order = torch.cat([(size - most).clamp_min(0), size], 1).sort(1)
    slopes = torch.where(order < size.shape[1], -1.0, 1.0).double().cumsum(1)
    start = torch.minimum(size, most).sum(1, keepdim=True)
    norms = torch.cat([start, start + (slopes[:, :-1] * bends.diff(dim=1)).cumsum(1)], 1)
    radius = eps.double().view(-1, 1)
    piece = ((norms > radius).sum(1, keepdim=True) - 1).clamp_min(0)
    bend, norm, slope = (values.gather(1, piece) for values in (bends, norms, slopes))
    level = torch.where(start > radius, bend + (norm - radius) / -slope.clamp_max(-1), 0)
    near = torch.minimum((size - level).clamp_min(0), most).view_as(offset).to(offset.dtype)
    return torch.where(near == offset.abs(), offset, offset.sign() * near)


def sample_unit_offset(image: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A random offset of norm at most 1 for each image: even per pixel value for linf, else a random direction and length."""
    if norm == "linf":
        return (2 * torch.rand(image.shape, generator=generator) - 1).to(image.device)
    direction = torch.randn(image.shape, generator=generator)
    if norm == "l1":  # directions even on the l1 sphere are those of a Laplace distribution
        direction = (
            direction.sign() * -torch.rand(image.shape, generator=generator).clamp_min(1e-12).log()
        )
    radius = torch.rand(len(image), generator=generator)
    return (direction * reshape_per_image(radius / compute_image_norms(direction, norm))).to(
        image.device
    )
