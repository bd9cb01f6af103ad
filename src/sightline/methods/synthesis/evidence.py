"""Evidence for a synthesized image: how it compares with photographs, and how robust its score is.

A high score alone says little: noise can have one. So the image is compared with the sample
photographs, scored under small warps that the ascent has not seen, and shown to a second network.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io.pictures import sample, samples
from sightline.images.sample_names import DRAWN_SAMPLE
from sightline.images.transforms import make_random_affine, resize_short_side
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.network.preprocessing import fit_image
from sightline.models.zoo.load import load_other_network
from sightline.optim.ascent import score_images
from sightline.optim.objectives.objective import Objective, channel, logit
from sightline.optim.score_gradient import run_layers

# Warps of the robustness score. No ascent draws with this seed.
HELD_OUT_WARP_SEED = 7_919
HELD_OUT_WARP_COUNT = 8

MAX_PHOTO_SIDE = 256  # pixels, short side of the photographs compared with


@dataclass(frozen=True)
class SynthesisEvidence:
    """Evidence for N images.

    Attributes:
        score: the score of each image, N.
        natural: the score of the best of the photographs for the same objective, N. None, like
            rank and spectrum, where there are no photographs of the network's channels.
        robust: the mean score over held-out warps, as a share of the image's own score, N.
        rank: the rank of the unit among all units of its layer on its own image, N, each unit in
            units of its spread over the photographs. 1 is first, 0 means that there is no unit.
        spectrum: the mean difference of the log spectrum from the photographs', N: 0 is natural, 1
            is a factor of e.
        unit_count: units of the layer; 0 without units.
        photo_count: photographs compared with.
        transfer: the rank that the judge gives the class among its own, N; 1 is first.
        judge: name of the judge.
    """

    score: Tensor
    natural: Tensor | None
    robust: Tensor
    rank: Tensor | None
    spectrum: Tensor | None
    unit_count: int
    photo_count: int
    transfer: Tensor | None = None
    judge: str = ""

    def describe_evidence(self) -> str:
        """The evidence in words: of one image, or the median of several."""
        score = float(self.score.median())
        text = f"the score is {score:.2f}{self.compare_with_photographs(score)}"
        if len(self.score) > 1:
            text = f"Median over the images: {text}"

        robust = float(self.robust.median())
        clauses = [text, f"held-out small warps leave {robust:.0%} of it"]
        if self.unit_count and self.rank is not None:
            rank = int(self.rank.median())
            clauses.append(f"the unit ranks {rank} of {self.unit_count} on its own image")
        if self.transfer is not None:
            rank = int(self.transfer.median())
            clauses.append(f"{self.judge}, which had no part in it, ranks the class {rank}")
        sentences = "; ".join(clauses)
        if self.spectrum is None:
            return f"{sentences}."
        factor = float(self.spectrum.median().exp())
        return f"{sentences}. Its spectrum is off a photograph's by a factor of {factor:.1f}."

    def compare_with_photographs(self, score: float) -> str:
        """How a score compares with the best photograph's, in parentheses; empty without any."""
        if self.natural is None:
            return ""
        best_natural = float(self.natural.median())
        if best_natural > 0:
            comparison = f"{score / best_natural:.1f} times the best"
        else:
            comparison = f"the best has {best_natural:.2f}"
        return f" ({comparison} of {self.photo_count} photographs)"


@dataclass(frozen=True)
class JudgeNetwork:
    """A second network, and its indices of the classes that the images were made for."""

    model: Model
    classes: tuple[int, ...]

    @torch.no_grad()
    def add_class_rank(self, evidence: SynthesisEvidence, image: Tensor) -> SynthesisEvidence:
        """The evidence with the judge's ranks; it sees images N×3×H×W whole, at its own size."""
        resized = resize_short_side(image, self.model.size).to(self.model.device)
        logits = self.model.run(resized, ["logits"])["logits"].cpu()
        rank = rank_among_all(logits, torch.tensor(self.classes))
        return replace(evidence, transfer=rank, judge=self.model.name)


def load_judge(
    model: Model, objective_units: tuple[str, tuple[int, ...]], judge_name: str | None
) -> JudgeNetwork | None:
    """The judge network, None without a name.

    Raises SightlineError if the objective is about no class, or about one that the judge does not
    have.
    """
    if judge_name is None:
        return None
    layer, units = objective_units
    if layer != "logits" or not units:
        raise SightlineError(
            "a judge can only be asked about classes; leave out judge, or ask for logits"
        )
    judge = load_other_network(judge_name, model.device)
    classes = tuple(judge.index(model.labels[unit]) for unit in units)
    return JudgeNetwork(judge, classes)


def load_sample_photos(model: Model, size: tuple[int, int]) -> Tensor:
    """The sample photographs as the network sees them, M×3×H×W of that size."""
    resize_ratio = model.resize / model.size
    names = [name for name in samples() if name != DRAWN_SAMPLE]
    photos = [fit_image(load_small_sample(name), size, resize_ratio) for name in names]
    return torch.cat(photos)


@cache
def load_small_sample(name: str) -> Tensor:
    """A sample photograph, its short side at most `MAX_PHOTO_SIDE` pixels."""
    photo = sample(name)
    return resize_short_side(photo, min(MAX_PHOTO_SIDE, *photo.shape[-2:]))


