"""Feature inversion: which images look the same to a layer?

Mahendran & Vedaldi 2015; Dosovitskiy & Brox 2016.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.generators.architectures.decoder import load_generator, map_generator_layers
from sightline.images.color import apply_channel_matrix
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot, draw_line_plots
from sightline.images.plotting.figures import FigureData, LineChart, PictureRows
from sightline.images.plotting.maps import arrange_with_titles
from sightline.images.transforms import crop_center, resize_image
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.optim.ascent import maximize_objective
from sightline.optim.lbfgs import LBFGS
from sightline.optim.multiscale import make_lowpass_preconditioner
from sightline.optim.objectives.objective import Objective, bounded, tv
from sightline.optim.optimizers import Adam, BaseOptimizer, OptimizerFactory
from sightline.optim.parameterizations.fourier import (
    FourierSpectrum,
    Parameterization,
    Pixels,
    make_channel_matrix,
)
from sightline.optim.parameterizations.gray import GrayImage, make_gray_picture
from sightline.optim.score_gradient import require_feature_gradient, run_layers
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, MultiRunCallback, Step
from sightline.registry.result import Result

# What of a layer's features N×… of images is compared.
FeatureView = Callable[[str, Tensor, Tensor], Tensor]

InversionKind = Literal["lbfgs", "pixels", "fourier", "learned"]

# Root mean square of a pixel's distance to gray in photographs, of 255, measured on Imagenette's
# training images.
NATURAL_PIXEL_RMS = 72.0

# Weights of total variation for the first, middle and last third of the layers: by Mahendran &
# Vedaldi 2015, table 2, and for L-BFGS, found by trying on VGG-16. Theirs leave little contrast.
TV_WEIGHTS = (1.0, 10.0, 100.0)
LBFGS_TV_WEIGHTS = (0.1, 0.3, 1.0)

# Theirs of the sixth power that keeps pixels near gray. Their pixels are free; those of other kinds
# can't leave [0, 1], and the power would turn black and white into gray.
BOUND_WEIGHT = 8e-10

# Their learning rates, relative to the first, and the share of the steps of each (100, 200, 100).
LEARNING_RATE_STAGES = ((1.0, 0.25), (0.1, 0.5), (0.01, 0.25))

DEFAULT_LEARNING_RATES = {"lbfgs": 1.0, "pixels": 0.004, "fourier": 0.05, "learned": 0.004}

# L-BFGS steps further along coarse changes, in proportion to 1/frequency^falloff, and starts from
# gray with noise of this deviation; both in units of [0, 1], as is its longest step (root mean
# square). Found by trying on VGG-16.
LBFGS_FALLOFF = 1.4
LBFGS_START_NOISE = 0.01
LBFGS_MAX_STEP = 0.1

INVERSION_TILE_SIDE = 160  # pixels

# Layers whose output says nothing that the layer before does not say.
PASS_THROUGH_KINDS = ("Dropout", "Identity", "Flatten")


@register_method(
    chapter="generative",
    title="Inversion of features",
    question="How much of the image does each layer still know?",
    reading="Each image was made to look to one layer as the photograph does. What differs from "
    "the photograph is what this layer has discarded: first hardly anything, then exact colours "
    "and positions, at last all but what kind of things are there.",
    caution="Where the features leave the image open, the smoothness prior fills it in: blurred or "
    "mottled areas show that prior, not the network's memory. A learned inversion fills them with "
    "what its training photographs had there.",
    tour_runs=({"k": 4, "steps": 30},),
    quick_parameters={"k": 4, "steps": 16},
)
def inversion(
    model: Model,
    image: Tensor,
    *,
    layer: str | tuple[str, ...] = "depth",
    k: Annotated[int, ValueRange(1, 1000)] = 6,
    kind: InversionKind = "lbfgs",
    patch: Annotated[int | None, ValueRange(1, 1000)] = None,
    steps: Annotated[int, ValueRange(1, 100_000)] = 400,
    lr: Annotated[float | None, ValueRange(0, 100)] = None,
    smooth: Annotated[float | None, ValueRange(0, 1_000_000)] = None,
    limit: Annotated[float | None, ValueRange(0, 1)] = None,
    store: str | Path | None = None,
    id: Annotated[int, ValueRange(0, 10**12)] = 0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Makes images whose features at one layer or several are those of the given image.

    Minimizes ‖Φ(x) − Φ₀‖²/‖Φ₀‖² with total variation (Mahendran & Vedaldi 2015). For a network
    that sees luminance all images are gray. `values["image"]` is (layers·N)×C×H×W, layer by layer;
    "error" (that ratio for the finished images), "psnr" in decibels and "ssim" are layers×N;
    "scores", (layers·steps)×N, are what was increased: −ratio − penalties.

    Args:
        layer: A layer, a list of them, or "depth" for several from the first to the last.
        k: For "depth": how many layers; 1000 for all.
        kind: "lbfgs" optimizes pixels by L-BFGS, coarse waves and the brightness first; "pixels"
            by the paper's descent and constants; "fourier" optimizes a spectrum; "learned" asks the
            generator of the embedded network: one forward pass.
        patch: Compares only that many rows and columns of neurons in the middle of the layer.
        steps: How many steps for each layer.
        lr: Learning rate: of "lbfgs" (1), of gradient descent for "pixels" (0.004, dropping to a
            tenth twice), Adam's for "fourier" (0.05).
        smooth: Weight of the total variation; by default 0.1, 0.3 or 1 for the first, middle or
            last third of the layers, as in the paper 1, 10 or 100 for the kinds but "lbfgs".
        limit: Weight of the sixth power of the pixels' distance to gray, in gray levels; by default
            8e-10 for "pixels", as in the paper, and 0 for the others, since it turns black and
            white into gray.
        store: A scan whose vector is inverted instead of the image's features; the image then only
            gives the size and is shown for comparison.
        id: Which image of the store.
    """
    image = image.to(model.device)
    if model.is_gray:
        image = make_gray_picture(image).contiguous()
    target_features: Mapping[str, Tensor]
    if store is not None:
        if kind == "learned" or patch is not None:
            raise SightlineError(
                "a store keeps means over positions; leave out patch, "
                "and choose kind lbfgs, pixels or fourier"
            )
        target_features = load_stored_vectors(model, layer, store, id)
        layers = list(target_features)
        view_features: FeatureView = partial(average_over_positions, model)
    else:
        layers = choose_inversion_layers(model, layer, k, kind)
        view_features = partial(crop_middle_positions, model, patch=patch)
        with torch.no_grad():
            target_features = run_layers(model, image, layers)
        # A layer such as T×N×C has no features of its own for each image.
        layers = [name for name in layers if len(target_features[name]) == len(image)]
        if not layers:
            raise SightlineError(
                f"layer {layer} of {model.name} does not have the images as its first axis, so "
                "that it can't be inverted; choose another layer"
            )

    run = InversionRun(
        model=model,
        image=image,
        layers=layers,
        kind=kind,
        view_features=view_features,
        steps=steps,
        lr=DEFAULT_LEARNING_RATES[kind] if lr is None else lr,
        seed=seed,
        callback=callback,
    )
    height, width = image.shape[-2:]
    inverted: list[Tensor] = []
    errors: list[Tensor] = []
    for index, name in enumerate(layers):
        if kind == "learned":
            picture = run.invert_by_generator(name, target_features[name])
        else:
            picture = run.invert_by_ascent(index, target_features[name], smooth, limit)
        errors.append(run.measure_feature_error(name, picture, target_features[name]))
        inverted.append(resize_image(picture.cpu(), height, width))
        if run.stopped:
            break
    return build_inversion_result(run, inverted, torch.stack(errors))


