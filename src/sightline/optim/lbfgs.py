"""L-BFGS for images: one evaluation per step, each image of a batch by itself.

No step makes the host wait for a number from the device.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.optim.optimizers import BaseOptimizer

# A pair with a smaller curvature sᵀy is left out, as in torch.optim.LBFGS, and a direction that
# descends by less is not followed. An objective with tiny gradients would have no others: there the
# cosine counts.
MIN_CURVATURE = 1e-10
MIN_DESCENT = 1e-9
MIN_COSINE = 1e-5


class LBFGS(BaseOptimizer):
    """Limited-memory BFGS (Nocedal 1980) in compact form (Byrd, Nocedal & Schnabel 1994, th. 3.1).

    The steps are those of `torch.optim.LBFGS(max_iter=1)` without line search. Its two loops over
    the history are here two matrix products with the stacked pairs and a solve of history×history.
    A pair holds by how much the parameter really moved, so a projection after the step is part of
    the curvature. Memory: 8·history bytes for each optimized number.

    `preconditioner` K, linear, symmetric and positive, replaces the identity as the first guess of
    the inverse curvature. The steps are then those in coordinates √K times as large, without having
    to convert from these. `max_rms_step` bounds the root mean square of a step. The first step,
    which knows no curvature, is a tenth of it: where the curvature is misjudged, a full one may end
    far away.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float = 1.0,
        history: int = 10,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        max_rms_step: float = math.inf,
    ) -> None:
        super().__init__(parameters)
        self.lr = lr
        self.preconditioner = preconditioner
        self.max_rms_step = max_rms_step
        self.memories = [CurvatureMemory(parameter, history) for parameter in parameters]

    def inherit_state(self, previous: BaseOptimizer, objective_ratio: float) -> None:
        """Takes over the curvature pairs, resized to this optimizer's leaves N×C×H×W."""
        if not isinstance(previous, LBFGS):
            raise TypeError(f"LBFGS can't take over the state of {type(previous).__name__}")
        for memory, previous_memory in zip(self.memories, previous.memories, strict=True):
            memory.inherit_pairs(previous_memory, objective_ratio)

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """Moves the leaf of that index in place."""
        memory = self.memories[index]
        flat_gradient = gradient.flatten(1)
        preconditioned = flat_gradient
        if self.preconditioner:
            preconditioned = self.preconditioner(gradient).flatten(1)

        position = parameter.detach().flatten(1)
        direction = memory.compute_direction(position, flat_gradient, preconditioned)
        descends = exceeds_threshold(-direction, flat_gradient, MIN_DESCENT)

        step = torch.where(descends, direction, 0) * self.lr
        is_first = memory.pair_count == 0
        step *= self.compute_step_scale(step, preconditioned, is_first=is_first)
        parameter.add_(step.view_as(parameter))

    def compute_step_scale(self, step: Tensor, preconditioned: Tensor, *, is_first: bool) -> Tensor:
        """The factor for each image's step, N×1."""
        if is_first and self.max_rms_step == math.inf:
            # torch.optim.LBFGS takes a first step of this length too.
            l1_norm = preconditioned.abs().sum(1, keepdim=True)
            return (1 / l1_norm).clamp_max(1)
        mean_square = step.square().mean(1, keepdim=True)
        rms = mean_square.sqrt().clamp_min(1e-30)
        if is_first:
            return self.max_rms_step / 10 / rms
        return (self.max_rms_step / rms).clamp_max(1)


