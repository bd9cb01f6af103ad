"""DeepDream: what a layer already sees in an image, made stronger (Mordvintsev 2015)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.io.pictures import read_file_or_sample
from sightline.images.plotting.figures import ImagePair
from sightline.images.plotting.maps import arrange_in_row
from sightline.images.transforms import (
    ImageSize,
    crop_center,
    resize_image,
    resize_short_side,
)
from sightline.images.validation import check_image
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.optim.ascent import score_images
from sightline.optim.objectives.objective import Objective, ScoreFunction, channel, energy
from sightline.optim.parameterizations.gray import make_gray_picture
from sightline.optim.score_gradient import require_image_gradient, run_layers
from sightline.optim.tiled import (
    TileSize,
    choose_tile_size,
    compute_tiled_gradient,
    compute_tiled_score,
    find_tile_sides,
    takes_image_size,
)
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

MIN_DREAM_SIDE = 32  # pixels, of the smallest size

# A tile of at least this share of a size's pixels takes its place.
MIN_WHOLE_SHARE = 0.7

DEFAULT_OCTAVES = 4
MAX_OCTAVES = 12

ZOOM_FACTOR = 1.05  # from frame to frame, as in the published script


@register_method(
    chapter="artistic",
    title="DeepDream",
    question="What does a layer already see in this image? Make more of it.",
    reading="Patterns that the layer responds to grow out of whatever resembles them: strokes and "
    "textures from early layers, parts of learned objects from deeper ones.",
    caution="It exaggerates on purpose. The patterns tell about the training images, not about "
    "this photograph.",
    quick_parameters={"steps": 5},
    repaints=True,
)
def deepdream(
    model: Model,
    image: Tensor,
    *,
    layer: str = "middle",
    layers: tuple[str, ...] = (),
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
    guide: Tensor | str | Path | None = None,
    octaves: Annotated[int | None, ValueRange(1, 12)] = None,
    scale: Annotated[float, ValueRange(1.01, 4)] = 1.4,
    steps: Annotated[int, ValueRange(1, 10_000)] = 10,
    step_size: Annotated[float, ValueRange(0, 1)] = 1.5 / 255,
    jitter: Annotated[int, ValueRange(0, 512)] = 32,
    tile: Annotated[int, ValueRange(64, 4096)] = 512,
    frames: Annotated[int, ValueRange(0, 10_000)] = 0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Ascends the energy of layers, of one unit, or what they share with a guide, from the image.

    It begins at small sizes. The gradient at the layer is the layer's own activation; at the image
    it is divided by its mean magnitude. The detail of each size is carried to the next. It works
    tile by tile: beyond the image and the result itself, memory is bounded by the tile; a callback
    takes one image more. For a network that sees luminance, image and dream are gray.

    `values["image"]` is N×C×H×W; "scores", steps×N, are means over tiles. The movie is of the first
    image.

    Args:
        layers: Further layers to strengthen together with `layer`, each relative to its energy on
            the image.
        unit: Channel to strengthen instead of the whole layer.
        guide: An image whose features at the layer are strengthened wherever something resembles
            them.
        octaves: How many image sizes, the last being the image's own; 4 by default, fewer where the
            network does not take smaller ones.
        scale: Factor between two sizes.
        steps: Steps at each size.
        step_size: Mean change of a pixel value per step, in units of [0, 1].
        jitter: Random shift before every step, in pixels at most; less at small sizes.
        tile: Largest side in pixels that the network sees at once; neighbouring tiles overlap by a
            fourth.
        frames: Frames of a movie into the dream, each the one before enlarged by 1.05 and dreamed
            on; 0 for none.
    """
    original = image.to(model.device)
    if model.is_gray:
        original = make_gray_picture(original).contiguous()
    layer_names = [layer, *(name for name in layers if name != layer)]
    objective = build_dream_objective(model, original, layer_names, unit, guide)
    dream_sizes = choose_dream_sizes(
        model, objective, original, octaves=octaves, scale=scale, tile_side=tile
    )
    octave_count = len(dream_sizes)
    run = DreamRun(
        model=model,
        objective=objective,
        sizes=dream_sizes,
        steps=steps,
        step_size=step_size,
        jitter=jitter,
        generator=torch.Generator().manual_seed(seed),
        callback=callback,
        total_steps=octave_count * steps * max(1, frames),
    )
    dream = run.dream_image(original)

    movies: dict[str, Tensor] = {}
    if frames:
        # The movie is of the first image alone, and so is its objective.
        first_objective = build_dream_objective(model, original[:1], layer_names, unit, guide)
        movie_run = replace(run, objective=first_objective, steps_before=len(run.scores), scores=[])
        movies["zoom"] = model.to_picture(movie_run.render_zoom(dream[:1], frames))
        run.stop_note = movie_run.stop_note

    dream = dream.cpu()
    scores = torch.stack(run.scores) if run.scores else torch.empty(0, len(image))
    final_tile = dream_sizes[-1].tile
    image_score = compute_tiled_score(model, objective, original[:1], final_tile)
    dream_score = compute_tiled_score(model, objective, dream[:1].to(model.device), final_tile)
    caption = (
        f"{run.stop_note}{objective}: {float(image_score[0]):.3g} on the image, "
        f"{float(dream_score[0]):.3g} on the dream, after {len(scores)} steps over "
        f"{octave_count} sizes.{run.describe_silence()}"
    )
    picture = model.to_picture(original).cpu()
    dream_picture = model.to_picture(dream)
    return Result(
        {"deepdream": arrange_in_row(picture, dream_picture)},
        {"image": dream, "scores": scores},
        {"deepdream": caption},
        movies=movies,
        figures={"deepdream": ImagePair(picture[:1], dream_picture[:1], "the image", "its dream")},
    )