def choose_inversion_layers(
    model: Model, layer: str | tuple[str, ...], layer_count: int, kind: str
) -> list[str]:
    """The names of the layers to invert, evenly spaced through the network for "depth".

    Raises SightlineError for an empty list.
    """
    if layer != "depth":
        return resolve_layer_list(model, layer)
    if kind == "learned":
        return list(map_generator_layers(model))
    names = [
        name
        for name, layer_info in model.layers.items()
        if not layer_info.kind.startswith(PASS_THROUGH_KINDS)
    ]
    names = drop_blind_layers(model, names)
    count = min(layer_count, len(names))
    indices = torch.linspace(0, len(names) - 1, count).round().long().tolist()
    return [names[index] for index in indices]


@torch.no_grad()
def drop_blind_layers(model: Model, layers: list[str]) -> list[str]:
    """The layers whose features of noise are not those of gray; all where there are none.

    Those of a pair network that only see its other image tell nothing of this one, nor do those
    that make a table of positions.
    """
    gray = model.blank()
    noise = torch.rand(gray.shape, generator=torch.Generator().manual_seed(0), dtype=gray.dtype)
    gray_features = run_layers(model, gray, layers)
    noise_features = run_layers(model, noise.to(gray), layers)
    seeing = [name for name in layers if not gray_features[name].equal(noise_features[name])]
    return seeing or layers


