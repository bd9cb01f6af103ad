"""Feature inversion: which images look the same to a layer? (Mahendran & Vedaldi 2015; Dosovitskiy & Brox 2016)"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.generators.architectures.decoder import load_generator, map_generator_layers
from sightline.images.io import crop_center, resize_image
from sightline.images.plotting.maps import LinePlot, arrange_with_titles, draw_line_plots
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.optim.ascent import maximize_objective
from sightline.optim.objectives.objective import Objective, bounded, tv
from sightline.optim.optimizers import Adam, BaseOptimizer
from sightline.optim.parameterizations.fourier import FourierSpectrum, Parameterization
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, MultiRunCallback, Step
from sightline.registry.result import Result

FeatureView = Callable[[Tensor, Tensor], Tensor]  # what of the features of an image is compared

# Root mean square of a pixel's distance to gray in photographs, of 255 (measured on Imagenette's training images).
NATURAL_PIXEL_RMS = 72.0

TV_WEIGHTS = (
    1.0,
    10.0,
    100.0,
)  # the weight of total variation for the first, middle and last third of the layers (their table 2)

LEARNING_RATE_STAGES = (
    (1.0, 0.25),
    (0.1, 0.5),
    (0.01, 0.25),
)  # their learning rates for 100, 200 and 100 steps

InversionKind = Literal["pixels", "fourier", "learned"]

PASS_THROUGH_KINDS = ("Dropout", "Identity", "Flatten")  # these say what the layer before them says


def choose_inversion_layers(model: Model, layer: str, layer_count: int, kind: str) -> list[str]:
    """The layers to invert, by their own names."""
    if layer != "depth":
        return [model.layer(layer)]
    if kind == "learned":
        return list(map_generator_layers(model))
    names = [
        name
        for name, found in model.layers.items()
        if not found.kind.startswith(PASS_THROUGH_KINDS)
    ]
    places = torch.linspace(0, len(names) - 1, min(layer_count, len(names))).round().long().tolist()
    return [names[place] for place in places]


def load_stored_vectors(
    model: Model, layer: str, store: str | Path, image_id: int
) -> dict[str, Tensor]:
    """The vectors that a scan by this very network kept of an image, 1×C by layer, for one layer or for all that it kept."""
    scan = Scan.open(store)
    scan.require(model)
    names = list(scan.facts["vectors"]) if layer == "depth" else [model.layer(layer)]
    if not 0 <= image_id < scan.images:
        raise make_out_of_range_error("id", image_id, 0, scan.images - 1)
    return {name: scan.vectors(name)[image_id : image_id + 1].to(model.device) for name in names}


# ── the inversions ──


@dataclass
class InversionRun:
    """One layer after the other of an image N×3×H×W."""

    model: Model
    image: Tensor
    layers: list[str]
    kind: InversionKind
    view_features: FeatureView
    steps: int
    lr: float
    seed: int
    callback: Callback | None
    scores: list[Tensor] = field(default_factory=list[Tensor])
    stopped: bool = False

    def invert_by_ascent(
        self,
        layer_index: int,
        target_features: Tensor,
        tv_weight: float | None,
        bound_weight: float,
    ) -> Tensor:
        """The picture whose features at the layer of this number are the wanted ones, found step by step: N×3×H×W."""
        layer, (height, width) = self.layers[layer_index], self.image.shape[-2:]
        power = (
            3 * height * width * NATURAL_PIXEL_RMS**2
        )  # the squared norm of a natural image, in gray levels
        even = choose_tv_weight(self.model, layer) if tv_weight is None else tv_weight
        penalty = (
            even / 2 * 255**2 * height * width * tv(2.0)
            + bound_weight / 2 * 255**6 * 3 * height * width * bounded()
        )
        aim = (
            power * make_resemblance_objective(layer, target_features, self.view_features) - penalty
        )
        if self.kind == "fourier":
            start: Parameterization = FourierSpectrum(
                len(self.image), height, width, seed=self.seed, device=self.model.device
            )
            optimizer = partial(Adam, lr=self.lr)
        else:
            start, optimizer = (
                GrayLevelPixels(self.image.to(self.model.device), self.seed),
                partial(StagedDescent, lr=self.lr, steps=self.steps),
            )

        watch = MultiRunCallback(self.callback, layer_index, len(self.layers))

        def watched(step: Step) -> bool:
            return watch(replace(step, scores=step.scores / power))

        made, scores = maximize_objective(
            self.model,
            aim,
            start,
            optimizer,
            self.steps,
            callback=watched if self.callback else None,
        )
        self.stopped = watch.stopped
        self.scores.append(scores.cpu() / power)
        return made.clamp(0, 1)

    @torch.no_grad()
    def invert_by_generator(self, layer: str, target_features: Tensor) -> Tensor:
        """The generator's picture, of its own size."""
        return load_generator(self.model, layer)(target_features)

    @torch.no_grad()
    def measure_feature_error(self, layer: str, picture: Tensor, target_features: Tensor) -> Tensor:
        """The relative error of the finished picture's features, N."""
        found = self.model.run(picture, [layer])[layer]
        return compute_relative_error(
            self.view_features(found, picture), self.view_features(target_features, self.image)
        ).cpu()