# ── the objective ──


def build_dream_objective(
    model: Model,
    image: Tensor,
    layers: list[str],
    unit: int | None,
    guide: Tensor | str | Path | None,
) -> Objective:
    """The objective that layers, unit and guide ask for.

    Raises SightlineError for a unit together with a guide.
    """
    if guide is not None and unit is not None:
        raise SightlineError(
            f"guide chooses among all units of a layer; leave out unit={unit} or the guide"
        )
    if guide is not None:
        guide_image = read_guide(model, guide, layers)
        objectives = [make_guide_objective(layer, guide_image) for layer in layers]
    elif unit is not None:
        objectives = [channel(layer, unit) for layer in layers]
    else:
        objectives = [energy(layer) for layer in layers]
    if len(objectives) == 1:
        return objectives[0]
    return combine_objectives(objectives, model, image)


def read_guide(model: Model, guide: Tensor | str | Path, layers: list[str]) -> Tensor:
    """The guide's image at about the network's size, whole where the network takes it so.

    Raises SightlineError for a guide of other channels than the network takes.
    """
    if isinstance(guide, Tensor):
        image = check_image(guide, "guide", channels=model.channels)
    else:
        image = read_file_or_sample(guide)
        if image.shape[1] != model.channels:
            raise SightlineError(
                f"guide is a picture of {image.shape[1]} channels; {model.name} takes "
                f"{model.channels}: give a tensor"
            )
    resized = resize_short_side(image, min(model.size, *image.shape[-2:])).to(model.device)
    height, width = resized.shape[-2:]
    objective = energy(layers[0])
    if takes_image_size(model, objective, (height, width)):
        return resized
    return model.fit(image).to(model.device)


def combine_objectives(objectives: list[Objective], model: Model, image: Tensor) -> Objective:
    """The sum of objectives, each relative to its value on the image, so that all count alike."""
    image_scores: list[Tensor] = []
    for objective in objectives:
        score = score_images(model, objective, image)
        image_scores.append(score.abs().clamp_min(1e-12))

    def build(model: Model) -> ScoreFunction:
        score_functions = [objective.bind(model) for objective in objectives]

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            total = torch.zeros(())
            for score_function, image_score in zip(score_functions, image_scores, strict=True):
                total = total + score_function(image, features) / image_score
            return total

        return score

    text = " + ".join(map(str, objectives))
    layers = [layer for objective in objectives for layer in objective.layers]
    return Objective(text, tuple(layers), build)


