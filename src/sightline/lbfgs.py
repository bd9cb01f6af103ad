"""L-BFGS for pictures: one evaluation per step, each image of a batch by itself, and no number that the host waits for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .optimizers import Stepper

LEAST_CURVATURE = 1e-10  # pairs below are left out, as in torch.optim.LBFGS
LEAST_SLOPE = 1e-9  # a direction that descends by less is not gone


class LBFGS(Stepper):
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
        filter: Callable[[Tensor], Tensor] | None = None,
        most: float = math.inf,
    ) -> None:
        super().__init__(parameters)
        self.lr, self.filter, self.most = lr, filter, most
        self.memories = [Memory(parameter, history) for parameter in parameters]

    def remember(self, before: "LBFGS", gain: float) -> None:
        """Takes over what was learned of the same pictures at another size, where the objective was 1/`gain` times as large."""
        for memory, other in zip(self.memories, before.memories, strict=True):
            memory.remember(other, gain)

    def move_(self, number: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        memory, slope = self.memories[number], gradient.flatten(1)
        filtered = self.filter(gradient).flatten(1) if self.filter else slope
        direction = memory.direction(parameter.detach().flatten(1), slope, filtered)
        descends = (direction * slope).sum(1, keepdim=True) <= -LEAST_SLOPE
        step = torch.where(descends, direction, 0) * self.lr
        length = step.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        if not memory.noted:
            step *= (1 / filtered.abs().sum(1, keepdim=True)).clamp_max(1) if self.most == math.inf else self.most / 10 / length
        else:
            step *= (self.most / length).clamp_max(1)
        parameter.add_(step.view_as(parameter))


class Memory:
    """The last pairs of movement s and change of slope y of every image, the latter filtered: two rings N×history×D, S and KY, and
    their products."""

    def __init__(self, parameter: Tensor, history: int) -> None:
        count, size = len(parameter), parameter[0].numel()
        self.shape, self.history, self.noted = parameter.shape, history, 0
        self.moved, self.changed = (parameter.new_zeros(count, history, size) for _ in range(2))
        # sᵀy and yᵀKy of all pairs, in double: what is solved is small and badly conditioned.
        self.across, self.within = (torch.zeros(count, history, history, dtype=torch.float64, device=parameter.device) for _ in range(2))
        self.scale = torch.ones(count, 1, dtype=torch.float64, device=parameter.device)
        self.last: tuple[Tensor, Tensor, Tensor] | None = None  # place, slope and filtered slope

    @property
    def chosen(self) -> Tensor:
        """The places of the pairs in the rings, oldest first."""
        ages = range(min(self.noted, self.history), 0, -1)
        return torch.tensor([(self.noted - age) % self.history for age in ages], device=self.moved.device)

    def remember(self, other: "Memory", gain: float) -> None:
        """Takes over the pairs of pictures of another size, resized, for an objective `gain` times as large. What a movement does to it is
        shared by as many more pixels. The products are those of the pairs as they were: nearly those of the resized ones."""
        share = gain * math.prod(other.shape[2:]) / math.prod(self.shape[2:])
        self.moved, self.changed = (resized(pairs, other.shape, self.shape) for pairs in (other.moved, other.changed * share))
        self.across, self.within, self.scale = other.across * gain, other.within * (gain * share), other.scale / share
        self.history, self.noted = other.history, other.noted

    def direction(self, place: Tensor, slope: Tensor, filtered: Tensor) -> Tensor:
        """Where to go from a place N×D with this slope g and Kg: −H·g."""
        if self.last:
            changed = slope - self.last[1]
            along, bent = self.note(place - self.last[0], slope, changed, changed if filtered is slope else filtered - self.last[2])
        else:
            along, bent = self.times(slope.unsqueeze(1))
        kept = slope.clone()
        self.last = place.clone(), kept, kept if filtered is slope else filtered
        return -self.inverse_times(filtered, along, bent) if self.noted else -filtered

    def note(self, moved: Tensor, slope: Tensor, changed: Tensor, softened: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the pair s, y in, with Ky; where the curvature is too small it is stored as zeros, which change nothing. Gives Sᵀg and YᵀKg,
        found on the same way through the memory as the products with the new pair."""
        slot = self.noted % self.history
        self.noted += 1
        curvature = (moved * changed).sum(1, keepdim=True)
        good = curvature > LEAST_CURVATURE
        self.moved[:, slot], self.changed[:, slot] = torch.where(good, moved, 0), torch.where(good, softened, 0)
        rows, squares = self.times(torch.stack([torch.where(good, changed, 0), slope], 1))
        self.across[:, :, slot], self.within[:, :, slot], self.within[:, slot] = rows[..., 0], squares[..., 0], squares[..., 0]
        ratio = curvature.double() / (changed.double() * softened).sum(1, keepdim=True).clamp_min(1e-300)
        self.scale = torch.where(good, ratio, self.scale)
        return rows[..., -1:], squares[..., -1:]

    def times(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """S and KY times rows N×k×D: N×history×k each, in double. MKL takes up to ten times as long where the pairs stand first."""
        moved, changed = ((rows @ pairs.mT).double().mT for pairs in (self.moved, self.changed))
        return moved, changed

    def inverse_times(self, filtered: Tensor, along: Tensor, bent: Tensor) -> Tensor:
        """H·g: γKg + S·a + γKY·b, with a = R⁻ᵀ((D + γYᵀKY)R⁻¹Sᵀg − γYᵀKg), b = −R⁻¹Sᵀg, R the upper triangle of SᵀY by age."""
        chosen = self.chosen
        across, within = (table[:, chosen][:, :, chosen] for table in (self.across, self.within))
        diagonal = across.diagonal(dim1=1, dim2=2)
        upper = across.triu() + torch.diag_embed((diagonal == 0).double())
        along, bent, scale = along[:, chosen], bent[:, chosen], self.scale.unsqueeze(2)
        solved = torch.linalg.solve_triangular(upper, along, upper=True)
        middle = diagonal.unsqueeze(2) * solved + scale * (within @ solved) - scale * bent
        first = torch.linalg.solve_triangular(upper.mT, middle, upper=False)
        weights = torch.zeros(2, len(filtered), self.history, 1, dtype=torch.float64, device=filtered.device)
        weights[0, :, chosen], weights[1, :, chosen] = first, -scale * solved
        parts = [(pairs.mT @ weight.to(filtered))[..., 0] for pairs, weight in zip((self.moved, self.changed), weights, strict=True)]
        return self.scale.to(filtered) * filtered + parts[0] + parts[1]


def resized(pairs: Tensor, before: torch.Size, shape: torch.Size) -> Tensor:
    """Vectors N×history×D of pictures N×C×h×w, for pictures N×C×H×W."""
    pictures = pairs.view(-1, *before[1:])
    return F.interpolate(pictures, size=shape[2:], mode="bicubic", align_corners=False).view(*pairs.shape[:2], -1)