def resolve_layer_list(model: Model, layer: str | tuple[str, ...]) -> list[str]:
    """The full names of one layer or several, none of them twice."""
    names = [layer] if isinstance(layer, str) else layer
    if not names:
        raise SightlineError("layer is an empty list; give one layer or more")
    return list(dict.fromkeys(model.layer(name) for name in names))


def load_stored_vectors(
    model: Model, layer: str | tuple[str, ...], store: str | Path, image_id: int
) -> dict[str, Tensor]:
    """The vectors 1×C that a scan keeps of an image, by layer: of one layer, or for "depth" of all.

    Raises SightlineError for a scan of another network, and for an image that it does not have.
    """
    scan = Scan.open(store)
    scan.require(model)
    names = scan.vector_layers if layer == "depth" else resolve_layer_list(model, layer)
    if not 0 <= image_id < scan.images:
        raise make_out_of_range_error("id", image_id, 0, scan.images - 1)
    vectors: dict[str, Tensor] = {}
    for name in names:
        vectors[name] = scan.vectors(name)[image_id : image_id + 1].to(model.device)
    return vectors


# ── the inversions ──


@dataclass
class InversionRun:
    """The inversion of one layer after the other for images N×C×H×W."""

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
        bound_weight: float | None,
    ) -> Tensor:
        """Images N×C×H×W whose features at a layer approach the target, step by step.

        Raises SightlineError for a layer that is cut off from differentiation.
        """
        channels, height, width = self.image.shape[1:]
        layer = self.layers[layer_index]
        # The squared norm of a natural image, in gray levels: the unit of the published weights.
        natural_norm = channels * height * width * NATURAL_PIXEL_RMS**2
        if tv_weight is None:
            tv_weight = choose_tv_weight(self.model, layer, self.kind)
        if bound_weight is None:
            bound_weight = BOUND_WEIGHT if self.kind == "pixels" else 0.0
        tv_penalty = tv_weight / 2 * 255**2 * height * width * tv(2.0)
        bound_penalty = bound_weight / 2 * 255**6 * channels * height * width * bounded()
        resemblance = make_resemblance_objective(layer, target_features, self.view_features)
        objective = natural_norm * resemblance - (tv_penalty + bound_penalty)
        # The published learning rates are for this sum, L-BFGS expects numbers near one.
        score_unit = natural_norm
        if self.kind == "lbfgs":
            objective = objective * (1 / natural_norm)
            score_unit = 1.0

        multi_run = MultiRunCallback(self.callback, layer_index, len(self.layers))

        def call_with_relative_scores(step: Step) -> bool:
            return multi_run(replace(step, scores=step.scores / score_unit))

        parameterization, make_optimizer = self.make_start()
        require_feature_gradient(self.model, [layer], parameterization()[:1])
        inverted, scores = maximize_objective(
            self.model,
            objective,
            parameterization,
            make_optimizer,
            self.steps,
            callback=call_with_relative_scores if self.callback else None,
        )
        self.stopped = multi_run.stopped
        self.scores.append(scores.cpu() / score_unit)
        return inverted.clamp(0, 1)

    def make_start(self) -> tuple[Parameterization, OptimizerFactory]:
        """What is optimized, and by what."""
        is_gray = self.model.is_gray
        levels: Parameterization
        make_optimizer: OptimizerFactory
        if self.kind == "fourier":
            count, channels, height, width = self.image.shape
            levels = FourierSpectrum(
                count,
                height,
                width,
                seed=self.seed,
                channels=1 if is_gray else channels,
                device=self.model.device,
            )
            make_optimizer = partial(Adam, lr=self.lr)
        elif self.kind == "lbfgs":
            start = make_neutral_start(self.image[:, :1] if is_gray else self.image, self.seed)
            levels = Pixels(start)
            make_optimizer = partial(
                LBFGS,
                lr=self.lr,
                preconditioner=make_inversion_preconditioner(start),
                max_rms_step=LBFGS_MAX_STEP,
            )
        else:
            levels = GrayLevelPixels(self.image[:, :1] if is_gray else self.image, self.seed)
            make_optimizer = partial(StagedDescent, lr=self.lr, steps=self.steps)
        return GrayImage(levels) if is_gray else levels, make_optimizer

    @torch.no_grad()
    def invert_by_generator(self, layer: str, target_features: Tensor) -> Tensor:
        """The generator's images, of its own size."""
        return load_generator(self.model, layer)(target_features)

    @torch.no_grad()
    def measure_feature_error(self, layer: str, picture: Tensor, target_features: Tensor) -> Tensor:
        """The relative error of the finished images' features, N."""
        feature = run_layers(self.model, picture, [layer])[layer]
        viewed = self.view_features(layer, feature, picture)
        viewed_target = self.view_features(layer, target_features, self.image)
        return compute_relative_error(viewed, viewed_target).cpu()