def make_guide_objective(layer: str, guide: Tensor) -> Objective:
    """Mean over positions of the largest dot product with any position of the guide.

    Its gradient at the layer is the guide's best match for each position, as in the published
    script.
    """

    def build(model: Model) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        name = model.layer(layer)
        with torch.no_grad():
            features = run_layers(model, guide, [name])[name]
            guide_maps = reshape_to_unit_grid(features, guide, model, name)
        guide_features = guide_maps.transpose(0, 1).flatten(1)  # C×positions of all guides

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            maps = reshape_to_unit_grid(features[name], image, model, name)
            image_features = maps.flatten(2).transpose(1, 2)  # N×positions×C
            best_match = (image_features @ guide_features).amax(2)
            return best_match.mean(1) / len(guide_features)

        return score

    return Objective(f"echo({layer!r})", (layer,), build)


# ── the dream ──


@dataclass(frozen=True)
class DreamSize:
    """One size of a dream: height and width, and the tiles that the network is shown."""

    size: ImageSize
    tile: TileSize


@dataclass
class DreamRun:
    """A dream: its settings, which stay the same for all sizes and frames, and its progress."""

    model: Model
    objective: Objective
    sizes: list[DreamSize]
    steps: int
    step_size: float
    jitter: int
    generator: torch.Generator
    callback: Callback | None
    total_steps: int
    steps_before: int = 0  # steps of an earlier run that count as progress
    scores: list[Tensor] = field(default_factory=list[Tensor])
    stop_note: str = ""
    received_gradient: bool = False

    def dream_image(self, original: Tensor) -> Tensor:
        """The dream of an image N×C×H×W, grown from small to large, the detail carried upwards."""
        height, width = original.shape[-2:]
        # Between two sizes this is only the detail that the dream has added.
        image = original.new_zeros(*original.shape[:2], 2, 2)
        for octave in self.sizes:
            base = resize_image(original, *octave.size)
            # All in place: of a large image every copy counts.
            image = resize_detail(image, octave.size).add_(base).clamp_(0, 1)
            self.run_octave(image, octave.tile)
            image.sub_(base)
            if self.stop_note:
                break
        return resize_detail(image, (height, width)).add_(original).clamp_(0, 1)

    def run_octave(self, image: Tensor, tile: TileSize) -> None:
        """The steps of one size, in place."""
        reach = min(self.jitter, min(image.shape[-2:]) // 4)
        for _ in range(self.steps):
            shift = torch.randint(-reach, reach + 1, (2,), generator=self.generator)
            down, right = shift.tolist()
            if not self.take_step(image, tile, (down, right)):
                break

    def take_step(self, image: Tensor, tile: TileSize, shift: tuple[int, int]) -> bool:
        """One step in place, the image shifted for the network; returns whether to go on.

        Raises SightlineError for a network that is cut off from differentiation.
        """
        gradient, scores = compute_tiled_gradient(self.model, self.objective, image, tile, shift)
        if self.model.is_gray:
            gradient = gradient.mean(1, keepdim=True).repeat(1, 3, 1, 1)
        total_magnitude = torch.linalg.vector_norm(gradient, 1, dim=(1, 2, 3), keepdim=True)
        mean_magnitude = total_magnitude / gradient[0].numel()
        self.received_gradient |= bool((total_magnitude > 0).any())
        if not self.received_gradient and not self.scores:
            self.require_gradient(image, tile)
        if not mean_magnitude.isfinite().all():
            step = self.steps_before + len(self.scores) + 1
            self.stop_note = (
                f"The gradient was not finite at step {step}; the picture is the one before. "
            )
            return False
        self.scores.append(scores.cpu())
        previous = image.clone() if self.callback else image
        image.add_(gradient.mul_(self.step_size / mean_magnitude.clamp_min(1e-20))).clamp_(0, 1)
        if self.callback:
            steps_done = self.steps_before + len(self.scores)
            if self.callback(Step(steps_done, self.total_steps, scores, previous)):
                self.stop_note = "Stopped. "
        return not self.stop_note

    def require_gradient(self, image: Tensor, tile: TileSize) -> None:
        """Raises SightlineError if the network is cut off from differentiation."""
        score_function = self.objective.bind(self.model)
        layers = [self.model.layer(name) for name in self.objective.layers]
        height, width = image.shape[-2:]
        rows, columns = find_tile_sides(height, width, tile)

        def compute_scores(pixels: Tensor) -> Tensor:
            return score_function(pixels, run_layers(self.model, pixels, layers))

        require_image_gradient(self.model, compute_scores, crop_center(image, rows, columns))

    def describe_silence(self) -> str:
        """That no gradient reached the image, in a sentence; empty if one did."""
        if self.received_gradient or not self.scores:
            return ""
        return " No gradient reached the image: the unit does not respond to it."

    def render_zoom(self, image: Tensor, frames: int) -> Tensor:
        """A movie frames×3×H×W: each frame is the one before, enlarged and dreamed on."""
        height, width = image.shape[-2:]
        movie = [image.cpu()]
        while len(movie) < frames and not self.stop_note:
            center = crop_center(image, round(height / ZOOM_FACTOR), round(width / ZOOM_FACTOR))
            image = self.dream_image(resize_image(center, height, width))
            movie.append(image.cpu())
        return torch.cat(movie)


def resize_detail(detail: Tensor, size: tuple[int, int]) -> Tensor:
    """What the dream added, at another size; not a copy if it has that size already.

    It is signed, so unlike an image it is not clamped.
    """
    if detail.shape[-2:] == size:
        return detail
    return F.interpolate(detail, size=size, mode="bilinear", align_corners=False)


def choose_dream_sizes(
    model: Model,
    objective: Objective,
    image: Tensor,
    *,
    octaves: int | None,
    scale: float,
    tile_side: int,
) -> list[DreamSize]:
    """The sizes to dream at, the smallest first, the image's own last.

    As many as were asked for, else up to 4 as far as the network takes them. A smaller size is
    moved to one nearby that the network takes whole.

    Raises SightlineError for more than the image or the network allows, and for an image that is
    too small.
    """
    height, width = image.shape[-2:]
    allowed = count_large_sizes(height, width, scale)
    if allowed == 0:
        raise SightlineError(
            f"an image of {height}×{width} pixels is too small to dream on; "
            f"the shorter side needs {MIN_DREAM_SIDE}"
        )
    if octaves is not None and octaves > allowed:
        raise SightlineError(
            f"octaves is {octaves}; an image of {height}×{width} pixels allows {allowed} at "
            f"scale {scale} (the smallest needs {MIN_DREAM_SIDE} pixels)"
        )
    tile = choose_tile_size(model, objective, (height, width), tile_side)
    if tile is None:
        score_images(model, objective, image[:1])  # raises what the network says of this size
        raise SightlineError(f"{model.name} takes no tiles of {tile_side} pixels; enlarge tile")
    sizes = [DreamSize((height, width), tile)]
    for octave in range(1, octaves or min(DEFAULT_OCTAVES, allowed)):
        factor = scale**octave
        smaller = choose_smaller_size(
            model, objective, (round(height / factor), round(width / factor)), tile_side
        )
        if smaller is None:
            break
        sizes.append(smaller)
    if octaves is not None and octaves > len(sizes):
        raise SightlineError(
            f"octaves is {octaves}; {model.name} takes {len(sizes)} of these sizes at scale "
            f"{scale}: it was made for {model.image_size[0]}×{model.image_size[1]}"
        )
    return sizes[::-1]


def count_large_sizes(height: int, width: int, scale: float) -> int:
    """How many sizes of an image, each smaller by `scale`, are large enough to dream at."""
    count = 0
    for octave in range(MAX_OCTAVES):
        factor = scale**octave
        count += min(round(height / factor), round(width / factor)) >= MIN_DREAM_SIDE
    return count


def choose_smaller_size(
    model: Model, objective: Objective, size: ImageSize, tile_side: int
) -> DreamSize | None:
    """About this size, so that the network takes it; None where it takes nothing as small."""
    tile = choose_tile_size(model, objective, size, tile_side)
    if tile is None:
        return None
    is_whole = isinstance(tile, tuple) and math.prod(tile) >= MIN_WHOLE_SHARE * math.prod(size)
    if isinstance(tile, tuple) and is_whole:
        return DreamSize(tile, tile)
    return DreamSize(size, tile)
