"""Synthesis by gradient ascent on the image: which image would make the network respond so?

Simonyan 2013; Yosinski 2015; Olah 2017.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io.pictures import read_file_or_sample
from sightline.images.validation import check_image
from sightline.methods.synthesis.arguments import (
    choose_synthesis_preset,
    find_objective_units,
    override_preset_constants,
    resolve_subject,
)
from sightline.methods.synthesis.evidence import gather_evidence, load_judge
from sightline.methods.synthesis.facets import Facet, find_unit_facets
from sightline.methods.synthesis.figure import FinishedSynthesis, build_synthesis_result
from sightline.methods.synthesis.initialization import (
    MovieRecorder,
    PictureSpec,
    build_view_transforms,
    chain_view_transforms,
    make_synthesis_optimizer,
    make_synthesis_start,
)
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.methods.synthesis.presets import SynthesisPresetName
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.models.network.preprocessing import fit_image
from sightline.optim.ascent import AscentResult, maximize_objective
from sightline.optim.objectives.objective import Objective
from sightline.optim.parameterizations.transparency import TransparentImage
from sightline.optim.score_gradient import require_feature_gradient
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_MOVIE_FRAMES = 64


@register_method(
    chapter="generative",
    title="Synthesis by gradient ascent",
    question="Which image, made from nothing, would make the network respond most?",
    reading="The image shows the pattern that drives the unit or class hardest under the chosen "
    "regularizers: repeated parts, textures, sometimes whole objects.",
    caution="What makes it look natural is the regularizer, not the network: with strong ones the "
    "image shows the prior, with none noise. It is one image of many that work, and no evidence "
    "that the network needs these parts in photographs.",
    tour_runs=(
        {"start": "fourier", "movie": "webp"},
        {"start": "gray", "steps": 64},
        {"layer": "logits", "steps": 32, "size": 96},
        {"layer": "middle", "steps": 32, "size": 64},
    ),
    tour_titles=(
        "Synthesis from noise",
        "Synthesis from gray",
        "Images for classes",
        "Images for units in the middle",
    ),
    quick_parameters={"steps": 20},
)
def synthesis(
    model: Model,
    objective: Objective | TargetChoice = "",
    *,
    layer: str | None = None,
    units: str | None = None,
    preset: SynthesisPresetName = "auto",
    start: Literal["auto", "fourier", "gray", "zero", "facets", "generator"] = "auto",
    focus: Literal["auto", "whole", "center", "alpha"] = "auto",
    photo: Tensor | str | Path | None = None,
    size: Annotated[int | None, ValueRange(16, 4096)] = None,
    steps: Annotated[int | None, ValueRange(1, 100_000)] = None,
    lr: Annotated[float | None, ValueRange(0, 1000)] = None,
    decay: Annotated[float | None, ValueRange(0, 1)] = None,
    blur: Annotated[float | None, ValueRange(0, 50)] = None,
    clip: Annotated[float | None, ValueRange(0, 1)] = None,
    patience: Annotated[int, ValueRange(0, 100_000)] = 0,
    judge: str | None = None,
    store: str | Path | None = None,
    movie: Literal["none", "mp4", "gif", "webp"] = "none",
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Ascends an objective from a start that knows nothing, or units of a layer side by side.

    The objective is one of classes and features, such as `sl.logit("goose")`, or a target, such as
    `sl.pixel(10, 20, "cat")`, or the text of either, or a function of the network's output.

    A preset is a published recipe:

    - "lecture" optimizes pixels by normalized gradient steps with L2 decay, a Gaussian blur every 4
      steps, and clipping of small pixels and of pixels with small gradients;
    - "yosinski" and the others of that name are the four settings of Yosinski 2015;
    - "olah" optimizes a decorrelated spectrum (Olah 2017) under random shifts, scales and turns;
    - "smooth", the default, does so with more weight on low frequencies;
    - "maco" optimizes only phases, with the amplitudes of photographs (Fel 2023);
    - "accentuation" starts from a photograph (Hamblin 2024);
    - "facets" starts from the mean of each group of a unit's natural images (Nguyen 2016);
    - "generator" optimizes the code from which a small network, trained on the ten classes of the
      embedded one, paints the image (Nguyen 2016, DGN).

    The units of a layer are ascended in one batch, each as if it were alone. Of a unit given
    several times, as in "7,7,7", each image starts elsewhere, or shows another facet.

    Images for a network that sees luminance are gray.

    `values["image"]` is N×C×H×W, one for each unit, `values["scores"]` steps×N (steps for one
    image). N each: `values["natural"]` is the score of the best sample photograph, `["robust"]` the
    share of the score under held-out warps, `["rank"]` the unit's rank in its layer, `["spectrum"]`
    the distance of the log spectrum from photographs', `["transfer"]` the rank of the class in the
    judge's output. With a store, `["ratio"]` is the unit's strongest response as a multiple of that
    on the best image of the scan, and `["facet"]` whether an image's features are still nearest to
    its own group's. `["alpha"]` is the opacity, N×H×W.

    Args:
        layer: Layer whose units are shown, instead of an objective; "logits" for the classes.
        units: Which units of the layer: "7", "0-63", "3,5,8"; the first 16 by default.
        preset: The recipe; "auto" for smooth, for lecture with start gray or zero, for facets or
            generator with that start, for accentuation with a photo.
        start: "fourier" for a spectrum, "gray" or "zero" (black) for pixels, "facets" for means of
            natural images, "generator" for a code; the preset's own by default.
        focus: "center" lets the middle change first, "alpha" makes transparent what does little for
            the score (lucid); the preset's own by default.
        photo: Photograph to start from: a file, a sample's name or a tensor.
        size: Shorter side of the image in pixels; the network's own by default.
        steps: How many gradient steps; the preset's by default.
        lr: Step size instead of the preset's: Adam's for a spectrum, the mean change per pixel in
            units of [0, 1] for the lecture's.
        decay: L2 decay per step instead of the preset's, for pixels and codes.
        blur: Standard deviation in pixels of the blur every 4 steps instead of the preset's, for
            pixels.
        clip: Share of pixels set to gray per step for being small or contributing little instead of
            the preset's, for pixels.
        patience: An image whose score has not risen for so many steps is finished; 0 to make every
            step.
        judge: A second network that classifies the images made for classes, as the command line
            names it; NAME=FILE for its weights.
        store: A scan of natural images by the same network (`sightline scan`), whose strongest
            patches are shown beside each image.
        movie: Keeps a movie of the run, as a file of this kind.
    """
    model, objective = resolve_subject(model, objective, layer, units)
    settings = choose_synthesis_preset(preset, start, photo, store, focus)
    settings = override_preset_constants(settings, lr, decay, blur, clip)
    objective_units = find_objective_units(model, objective)
    step_count = steps or settings.steps
    picture_size = choose_picture_size(model, size)
    judge_network = load_judge(model, objective_units, judge)
    exemplars = None
    facets: list[Facet] = []
    if store is not None:
        exemplars = NaturalExemplars.from_store(model, store, objective, objective_units)
        if settings.start == "facets":
            facets = find_unit_facets(model, exemplars, picture_size, seed)

    unit_indices = objective_units[1]
    # Images of one unit start differently, those of several units alike.
    all_units_differ = len(set(unit_indices)) == len(unit_indices)
    spec = PictureSpec(
        picture_size,
        max(1, len(unit_indices)),
        seed,
        same_start=all_units_differ,
        channels=1 if model.is_gray else model.channels,
    )
    start_image = make_start_image(model, photo, facets, spec)
    generator = torch.Generator().manual_seed(seed)
    parameterization, regularize = make_synthesis_start(
        model, settings, spec, start_image, generator
    )
    layers = [model.layer(name) for name in objective.layers]
    require_feature_gradient(model, layers, parameterization()[:1])
    transforms = build_view_transforms(settings, min(picture_size), step_count, generator)
    if isinstance(parameterization, TransparentImage):
        transforms.insert(0, parameterization.replace_background)
    recorder = MovieRecorder(
        callback,
        frame_interval=choose_frame_interval(step_count),
        keep_frames=movie != "none",
        show_picture=model.to_picture,
    )

    ascent = maximize_objective(
        model,
        objective,
        parameterization,
        make_synthesis_optimizer(settings),
        step_count,
        transform=chain_view_transforms(transforms),
        regularize=regularize,
        callback=recorder if recorder.keep_frames or callback else None,
        patience=patience,
    )

    image = require_received_gradient(ascent, objective)
    evidence = gather_evidence(model, objective, objective_units, image)
    if judge_network is not None:
        evidence = judge_network.add_class_rank(evidence, image)
    opacity = None
    if isinstance(parameterization, TransparentImage):
        opacity = parameterization.opacity[:, 0].detach().cpu()
    finished = FinishedSynthesis(
        objective=objective,
        objective_units=objective_units,
        ascent=ascent,
        evidence=evidence,
        frames=recorder.frames,
        movie_format=movie,
        exemplars=exemplars,
        facets=facets,
        opacity=opacity,
    )
    return build_synthesis_result(model, finished)


