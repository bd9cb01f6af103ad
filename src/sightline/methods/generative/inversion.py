"""Feature inversion: which images look the same to a layer? (Mahendran & Vedaldi 2015; Dosovitskiy & Brox 2016)"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...ascend import Callback, MultiRunCallback, Step, maximize_objective
from ...catalog import register_method
from ...errors import SightlineError, make_out_of_range_error
from ...knobs import ValueRange
from ...model import Model
from ...networks.decoder import load_generator, map_generator_layers
from ...objective import bounded, tv
from ...optimizers import Adam
from ...parameterize import FourierSpectrum, Parameterization
from ...result import Result
from ...scans.store import Scan
from .resemblance import (
    NATURAL_PIXEL_RMS,
    FeatureView,
    GrayLevelPixels,
    StagedDescent,
    average_over_positions,
    choose_tv_weight,
    compute_relative_error,
    crop_middle_positions,
    make_resemblance_objective,
)

InversionKind = Literal["pixels", "fourier", "learned"]

PASS_THROUGH_KINDS = ("Dropout", "Identity", "Flatten")  # these say what the layer before them says


def choose_inversion_layers(model: Model, layer: str, layer_count: int, kind: str) -> list[str]:
    """The layers to invert, by their own names."""
    if layer != "depth":
        return [model.layer(layer)]
    if kind == "learned":
        return list(map_generator_layers(model))
    names = [name for name, found in model.layers.items() if not found.kind.startswith(PASS_THROUGH_KINDS)]
    places = torch.linspace(0, len(names) - 1, min(layer_count, len(names))).round().long().tolist()
    return [names[place] for place in places]


def load_stored_vectors(model: Model, layer: str, store: str | Path, image_id: int) -> dict[str, Tensor]:
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

    def invert_by_ascent(self, layer_index: int, target_features: Tensor, tv_weight: float | None, bound_weight: float) -> Tensor:
        """The picture whose features at the layer of this number are the wanted ones, found step by step: N×3×H×W."""
        layer, (height, width) = self.layers[layer_index], self.image.shape[-2:]
        power = 3 * height * width * NATURAL_PIXEL_RMS**2  # the squared norm of a natural image, in gray levels
        even = choose_tv_weight(self.model, layer) if tv_weight is None else tv_weight
        penalty = even / 2 * 255**2 * height * width * tv(2.0) + bound_weight / 2 * 255**6 * 3 * height * width * bounded()
        aim = power * make_resemblance_objective(layer, target_features, self.view_features) - penalty
        if self.kind == "fourier":
            start: Parameterization = FourierSpectrum(len(self.image), height, width, seed=self.seed, device=self.model.device)
            optimizer = partial(Adam, lr=self.lr)
        else:
            start, optimizer = (
                GrayLevelPixels(self.image.to(self.model.device), self.seed),
                partial(StagedDescent, lr=self.lr, steps=self.steps),
            )

        watch = MultiRunCallback(self.callback, layer_index, len(self.layers))

        def watched(step: Step) -> bool:
            return watch(replace(step, scores=step.scores / power))

        made, scores = maximize_objective(self.model, aim, start, optimizer, self.steps, callback=watched if self.callback else None)
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
        return compute_relative_error(self.view_features(found, picture), self.view_features(target_features, self.image)).cpu()


def compute_psnr_and_ssim(picture: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM (Wang 2004) of each picture beside its photograph, N and N."""
    from skimage.metrics import structural_similarity

    square = (picture - image).square().flatten(1).mean(1)
    pairs = zip(picture.numpy(), image.numpy(), strict=True)
    window = min(7, min(image.shape[-2:]) // 2 * 2 - 1)
    alike = [structural_similarity(one, other, channel_axis=0, data_range=1, win_size=window) for one, other in pairs]
    return -10 * square.clamp_min(1e-12).log10(), torch.tensor(alike, dtype=torch.float32)


@register_method(
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
            raise SightlineError("a store keeps means over positions; leave out patch, and choose kind pixels or fourier")
        wanted = load_stored_vectors(model, layer, store, id)
        names, look = list(wanted), average_over_positions
    else:
        names, look = choose_inversion_layers(model, layer, k, kind), partial(crop_middle_positions, patch=patch)
        with torch.no_grad():
            wanted = model.run(image, names)
    rate = (0.05 if kind == "fourier" else 0.004) if lr is None else lr
    work = InversionRun(model, image, names, kind, look, steps, rate, seed, callback)
    made, errors = list[Tensor](), list[Tensor]()
    for number, name in enumerate(names):
        features = wanted[name]
        picture = work.invert_by_generator(name, features) if kind == "learned" else work.invert_by_ascent(number, features, smooth, limit)
        errors.append(work.measure_feature_error(name, picture, features))
        made.append(images.resize_image(picture.cpu(), *image.shape[-2:]))
        if work.stopped:
            break
    return build_inversion_result(work, made, torch.stack(errors))


def build_inversion_result(run: InversionRun, pictures: list[Tensor], errors: Tensor) -> Result:
    """The row of pictures by depth, the curves beside it, and the numbers."""
    names, image = run.layers[: len(pictures)], run.image.cpu()
    psnr, ssim = (torch.stack(part) for part in zip(*(compute_psnr_and_ssim(picture, image) for picture in pictures), strict=True))
    values: dict[str, Any] = {"image": torch.cat(pictures), "error": errors, "psnr": psnr, "ssim": ssim, "layers": names}
    if run.scores:
        values["scores"] = torch.cat(run.scores)
    told = "; ".join(f"{n}: {e:.3f}, {p:.1f} dB, {s:.2f}" for n, e, p, s in zip(names, errors[:, 0], psnr[:, 0], ssim[:, 0], strict=True))
    panels = {"inversion": render.arrange_with_titles(["photograph", *names], [image, *pictures])}
    captions = {"inversion": f"From {run.kind}. Relative error of the features, PSNR and SSIM beside the photograph: {told}."}
    if len(pictures) > 1:
        depth = list(range(1, len(pictures) + 1))
        curves = {"feature error": (depth, errors[:, 0].clamp(0, 1).tolist()), "SSIM": (depth, ssim[:, 0].tolist())}
        panels["depth"] = render.draw_line_plots([render.LinePlot("What is lost with depth", "layer, from the first to the last", curves)])
        captions["depth"] = (
            "The same numbers by depth, of the first image: a low SSIM tells of a picture forgotten, a high feature error of too few steps."
        )
    return Result(panels, values, captions)