def make_neutral_start(like: Tensor, seed: int) -> Tensor:
    """Gray with a little noise, the same for every image: N×C×H×W in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(like.shape[1:], generator=generator, dtype=torch.float32)
    return (0.5 + LBFGS_START_NOISE * noise).expand(like.shape).to(like.device).contiguous()


def make_inversion_preconditioner(image: Tensor) -> Callable[[Tensor], Tensor]:
    """The covariance of photographs, about: coarse waves and the brightness vary most.

    A step in proportion to it finds large areas and their colours as early as details. With plain
    gradients the mean colours come last.
    """
    filter_waves = make_lowpass_preconditioner(image, LBFGS_FALLOFF)
    color_matrix = make_channel_matrix(image.shape[1]).to(image.device)
    covariance = color_matrix @ color_matrix.T
    covariance = covariance / covariance.diagonal().mean()

    def precondition(gradient: Tensor) -> Tensor:
        return apply_channel_matrix(filter_waves(gradient), covariance)

    return precondition


class GrayLevelPixels:
    """Pixels in gray levels around the middle, 255·(image − ½), as the published constants are.

    They are kept in the range of an image, [−127.5, 127.5].
    """

    def __init__(self, like: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(like.shape[1:], generator=generator, dtype=torch.float32)
        levels = (
            (noise * NATURAL_PIXEL_RMS)
            .expand(len(like), -1, -1, -1)
            .to(like.device)
            .clamp(-127.5, 127.5)
        )
        self.levels = levels.requires_grad_()
        self.parameters = [self.levels]

    def __call__(self) -> Tensor:
        return self.levels / 255 + 0.5

    @torch.no_grad()
    def project_(self) -> None:
        """Keeps the image one that can be saved; the published norm only discourages others."""
        self.levels.clamp_(-127.5, 127.5)


class StagedDescent(BaseOptimizer):
    """Gradient descent with momentum 0.9 whose learning rate drops in stages.

    The momentum starts anew at each stage (invert_nn.m).
    """

    def __init__(self, parameters: list[Tensor], lr: float, steps: int) -> None:
        super().__init__(parameters)
        self.lr = lr
        self.steps_done = 0
        self.momentum: dict[int, Tensor] = {}
        self.rate_drops: dict[int, float] = {}
        share_done = LEARNING_RATE_STAGES[0][1]
        for factor, share in LEARNING_RATE_STAGES[1:]:
            self.rate_drops[round(steps * share_done)] = lr * factor
            share_done += share

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        if self.steps_done in self.rate_drops:
            self.lr = self.rate_drops[self.steps_done]
            self.momentum = {}
        super().step()
        self.steps_done += 1

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that index, in place."""
        previous = self.momentum.get(index)
        if previous is None:
            self.momentum[index] = gradient.clone()
        else:
            self.momentum[index] = previous.mul_(0.9).add_(gradient)
        parameter.add_(self.momentum[index], alpha=-self.lr)


# ── the objective ──


def make_resemblance_objective(
    layer: str, target_features: Tensor, view_features: FeatureView
) -> Objective:
    """−‖Φ(x) − Φ₀‖² / ‖Φ₀‖² for each image, of what `view_features` takes of both."""

    def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        viewed = view_features(layer, features[layer], image)
        viewed_target = view_features(layer, target_features, image)
        return -compute_relative_error(viewed, viewed_target)

    return Objective(f"resemblance({layer!r})", (layer,), lambda _: score)


def compute_relative_error(features: Tensor, target_features: Tensor) -> Tensor:
    """‖features − target‖² / ‖target‖², N."""
    squared_error = (features - target_features).flatten(1).square().sum(1)
    target_norm = target_features.flatten(1).square().sum(1)
    return squared_error / target_norm.clamp_min(1e-12)


def crop_middle_positions(
    model: Model, layer: str, features: Tensor, image: Tensor, *, patch: int | None
) -> Tensor:
    """The features at the `patch`×`patch` positions in the middle; all of them without a patch."""
    if patch is None:
        return features
    maps = reshape_to_unit_grid(features, image, model, layer)
    height, width = maps.shape[2:]
    return crop_center(maps, min(patch, height), min(patch, width))


