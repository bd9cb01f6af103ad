"""Gradient ascent on the image: what would make the network respond so? (Simonyan 2013; Yosinski 2015; Olah 2017)"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io import resolve_image
from sightline.methods.synthesis.arguments import (
    choose_synthesis_preset,
    find_objective_units,
    override_preset_constants,
    resolve_objective,
)
from sightline.methods.synthesis.evidence import gather_evidence, load_judge
from sightline.methods.synthesis.facets import find_unit_facets
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
from sightline.models.model import Model
from sightline.optim.ascent import AscentResult, maximize_objective
from sightline.optim.objectives.objective import Objective
from sightline.optim.parameterizations.transparency import TransparentImage
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MAX_MOVIE_FRAMES = 64


@register_method(
    chapter="generative",
    title="Synthesis by gradient ascent",
    question="Which image, made from nothing, would make the network respond most?",
    reading="The picture shows the pattern that drives the unit or class hardest under the chosen regularizers: repeated parts, textures, sometimes whole objects.",
    caution="What makes it look natural is the regularizer, not the network: with strong ones the picture shows the prior, with none noise. It is one "
    "image of many that work, and no evidence that the network needs these parts in photographs.",
    tour_runs=(
        {"start": "fourier"},
        {"start": "gray", "steps": 128},
        {"layer": "logits", "steps": 48, "size": 96},
        {"layer": "middle", "steps": 32, "size": 64},
    ),
    quick_parameters={"steps": 32},
)
def synthesis(
    model: Model,
    objective: Objective | str = "",
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
    """Ascends the objective from a start that knows nothing, or units of a layer side by side.

    A preset is a published recipe. "lecture" moves pixels by normalized gradient steps with L2 decay, Gaussian blur every 4 steps,
    clipping of small pixels and of pixels with small gradients; "yosinski" and the others of that name are the four settings of Yosinski
    2015; "olah" moves a decorrelated spectrum (Olah 2017) under random shifts, scales and turns; "smooth", the default, does so with more
    weight on coarse waves; "maco" only phases, with the amplitudes of photographs (Fel 2023); "accentuation" starts from a photograph
    (Hamblin 2024); "facets" from the mean of each group of a unit's natural images (Nguyen 2016); "generator" moves the code from which a
    small network, trained on the ten classes of the embedded one, paints the picture (Nguyen 2016, DGN). The units of a layer are ascended
    in one batch, each as if it were alone; of a unit given several times, as in "7,7,7", each picture begins elsewhere, or shows another facet.

    `values["image"]` is N×3×H×W, one for each unit, `values["scores"]` steps×N (steps for one picture). `values["natural"]` is the score of
    the best sample photograph, `["robust"]` the share of the score under warps not seen before, `["rank"]` the unit's rank in
    its layer, `["spectrum"]` the distance of the log spectrum from photographs', `["transfer"]` the class's place in the judge's
    answer, N each; with a store `["ratio"]` is the unit's strongest answer as a multiple of that on the best image of the scan. `["facet"]`
    says whether a picture's features are still nearest to its own group's, N; `["alpha"]` is the opacity, N×H×W.

    Args:
        layer: Layer whose units are shown, instead of an objective; "logits" for the classes.
        units: Which units of the layer: "7", "0-63", "3,5,8"; the first 16 by default.
        preset: The recipe; "auto" for smooth, for lecture with start gray or zero, for facets or generator with that start, for accentuation with a photo.
        start: "fourier" for a spectrum, "gray" or "zero" (black) for pixels, "facets" for means of natural images, "generator" for a code;
            the preset's own by default.
        focus: "center" lets the middle move first, "alpha" makes clear what does little for the score (lucid); the preset's own by default.
        photo: Photograph to start from: a file, a sample's name or a tensor.
        size: Side of the picture in pixels; the network's own by default.
        steps: How many gradient steps; the preset's by default.
        lr: Step size instead of the preset's: Adam's for a spectrum, the mean change per pixel in units of [0, 1] for the lecture's.
        decay: L2 decay per step instead of the preset's, for pixels and codes.
        blur: Standard deviation in pixels of the blur every 4 steps instead of the preset's, for pixels.
        clip: Share of pixels set to gray per step for being small or contributing little instead of the preset's, for pixels.
        patience: A picture whose score has not risen for so many steps is finished; 0 to make every step.
        judge: A second network that says what it sees in pictures of classes, as the command line names it; NAME=FILE for its weights.
        store: A scan of natural images by the same network (`sightline scan`), whose strongest patches stand beside each picture.
        movie: Keeps a movie of the run, as a file of this kind.
    """
    aim, kept = (
        resolve_objective(model, objective, layer, units),
        override_preset_constants(
            choose_synthesis_preset(preset, start, photo, store, focus), lr, decay, blur, clip
        ),
    )
    named, total, side = find_objective_units(model, aim), steps or kept.steps, size or model.size
    second, nature = (
        load_judge(model, named, judge),
        None if store is None else NaturalExemplars.from_store(model, store, aim, named),
    )
    groups = (
        find_unit_facets(model, nature, side, seed) if nature and kept.start == "facets" else []
    )
    count, generator = max(1, len(named[1])), torch.Generator().manual_seed(seed)
    canvas = PictureSpec(
        side, count, seed, same_start=len(set(named[1])) == len(named[1])
    )  # of one unit, several pictures begin differently
    picture = (
        model.fit(resolve_image(photo)[:1], side).expand(count, -1, -1, -1)
        if photo is not None
        else None
    )
    picture = torch.stack([group.start_image for group in groups]) if groups else picture
    begin, regularize = make_synthesis_start(model, kept, canvas, picture, generator)
    watch, views = (
        MovieRecorder(
            callback, frame_interval=max(1, total // MAX_MOVIE_FRAMES), keep_frames=movie != "none"
        ),
        build_view_transforms(kept, side, total, generator),
    )
    if isinstance(begin, TransparentImage):
        views.insert(0, begin.replace_background)
    found = maximize_objective(
        model, aim, begin, make_synthesis_optimizer(kept), total, transform=chain_view_transforms(views), regularize=regularize,
        callback=watch if watch.keep_frames or callback else None, patience=patience,
    )  # fmt: skip
    evidence = gather_evidence(model, aim, named, require_moved_pictures(found, aim))
    evidence = (
        second.add_class_rank(evidence, require_moved_pictures(found, aim)) if second else evidence
    )
    opacity = begin.opacity[:, 0].detach().cpu() if isinstance(begin, TransparentImage) else None
    return build_synthesis_result(
        model,
        FinishedSynthesis(
            aim, named, found, evidence, watch.frames, movie, nature, groups, opacity
        ),
    )


def require_moved_pictures(ascent: AscentResult, objective: Objective) -> Tensor:
    """The pictures in [0, 1]; raises SightlineError if no gradient reached any."""
    if not ascent.received_gradient.any():
        raise SightlineError(
            f"{objective}: no gradient reached the picture in {len(ascent[1])} steps; the unit answers to nothing near this start (a dead unit?)"
        )
    return ascent[0].clamp(0, 1).cpu()
