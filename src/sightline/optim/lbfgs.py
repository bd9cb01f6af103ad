"""L-BFGS for pictures: one evaluation per step, each image of a batch by itself, and no number that the host waits for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.optim.optimizers import BaseOptimizer

MIN_CURVATURE = 1e-10  # pairs below are left out, as in torch.optim.LBFGS

MIN_DESCENT = 1e-9  # a direction that descends by less is not gone


class LBFGS(BaseOptimizer):
    """Limited-memory BFGS (Nocedal 1980) in the compact form of Byrd, Nocedal & Schnabel 1994 (theorem 3.1).

    The steps are those of `torch.optim.LBFGS(max_iter=1)` without line search. Its two loops over the history are two matrix
    products with the stacked pairs here and a solve of history × history. A pair holds what the parameter really moved by, so
    a projection after the step is part of the curvature. Memory: 8·history bytes for each number optimized.

    `filter` K, linear, symmetric and positive, is the guess at the inverse curvature that the history corrects, in the place of the
    identity: the same steps as in coordinates √K times as large, without a way back from them. `most` bounds the root mean square of
    a step, and the first, of which nothing is known, is a tenth of it: where the curvature is misjudged a full one may end far away.
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
        self.lr, self.preconditioner, self.max_rms_step = lr, preconditioner, max_rms_step
        self.memories = [CurvatureMemory(parameter, history) for parameter in parameters]

    def inherit_history(self, previous: "LBFGS", objective_ratio: float) -> None:
        """Takes over what was learned of the same pictures at another size, where the objective was 1/`gain` times as large."""
        for memory, other in zip(self.memories, previous.memories, strict=True):
            memory.inherit_pairs(other, objective_ratio)

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        memory, slope = self.memories[index], gradient.flatten(1)
        filtered = self.preconditioner(gradient).flatten(1) if self.preconditioner else slope
        direction = memory.compute_direction(parameter.detach().flatten(1), slope, filtered)
        descends = (direction * slope).sum(1, keepdim=True) <= -MIN_DESCENT
        step = torch.where(descends, direction, 0) * self.lr
        length = step.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        if not memory.pair_count:
            step *= (
                (1 / filtered.abs().sum(1, keepdim=True)).clamp_max(1)
                if self.max_rms_step == math.inf
                else self.max_rms_step / 10 / length
            )
        else:
            step *= (self.max_rms_step / length).clamp_max(1)
        parameter.add_(step.view_as(parameter))