def compute_psnr_and_ssim(picture: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM (Wang 2004) of each picture beside its photograph, N and N."""
    from skimage.metrics import structural_similarity

    square = (picture - image).square().flatten(1).mean(1)
    pairs = zip(picture.numpy(), image.numpy(), strict=True)
    window = min(7, min(image.shape[-2:]) // 2 * 2 - 1)
    alike = [
        structural_similarity(one, other, channel_axis=0, data_range=1, win_size=window)
        for one, other in pairs
    ]
    return -10 * square.clamp_min(1e-12).log10(), torch.tensor(alike, dtype=torch.float32)


@register_method(
    chapter="generative",
    title="Inversion of features",
    question="How much of the image does each layer still know?",
    reading="Each picture was made to look to one layer as the photograph does. What differs from the photograph is what this layer has "
    "forgotten: first hardly anything, then exact colours and places, at last all but what kind of things are there.",
    caution="Where the features leave the picture open, the smoothness that was asked for fills it in: blurred or mottled places show that "
    "choice, not the network's memory. A learned inversion fills them with what its training photographs had there.",
    tour_runs=({"k": 5, "kind": "fourier", "steps": 60},),
    quick_parameters={"k": 4, "kind": "fourier", "steps": 20},
)
def inversion(
    model: Model,
    image: Tensor,
    *,
    layer: str = "depth",
    k: Annotated[int, ValueRange(1, 1000)] = 6,
    kind: InversionKind = "pixels",
    patch: Annotated[int | None, ValueRange(1, 1000)] = None,
    steps: Annotated[int, ValueRange(1, 100_000)] = 400,
    lr: Annotated[float | None, ValueRange(0, 100)] = None,
    smooth: Annotated[float | None, ValueRange(0, 1_000_000)] = None,
    limit: Annotated[float, ValueRange(0, 1)] = 8e-10,
    store: str | Path | None = None,
    id: Annotated[int, ValueRange(0, 10**12)] = 0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Makes images whose features at a layer are those of the given one, for one layer or for several through the network's depth.

    Minimizes ‖Φ(x) − Φ₀‖²/‖Φ₀‖² with total variation and a norm that bounds the pixels, by the constants of Mahendran &
    Vedaldi (2015). `values["image"]` is (layers·N)×3×H×W, layer by layer; "error" (that ratio for the finished pictures),
    "psnr" in decibels and "ssim" are layers×N; "scores", (layers·steps)×N, are what was increased: −ratio − penalties.

    Args:
        layer: A layer, or "depth" for several from the first to the last.
        k: For "depth": how many layers; 1000 for all.
        kind: "pixels" moves pixels as the paper does, "fourier" a spectrum, "learned" asks the embedded network's generator: one forward pass.
        patch: Compares only that many rows and columns of neurons in the middle of the layer.
        steps: How many steps for each layer.
        lr: Learning rate: of gradient descent for "pixels" (0.004, dropping to a tenth twice), Adam's for "fourier" (0.05).
        smooth: Weight of the total variation; by default 1, 10 or 100 for the first, middle or last third of the layers.
        limit: Weight of the sixth power of the pixels' distance to gray, in gray levels.
        store: A scan whose vector is inverted instead of the image's features; the image then only gives the size and stands beside.
        id: Which image of the store.
    """
    if store is not None:
        if kind == "learned" or patch is not None:
            raise SightlineError(
                "a store keeps means over positions; leave out patch, and choose kind pixels or fourier"
            )
        wanted = load_stored_vectors(model, layer, store, id)
        names, look = list(wanted), average_over_positions
    else:
        names, look = (
            choose_inversion_layers(model, layer, k, kind),
            partial(crop_middle_positions, patch=patch),
        )
        with torch.no_grad():
            wanted = model.run(image, names)
    rate = (0.05 if kind == "fourier" else 0.004) if lr is None else lr
    work = InversionRun(model, image, names, kind, look, steps, rate, seed, callback)
    made, errors = list[Tensor](), list[Tensor]()
    for number, name in enumerate(names):
        features = wanted[name]
        picture = (
            work.invert_by_generator(name, features)
            if kind == "learned"
            else work.invert_by_ascent(number, features, smooth, limit)
        )
        errors.append(work.measure_feature_error(name, picture, features))
        made.append(resize_image(picture.cpu(), *image.shape[-2:]))
        if work.stopped:
            break
    return build_inversion_result(work, made, torch.stack(errors))


def build_inversion_result(run: InversionRun, pictures: list[Tensor], errors: Tensor) -> Result:
    """The row of pictures by depth, the curves beside it, and the numbers."""
    names, image = run.layers[: len(pictures)], run.image.cpu()
    psnr, ssim = (
        torch.stack(part)
        for part in zip(
            *(compute_psnr_and_ssim(picture, image) for picture in pictures), strict=True
        )
    )
    values: dict[str, Any] = {
        "image": torch.cat(pictures),
        "error": errors,
        "psnr": psnr,
        "ssim": ssim,
        "layers": names,
    }
    if run.scores:
        values["scores"] = torch.cat(run.scores)
    told = "; ".join(
        f"{n}: {e:.3f}, {p:.1f} dB, {s:.2f}"
        for n, e, p, s in zip(names, errors[:, 0], psnr[:, 0], ssim[:, 0], strict=True)
    )
    panels = {"inversion": arrange_with_titles(["photograph", *names], [image, *pictures])}
    captions = {
        "inversion": f"From {run.kind}. Relative error of the features, PSNR and SSIM beside the photograph: {told}."
    }
    if len(pictures) > 1:
        depth = list(range(1, len(pictures) + 1))
        curves = {
            "feature error": (depth, errors[:, 0].clamp(0, 1).tolist()),
            "SSIM": (depth, ssim[:, 0].tolist()),
        }
        panels["depth"] = draw_line_plots(
            [LinePlot("What is lost with depth", "layer, from the first to the last", curves)]
        )
        captions["depth"] = (
            "The same numbers by depth, of the first image: a low SSIM tells of a picture forgotten, a high feature error of too few steps."
        )
    return Result(panels, values, captions)


class GrayLevelPixels:
    """Pixels in gray levels around the middle, 255·(image − ½), as the published constants count them; kept in [0, 1] as an image."""

    def __init__(self, like: Tensor, seed: int) -> None:
        start = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(
            len(like), -1, -1, -1
        )
        self.levels = (
            (start * NATURAL_PIXEL_RMS).to(like.device).clamp(-127.5, 127.5).requires_grad_()
        )
        self.parameters = [self.levels]

    def __call__(self) -> Tensor:
        return self.levels / 255 + 0.5

    @torch.no_grad()
    def project_(self) -> None:
        """A picture must be one that can be saved; the published norm only discourages what can't."""
        self.levels.clamp_(-127.5, 127.5)


class StagedDescent(BaseOptimizer):
    """Gradient descent with momentum 0.9 whose learning rate drops in stages; the momentum starts anew at each (invert_nn.m)."""

    def __init__(self, parameters: list[Tensor], lr: float, steps: int) -> None:
        super().__init__(parameters)
        ends = [
            round(steps * sum(share for _, share in LEARNING_RATE_STAGES[:stage]))
            for stage in range(1, len(LEARNING_RATE_STAGES))
        ]
        self.rate_drops = {
            end: lr * factor
            for end, (factor, _) in zip(ends, LEARNING_RATE_STAGES[1:], strict=True)
        }
        self.lr, self.steps_done, self.momentum = lr, 0, dict[int, Tensor]()

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        if self.steps_done in self.rate_drops:
            self.lr, self.momentum = self.rate_drops[self.steps_done], {}
        super().step()
        self.steps_done += 1

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        before = self.momentum.get(index)
        self.momentum[index] = (
            gradient.clone() if before is None else before.mul_(0.9).add_(gradient)
        )
        parameter.add_(self.momentum[index], alpha=-self.lr)


# ── what is asked of the picture ──


def make_resemblance_objective(
    layer: str, target_features: Tensor, view_features: FeatureView
) -> Objective:
    """−‖Φ(x) − Φ₀‖² / ‖Φ₀‖² for each image, of what `look` takes of both."""

    def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return -compute_relative_error(
            view_features(features[layer], image), view_features(target_features, image)
        )

    return Objective(f"resemblance({layer!r})", (layer,), lambda _: score)


def compute_relative_error(features: Tensor, target_features: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖², per image."""
    return (features - target_features).flatten(1).square().sum(1) / target_features.flatten(
        1
    ).square().sum(1).clamp_min(1e-12)


def crop_middle_positions(features: Tensor, image: Tensor, patch: int | None) -> Tensor:
    """The features at the `patch`×`patch` positions in the middle."""
    if patch is None:
        return features
    maps = reshape_to_unit_grid(features, image)
    return crop_center(maps, *(min(patch, side) for side in maps.shape[2:]))


def average_over_positions(features: Tensor, image: Tensor) -> Tensor:
    """The mean over positions, N×C: what a scan keeps of an image. A vector is its own."""
    return reshape_to_unit_grid(features, image).mean((2, 3))


def choose_tv_weight(model: Model, layer: str) -> float:
    """The published weight of total variation for a layer, by its place in the network."""
    names = list(model.layers)
    place = (
        names.index(layer.removesuffix(":in"))
        if layer.removesuffix(":in") in names
        else len(names) - 1
    )
    return TV_WEIGHTS[3 * place // len(names)]
