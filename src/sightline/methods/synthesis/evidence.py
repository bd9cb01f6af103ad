"""What speaks for a synthesized picture: how it compares with photographs, and whether the network holds on to it."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io import resize_short_side, sample, samples
from sightline.images.transforms import make_random_affine
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.models.zoo.load import load_other_network
from sightline.optim.ascent import score_images
from sightline.optim.objectives.objective import Objective, channel, logit

HELD_OUT_WARP_SEED, HELD_OUT_WARP_COUNT = (
    7_919,
    8,
)  # seed and number of the warps that no run has seen


@dataclass(frozen=True)
class SynthesisEvidence:
    """For each picture, N: its score as it is; the best of `count` photographs; the mean over held-out warps as a share of its own
    score; its unit's rank among the layer's units, each against its own spread over the photographs (1 is first; 0: no unit); the
    mean difference of its log spectrum from the photographs' (0 is natural; 1 a factor of e); with a judge, the place that it gives
    the class among all of its own (1 is first)."""

    score: Tensor
    natural: Tensor
    robust: Tensor
    rank: Tensor
    spectrum: Tensor
    unit_count: int
    photo_count: int
    transfer: Tensor | None = None
    judge: str = ""

    def describe_evidence(self) -> str:
        """The evidence in words: of one picture, or the middle of several."""
        several = "In the middle of the pictures, " if len(self.score) > 1 else ""
        best, score = float(self.natural.median()), float(self.score.median())
        against = f"{score / best:.1f} times the best" if best > 0 else f"the best has {best:.2f}"
        words = f"{several}the score is {score:.2f} ({against} of {self.photo_count} photographs)"
        words += f"; small warps that it has not seen leave {float(self.robust.median()):.0%} of it"
        if self.unit_count:
            words += f"; the unit is number {int(self.rank.median())} of {self.unit_count} on its own picture"
        if self.transfer is not None:
            words += f"; {self.judge}, which had no part in it, puts the class in place {int(self.transfer.median())}"
        return f"{words}. Its spectrum is off a photograph's by a factor of {float(self.spectrum.median().exp()):.1f}."


@dataclass(frozen=True)
class JudgeNetwork:
    """A second network, and its numbers of the classes that the pictures are made for."""

    model: Model
    classes: tuple[int, ...]

    @torch.no_grad()
    def add_class_rank(self, evidence: SynthesisEvidence, picture: Tensor) -> SynthesisEvidence:
        """The evidence with the judge's own: it sees the whole pictures, resized to its own size."""
        shown = resize_short_side(picture, self.model.size).to(self.model.device)
        logits = self.model.run(shown, ["logits"])["logits"].cpu()
        own = logits.gather(1, torch.tensor(self.classes).view(-1, 1))
        return replace(evidence, transfer=(logits > own).sum(1) + 1, judge=self.model.name)


def load_judge(
    model: Model, objective_units: tuple[str, tuple[int, ...]], judge_name: str | None
) -> JudgeNetwork | None:
    """The judge; raises SightlineError if the objective is about no class, or about one that the judge does not have."""
    if judge_name is None:
        return None
    if objective_units[0] != "logits" or not objective_units[1]:
        raise SightlineError(
            "a judge can only be asked about classes; leave out judge, or ask for logits"
        )
    second = load_other_network(judge_name, model.device)
    return JudgeNetwork(
        second, tuple(second.index(model.labels[unit]) for unit in objective_units[1])
    )


def load_sample_photos(model: Model, side: int) -> Tensor:
    """The sample photographs as the network sees them, M×3×side×side."""
    return torch.cat([model.fit(load_small_sample(name), side) for name in samples()])


@cache
def load_small_sample(name: str) -> Tensor:
    """A sample photograph with a short side of 256 pixels at most."""
    picture = sample(name)
    return resize_short_side(picture, min(256, *picture.shape[-2:]))


def gather_evidence(
    model: Model,
    objective: Objective,
    objective_units: tuple[str, tuple[int, ...]],
    picture: Tensor,
) -> SynthesisEvidence:
    """The evidence for pictures N×3×H×W, one for each unit of the objective."""
    shown, count = load_sample_photos(model, picture.shape[-1]), len(picture)
    score = score_images(model, objective, picture).cpu()
    natural = score_best_photos(model, objective, objective_units, shown, count)
    generator = torch.Generator().manual_seed(HELD_OUT_WARP_SEED)
    warp = make_random_affine(picture.shape[-1] / 16, 0.1, 5, generator, same_for_batch=True)
    warped = torch.stack(
        [score_images(model, objective, warp(picture)).cpu() for _ in range(HELD_OUT_WARP_COUNT)]
    ).mean(0)
    rank, total = rank_units_on_pictures(model, *objective_units, picture, shown)
    distance = (compute_ring_spectrum(picture) - compute_ring_spectrum(shown).mean(0)).abs().mean(1)
    return SynthesisEvidence(
        score, natural, warped / score.abs().clamp_min(1e-12), rank, distance, total, len(shown)
    )


def score_best_photos(
    model: Model,
    objective: Objective,
    objective_units: tuple[str, tuple[int, ...]],
    photos: Tensor,
    picture_count: int,
) -> Tensor:
    """The score of the best photograph for each picture, N."""
    if objective_units[1] and str(objective) in (
        str(channel(*objective_units)),
        str(logit(objective_units[1])),
    ):
        return compute_unit_means(model, objective_units[0], photos)[
            :, list(objective_units[1])
        ].amax(0)  # one pass for all units
    return torch.stack(
        [
            score_images(model, objective, one.expand(picture_count, -1, -1, -1)).cpu()
            for one in photos
        ]
    ).amax(0)


@torch.no_grad()
def compute_unit_means(model: Model, layer: str, image: Tensor) -> Tensor:
    """Mean over positions of every unit of a layer, N×units."""
    image = image.to(model.device)
    name = model.layer(layer)
    return reshape_to_unit_grid(model.run(image, [name])[name], image).flatten(2).mean(2).cpu()


def rank_units_on_pictures(
    model: Model, layer: str, units: tuple[int, ...], picture: Tensor, photos: Tensor
) -> tuple[Tensor, int]:
    """The rank of each unit on its own picture, and the number of units; (0, 0) without units."""
    if not units:
        return torch.zeros(len(picture), dtype=torch.long), 0
    usual = compute_unit_means(model, layer, photos)
    found = (compute_unit_means(model, layer, picture) - usual.mean(0)) / usual.std(0).clamp_min(
        1e-6 * float(usual.std()) + 1e-12
    )
    own = found.gather(1, torch.tensor(units).view(-1, 1).expand(len(picture), 1))
    return (found > own).sum(1) + 1, found.shape[1]


def compute_ring_spectrum(picture: Tensor, ring_count: int = 24) -> Tensor:
    """Mean log amplitude of N×3×H×W in rings of frequency from 2 waves per picture to half a wave per pixel, N×rings; 0 on average."""
    gray = picture.detach().cpu().mean(1)
    height, width = gray.shape[-2:]
    amplitude = torch.fft.rfft2(gray - gray.mean((1, 2), keepdim=True)).abs()
    radius = (
        torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()
    ).sqrt()
    edges = torch.logspace(
        torch.log10(torch.tensor(2 / width)).item(),
        torch.log10(torch.tensor(0.5)).item(),
        ring_count + 1,
    )
    inside = [(radius >= low) & (radius < high) for low, high in pairwise(edges.tolist())]
    curve = torch.stack(
        [(amplitude[:, ring].mean(1) + 1e-6).log() for ring in inside if ring.any()], 1
    )
    return curve - curve.mean(1, keepdim=True)