class CurvatureMemory:
    """The last pairs of movement s and change of slope y of every image, the latter filtered: two rings N×history×D, S and KY, and
    their products."""

    def __init__(self, parameter: Tensor, history: int) -> None:
        count, size = len(parameter), parameter[0].numel()
        self.shape, self.history, self.pair_count = parameter.shape, history, 0
        self.position_changes, self.gradient_changes = (
            parameter.new_zeros(count, history, size) for _ in range(2)
        )
        # sᵀy and yᵀKy of all pairs, in double: what is solved is small and badly conditioned.
        self.sy_products, self.yy_products = (
            torch.zeros(count, history, history, dtype=torch.float64, device=parameter.device)
            for _ in range(2)
        )
        self.scale = torch.ones(count, 1, dtype=torch.float64, device=parameter.device)
        self.previous: tuple[Tensor, Tensor, Tensor] | None = (
            None  # place, slope and filtered slope
        )

    @property
    def slots_by_age(self) -> Tensor:
        """The places of the pairs in the rings, oldest first."""
        ages = range(min(self.pair_count, self.history), 0, -1)
        return torch.tensor(
            [(self.pair_count - age) % self.history for age in ages],
            device=self.position_changes.device,
        )

    def inherit_pairs(self, other: "CurvatureMemory", objective_ratio: float) -> None:
        """Takes over the pairs of pictures of another size, resized, for an objective `gain` times as large. What a movement does to it is
        shared by as many more pixels. The products are those of the pairs as they were: nearly those of the resized ones."""
        share = objective_ratio * math.prod(other.shape[2:]) / math.prod(self.shape[2:])
        self.position_changes, self.gradient_changes = (
            resize_pairs(pairs, other.shape, self.shape)
            for pairs in (other.position_changes, other.gradient_changes * share)
        )
        self.sy_products, self.yy_products, self.scale = (
            other.sy_products * objective_ratio,
            other.yy_products * (objective_ratio * share),
            other.scale / share,
        )
        self.history, self.pair_count = other.history, other.pair_count

    def compute_direction(
        self, position: Tensor, gradient: Tensor, preconditioned: Tensor
    ) -> Tensor:
        """Where to go from a place N×D with this slope g and Kg: −H·g."""
        if self.previous:
            changed = gradient - self.previous[1]
            along, bent = self.store_pair(
                position - self.previous[0],
                gradient,
                changed,
                changed if preconditioned is gradient else preconditioned - self.previous[2],
            )
        else:
            along, bent = self.multiply_history(gradient.unsqueeze(1))
        kept = gradient.clone()
        self.previous = (
            position.clone(),
            kept,
            kept if preconditioned is gradient else preconditioned,
        )
        return (
            -self.multiply_inverse_hessian(preconditioned, along, bent)
            if self.pair_count
            else -preconditioned
        )

    def store_pair(
        self,
        position_change: Tensor,
        gradient: Tensor,
        gradient_change: Tensor,
        preconditioned_change: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Takes the pair s, y in, with Ky; where the curvature is too small it is stored as zeros, which change nothing. Gives Sᵀg and YᵀKg,
        found on the same way through the memory as the products with the new pair."""
        slot = self.pair_count % self.history
        self.pair_count += 1
        curvature = (position_change * gradient_change).sum(1, keepdim=True)
        good = curvature > MIN_CURVATURE
        self.position_changes[:, slot], self.gradient_changes[:, slot] = (
            torch.where(good, position_change, 0),
            torch.where(good, preconditioned_change, 0),
        )
        rows, squares = self.multiply_history(
            torch.stack([torch.where(good, gradient_change, 0), gradient], 1)
        )
        self.sy_products[:, :, slot], self.yy_products[:, :, slot], self.yy_products[:, slot] = (
            rows[..., 0],
            squares[..., 0],
            squares[..., 0],
        )
        ratio = curvature.double() / (gradient_change.double() * preconditioned_change).sum(
            1, keepdim=True
        ).clamp_min(1e-300)
        self.scale = torch.where(good, ratio, self.scale)
        return rows[..., -1:], squares[..., -1:]

    def multiply_history(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """S and KY times rows N×k×D: N×history×k each, in double. MKL takes up to ten times as long where the pairs stand first."""
        moved, changed = (
            (rows @ pairs.mT).double().mT
            for pairs in (self.position_changes, self.gradient_changes)
        )
        return moved, changed

    def multiply_inverse_hessian(
        self, preconditioned: Tensor, s_products: Tensor, y_products: Tensor
    ) -> Tensor:
        """H·g: γKg + S·a + γKY·b, with a = R⁻ᵀ((D + γYᵀKY)R⁻¹Sᵀg − γYᵀKg), b = −R⁻¹Sᵀg, R the upper triangle of SᵀY by age."""
        chosen = self.slots_by_age
        across, within = (
            table[:, chosen][:, :, chosen] for table in (self.sy_products, self.yy_products)
        )
        diagonal = across.diagonal(dim1=1, dim2=2)
        upper = across.triu() + torch.diag_embed((diagonal == 0).double())
        s_products, y_products, scale = (
            s_products[:, chosen],
            y_products[:, chosen],
            self.scale.unsqueeze(2),
        )
        solved = torch.linalg.solve_triangular(upper, s_products, upper=True)
        middle = diagonal.unsqueeze(2) * solved + scale * (within @ solved) - scale * y_products
        first = torch.linalg.solve_triangular(upper.mT, middle, upper=False)
        weights = torch.zeros(
            2,
            len(preconditioned),
            self.history,
            1,
            dtype=torch.float64,
            device=preconditioned.device,
        )
        weights[0, :, chosen], weights[1, :, chosen] = first, -scale * solved
        parts = [
            (pairs.mT @ weight.to(preconditioned))[..., 0]
            for pairs, weight in zip(
                (self.position_changes, self.gradient_changes), weights, strict=True
            )
        ]
        return self.scale.to(preconditioned) * preconditioned + parts[0] + parts[1]


def resize_pairs(pairs: Tensor, old_shape: torch.Size, new_shape: torch.Size) -> Tensor:
    """Vectors N×history×D of pictures N×C×h×w, for pictures N×C×H×W."""
    pictures = pairs.view(-1, *old_shape[1:])
    return F.interpolate(pictures, size=new_shape[2:], mode="bicubic", align_corners=False).view(
        *pairs.shape[:2], -1
    )