def gather_evidence(
    model: Model,
    objective: Objective,
    objective_units: tuple[str, tuple[int, ...]],
    image: Tensor,
) -> SynthesisEvidence:
    """The evidence for images N×3×H×W, one for each unit of the objective."""
    score = score_images(model, objective, image).cpu()
    warped_score = score_warped_images(model, objective, image)
    robust = warped_score / score.abs().clamp_min(1e-12)
    if model.channels != 3:
        return SynthesisEvidence(
            score=score,
            natural=None,
            robust=robust,
            rank=None,
            spectrum=None,
            unit_count=0,
            photo_count=0,
        )

    height, width = image.shape[-2:]
    photos = load_sample_photos(model, (height, width))
    natural = score_best_photos(model, objective, objective_units, photos, len(image))
    rank, unit_count = rank_units_on_images(model, *objective_units, image, photos)
    photo_spectrum = compute_ring_spectrum(photos).mean(0)
    spectrum_difference = (compute_ring_spectrum(image) - photo_spectrum).abs().mean(1)
    return SynthesisEvidence(
        score=score,
        natural=natural,
        robust=robust,
        rank=rank,
        spectrum=spectrum_difference,
        unit_count=unit_count,
        photo_count=len(photos),
    )


def score_warped_images(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """Mean score of images N×3×H×W over the held-out warps, N."""
    generator = torch.Generator().manual_seed(HELD_OUT_WARP_SEED)
    warp = make_random_affine(min(image.shape[-2:]) / 16, 0.1, 5, generator, same_for_batch=True)
    scores = [score_images(model, objective, warp(image)).cpu() for _ in range(HELD_OUT_WARP_COUNT)]
    return torch.stack(scores).mean(0)


def score_best_photos(
    model: Model,
    objective: Objective,
    objective_units: tuple[str, tuple[int, ...]],
    photos: Tensor,
    image_count: int,
) -> Tensor:
    """The score of the best photograph for each image, N."""
    layer, units = objective_units
    if units and str(objective) in (str(channel(layer, units)), str(logit(units))):
        # The score is the units' mean alone, so one pass over the photographs serves all units.
        means = compute_unit_means(model, layer, photos)
        return means[:, list(units)].amax(0)
    scores: list[Tensor] = []
    for photo in photos:
        repeated = photo.expand(image_count, -1, -1, -1)
        scores.append(score_images(model, objective, repeated).cpu())
    return torch.stack(scores).amax(0)


@torch.no_grad()
def compute_unit_means(model: Model, layer: str, image: Tensor) -> Tensor:
    """Mean over positions of every unit of a layer, N×units."""
    image = image.to(model.device)
    name = model.layer(layer)
    feature = run_layers(model, image, [name])[name]
    return reshape_to_unit_grid(feature, image, model, name).flatten(2).mean(2).cpu()


def rank_units_on_images(
    model: Model, layer: str, units: tuple[int, ...], image: Tensor, photos: Tensor
) -> tuple[Tensor, int]:
    """The rank of each unit on its own image, N, and the number of units; zeros without units.

    Units respond on different scales. Each is measured from its mean over the photographs, in its
    standard deviations over them.
    """
    if not units:
        return torch.zeros(len(image), dtype=torch.long), 0
    on_photos = compute_unit_means(model, layer, photos)
    smallest_deviation = 1e-6 * float(on_photos.std()) + 1e-12
    deviation = on_photos.std(0).clamp_min(smallest_deviation)
    on_images = (compute_unit_means(model, layer, image) - on_photos.mean(0)) / deviation
    own_units = torch.tensor(units).expand(len(image))
    return rank_among_all(on_images, own_units), on_images.shape[1]


def rank_among_all(scores: Tensor, own: Tensor) -> Tensor:
    """The rank of entry `own[i]` in row i of scores N×units, N; 1 is first, ties share a rank."""
    own_scores = scores.gather(1, own.view(-1, 1))
    return (scores > own_scores).sum(1) + 1


def compute_ring_spectrum(image: Tensor, ring_count: int = 24) -> Tensor:
    """Mean log amplitude of images N×3×H×W in rings of frequency, N×rings, each row of mean 0.

    The rings lie from two waves per image width to half a wave per pixel, evenly on a log scale.
    """
    gray = image.detach().cpu().mean(1)
    height, width = gray.shape[-2:]
    centered = gray - gray.mean((1, 2), keepdim=True)
    amplitude = torch.fft.rfft2(centered).abs()
    row_frequency = torch.fft.fftfreq(height)[:, None]
    column_frequency = torch.fft.rfftfreq(width)
    radius = (row_frequency.square() + column_frequency.square()).sqrt()

    lowest = torch.log10(torch.tensor(2 / width)).item()
    highest = torch.log10(torch.tensor(0.5)).item()
    edges = torch.logspace(lowest, highest, ring_count + 1)
    ring_means: list[Tensor] = []
    for low, high in pairwise(edges.tolist()):
        ring = (radius >= low) & (radius < high)
        if ring.any():
            ring_means.append((amplitude[:, ring].mean(1) + 1e-6).log())
    curve = torch.stack(ring_means, 1)
    return curve - curve.mean(1, keepdim=True)