def choose_frame_interval(step_count: int) -> int:
    """From how many steps one is in the movie, which also has the image at the end."""
    return max(1, math.ceil(step_count / (MAX_MOVIE_FRAMES - 1)))


def choose_picture_size(model: Model, side: int | None) -> tuple[int, int]:
    """Height and width of the images: the network's own, or with a short side of `side`."""
    height, width = model.image_size
    if side is None:
        return height, width
    return round(height * side / model.size), round(width * side / model.size)


def make_start_image(
    model: Model, photo: Tensor | str | Path | None, facets: list[Facet], spec: PictureSpec
) -> Tensor | None:
    """The image to start from, count×C×H×W: a facet's mean each, or the photograph.

    Raises SightlineError for a photograph of other channels than the network takes.
    """
    if facets:
        return torch.stack([facet.start_image for facet in facets])
    if photo is None:
        return None
    if isinstance(photo, Tensor):
        image = check_image(photo, "photo", channels=model.channels)
    else:
        image = read_file_or_sample(photo)
        if image.shape[1] != model.channels:
            raise SightlineError(
                f"photo is a picture of {image.shape[1]} channels; {model.name} takes "
                f"{model.channels}: give a tensor, or leave it out"
            )
    fitted = fit_image(image[:1], spec.size, model.resize / model.size)
    return fitted.expand(spec.count, -1, -1, -1)


def require_received_gradient(ascent: AscentResult, objective: Objective) -> Tensor:
    """The images in [0, 1]; raises SightlineError if no gradient reached any."""
    image, scores = ascent
    if not ascent.received_gradient.any():
        raise SightlineError(
            f"{objective}: no gradient reached the image in {len(scores)} steps; "
            "the unit does not respond to anything near this start (a dead unit?)"
        )
    return image.clamp(0, 1).cpu()