class CurvatureMemory:
    """The last pairs of position change s and gradient change y of every image.

    The gradient changes are stored preconditioned. Both are ring buffers N×history×D, S and KY; the
    products of all pairs are stored beside them.
    """

    def __init__(self, parameter: Tensor, history: int) -> None:
        image_count = len(parameter)
        size = parameter[0].numel()
        self.shape = parameter.shape
        self.history = history
        self.pair_count = 0
        self.position_changes = parameter.new_zeros(image_count, history, size)
        self.gradient_changes = parameter.new_zeros(image_count, history, size)
        # sᵀy and yᵀKy of all pairs and the scale γ, in double precision: the system that is solved
        # is small and badly conditioned.
        table_shape = (image_count, history, history)
        self.sy_products = parameter.new_zeros(table_shape, dtype=torch.float64)
        self.yy_products = parameter.new_zeros(table_shape, dtype=torch.float64)
        self.scale = parameter.new_ones((image_count, 1), dtype=torch.float64)
        # Position, gradient and preconditioned gradient of the step before.
        self.previous: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def slots_by_age(self) -> Tensor:
        """The indices of the pairs in the ring buffers, oldest first."""
        ages = range(min(self.pair_count, self.history), 0, -1)
        slots = [(self.pair_count - age) % self.history for age in ages]
        return torch.tensor(slots, device=self.position_changes.device)

    def inherit_pairs(self, previous: "CurvatureMemory", objective_ratio: float) -> None:
        """Takes over the pairs of the same images at another size, resized.

        The objective is `objective_ratio` times as large as it was. A movement's effect on it is
        shared by more pixels of a larger image. The products aren't computed anew: those of the
        resized pairs are nearly those of the pairs before.
        """
        previous_area = math.prod(previous.shape[2:])
        area = math.prod(self.shape[2:])
        gradient_ratio = objective_ratio * previous_area / area
        self.position_changes = resize_vectors(
            previous.position_changes, previous.shape, self.shape
        )
        self.gradient_changes = resize_vectors(
            previous.gradient_changes * gradient_ratio, previous.shape, self.shape
        )
        self.sy_products = previous.sy_products * objective_ratio
        self.yy_products = previous.yy_products * (objective_ratio * gradient_ratio)
        self.scale = previous.scale / gradient_ratio
        self.history = previous.history
        self.pair_count = previous.pair_count

    def compute_direction(
        self, position: Tensor, gradient: Tensor, preconditioned: Tensor
    ) -> Tensor:
        """The direction −H·g from a position N×D with gradient g and preconditioned gradient Kg.

        Without a preconditioner the two gradients must be the same tensor.
        """
        if self.previous:
            previous_position, previous_gradient, previous_preconditioned = self.previous
            gradient_change = gradient - previous_gradient
            preconditioned_change = gradient_change
            if preconditioned is not gradient:
                preconditioned_change = preconditioned - previous_preconditioned
            s_products, y_products = self.store_pair(
                position - previous_position, gradient, gradient_change, preconditioned_change
            )
        else:
            s_products, y_products = self.multiply_history(gradient.unsqueeze(1))

        stored_gradient = gradient.clone()
        stored_preconditioned = stored_gradient
        if preconditioned is not gradient:
            stored_preconditioned = preconditioned
        self.previous = (position.clone(), stored_gradient, stored_preconditioned)

        if not self.pair_count:
            return -preconditioned
        return -self.multiply_inverse_hessian(preconditioned, s_products, y_products)

    def store_pair(
        self,
        position_change: Tensor,
        gradient: Tensor,
        gradient_change: Tensor,
        preconditioned_change: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Stores the pair s, y with Ky; one with too small a curvature as zeros, without effect.

        Returns Sᵀg and YᵀKg. They are computed in the same pass over the history as the products
        with the new pair.
        """
        slot = self.pair_count % self.history
        self.pair_count += 1

        curvature = (position_change * gradient_change).sum(1, keepdim=True)
        is_curved = exceeds_threshold(position_change, gradient_change, MIN_CURVATURE)
        stored_change = torch.where(is_curved, gradient_change, 0)
        self.position_changes[:, slot] = torch.where(is_curved, position_change, 0)
        self.gradient_changes[:, slot] = torch.where(is_curved, preconditioned_change, 0)

        # The products with y fill the new pair's row and column of the tables. SᵀY is only read
        # on and above its diagonal, so it needs no row.
        rows = torch.stack([stored_change, gradient], 1)
        s_products, y_products = self.multiply_history(rows)
        y_column = y_products[..., 0]
        self.sy_products[:, :, slot] = s_products[..., 0]
        self.yy_products[:, :, slot] = y_column
        self.yy_products[:, slot] = y_column

        # γ = sᵀy/yᵀKy of the newest pair scales the first guess of the inverse curvature.
        double_change = gradient_change.double()
        yy_product = (double_change * preconditioned_change).sum(1, keepdim=True)
        scale = curvature.double() / yy_product.clamp_min(1e-300)
        self.scale = torch.where(is_curved, scale, self.scale)
        return s_products[..., -1:], y_products[..., -1:]

    def multiply_history(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """S and KY times rows N×k×D: N×history×k each, in double precision."""
        # MKL takes up to ten times as long with the pairs as the first factor.
        s_products = (rows @ self.position_changes.mT).double().mT
        y_products = (rows @ self.gradient_changes.mT).double().mT
        return s_products, y_products

    def multiply_inverse_hessian(
        self, preconditioned: Tensor, s_products: Tensor, y_products: Tensor
    ) -> Tensor:
        """H·g = γKg + S·a + γKY·b, of Kg, Sᵀg and YᵀKg.

        With R the upper triangle of SᵀY by age and D its diagonal:
        a = R⁻ᵀ((D + γYᵀKY)R⁻¹Sᵀg − γYᵀKg) and b = −R⁻¹Sᵀg.
        """
        slots = self.slots_by_age
        sy_products = self.sy_products[:, slots][:, :, slots]
        yy_products = self.yy_products[:, slots][:, :, slots]
        s_products = s_products[:, slots]
        y_products = y_products[:, slots]
        scale = self.scale.unsqueeze(2)

        # R. A pair that was stored as zeros gets a one on the diagonal, or R would be singular.
        diagonal = sy_products.diagonal(dim1=1, dim2=2)
        is_empty = (diagonal == 0).double()
        upper = sy_products.triu() + torch.diag_embed(is_empty)

        # R⁻¹Sᵀg, and the terms in the parentheses of a.
        solved = torch.linalg.solve_triangular(upper, s_products, upper=True)
        middle = diagonal.unsqueeze(2) * solved
        middle = middle + scale * (yy_products @ solved)
        middle = middle - scale * y_products

        # a and γb, in the order of the ring buffers.
        a = torch.linalg.solve_triangular(upper.mT, middle, upper=False)
        a = self.scatter_to_slots(a, slots).to(preconditioned)
        scaled_b = self.scatter_to_slots(-scale * solved, slots).to(preconditioned)

        first_guess = self.scale.to(preconditioned) * preconditioned
        position_term = (self.position_changes.mT @ a)[..., 0]
        gradient_term = (self.gradient_changes.mT @ scaled_b)[..., 0]
        return first_guess + position_term + gradient_term

    def scatter_to_slots(self, weights: Tensor, slots: Tensor) -> Tensor:
        """Weights of the pairs by age, N×pairs×1, in the order of the ring buffers: N×history×1."""
        scattered = weights.new_zeros(len(weights), self.history, 1)
        scattered[:, slots] = weights
        return scattered


def exceeds_threshold(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Whether products of vectors N×D exceed it, or, of short vectors, their cosine does; N×1."""
    product = (first * second).sum(1, keepdim=True)
    length_product = first.norm(dim=1, keepdim=True) * second.norm(dim=1, keepdim=True)
    return (product >= threshold) | (product > MIN_COSINE * length_product)


def resize_vectors(vectors: Tensor, shape: torch.Size, new_shape: torch.Size) -> Tensor:
    """Vectors N×history×D of images N×C×h×w, for images N×C×H×W. They aren't clamped."""
    image_count, history = vectors.shape[:2]
    images = vectors.view(-1, *shape[1:])
    size = new_shape[2:]
    resized = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
    return resized.view(image_count, history, -1)