def average_over_positions(model: Model, layer: str, features: Tensor, image: Tensor) -> Tensor:
    """The mean over positions, N×C, which a scan keeps of an image; a vector stays as it is."""
    return reshape_to_unit_grid(features, image, model, layer).mean((2, 3))


def choose_tv_weight(model: Model, layer: str, kind: InversionKind) -> float:
    """The weight of total variation for a layer, by its depth in the network."""
    names = list(model.layers)
    name = layer.removesuffix(":in")
    depth = names.index(name) if name in names else len(names) - 1
    weights = LBFGS_TV_WEIGHTS if kind == "lbfgs" else TV_WEIGHTS
    return weights[3 * depth // len(names)]


# ── the result ──


def build_inversion_result(run: InversionRun, inverted: list[Tensor], errors: Tensor) -> Result:
    """The images in a row by depth, the curves of what is lost, and the numbers."""
    layers = run.layers[: len(inverted)]
    image = run.image.cpu()
    psnr_rows: list[Tensor] = []
    ssim_rows: list[Tensor] = []
    for picture in inverted:
        psnr, ssim = compute_psnr_and_ssim(picture, image)
        psnr_rows.append(psnr)
        ssim_rows.append(ssim)
    psnr = torch.stack(psnr_rows)
    ssim = torch.stack(ssim_rows)

    values: dict[str, Any] = {
        "image": torch.cat(inverted),
        "error": errors,
        "psnr": psnr,
        "ssim": ssim,
        "layers": layers,
    }
    if run.scores:
        values["scores"] = torch.cat(run.scores)

    numbers = [
        f"{errors[index, 0]:.3f}, {psnr[index, 0]:.1f} dB, {ssim[index, 0]:.2f}"
        for index in range(len(layers))
    ]
    descriptions = [f"{layer}: {text}" for layer, text in zip(layers, numbers, strict=True)]
    pictures_of_layers = [run.model.to_picture(picture) for picture in (image, *inverted)]
    titles = ["photograph", *layers]
    pictures = {"inversion": arrange_with_titles(titles, pictures_of_layers)}
    figures: dict[str, FigureData] = {
        "inversion": make_inversion_rows(layers, pictures_of_layers, numbers)
    }
    captions = {
        "inversion": f"From {run.kind}. Relative error of the features, then PSNR and SSIM against "
        f"the photograph: {'; '.join(descriptions)}."
    }
    if len(inverted) > 1:
        plot = make_depth_plot(errors[:, 0], ssim[:, 0])
        pictures["depth"] = draw_line_plots([plot])
        figures["depth"] = LineChart([plot])
        captions["depth"] = (
            "The same numbers by depth, of the first image. A low SSIM says that the layer has "
            "discarded the image, a high feature error that there were too few steps."
        )
    return Result(pictures, values, captions, figures=figures)


def make_inversion_rows(
    layers: Sequence[str], pictures: Sequence[Tensor], numbers: Sequence[str]
) -> PictureRows:
    """The first photograph, and what each layer keeps of it with its numbers."""
    first_pictures = [picture[:1] for picture in pictures]
    captions = [f"{layer}\n{text}" for layer, text in zip(layers, numbers, strict=True)]
    row = FigureRow("", first_pictures, ["the photograph", *captions], lead_count=1)
    return PictureRows([row], INVERSION_TILE_SIDE)


def make_depth_plot(errors: Tensor, ssim: Tensor) -> LinePlot:
    """The feature error and the SSIM of each layer as two curves."""
    depth = list(range(1, len(errors) + 1))
    curves = {
        "feature error": (depth, errors.clamp(0, 1).tolist()),
        "SSIM": (depth, ssim.tolist()),
    }
    return LinePlot("What is lost with depth", "layer, from the first to the last", curves)


def compute_psnr_and_ssim(picture: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM (Wang 2004) of each image against its photograph, N and N."""
    from skimage.metrics import structural_similarity

    squared_error = (picture - image).square().flatten(1).mean(1)
    psnr = -10 * squared_error.clamp_min(1e-12).log10()
    # The window is odd and fits into the image.
    window = min(7, min(image.shape[-2:]) // 2 * 2 - 1)
    similarities = [
        structural_similarity(inverted, original, channel_axis=0, data_range=1, win_size=window)
        for inverted, original in zip(picture.numpy(), image.numpy(), strict=True)
    ]
    return psnr, torch.tensor(similarities, dtype=torch.float32)
