"""DeepDream: what a layer already sees in an image, made stronger (Mordvintsev 2015)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io import crop_center, resize_image, resize_short_side, resolve_image
from sightline.images.plotting.maps import arrange_in_row
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.optim.ascent import score_images
from sightline.optim.objectives.objective import Objective, channel, energy
from sightline.optim.tiled import compute_tiled_gradient, compute_tiled_score
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

MIN_DREAM_SIDE = 32

DEFAULT_OCTAVES = 4

ZOOM_FACTOR = 1.05  # from frame to frame, as in the published script

# ── what is strengthened ──


def combine_objectives(objectives: list[Objective], model: Model, image: Tensor) -> Objective:
    """Several objectives, each in units of what it is on the image: none drowns the others."""
    scale = [score_images(model, aim, image).abs().clamp_min(1e-12) for aim in objectives]

    def build(model: Model) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        scores = [aim.bind(model) for aim in objectives]
        return lambda image, features: sum(
            (score(image, features) / unit for score, unit in zip(scores, scale, strict=True)),
            torch.zeros(()),
        )

    return Objective(
        " + ".join(map(str, objectives)),
        tuple(layer for aim in objectives for layer in aim.layers),
        build,
    )


def make_guide_objective(layer: str, guide: Tensor) -> Objective:
    """Mean over positions of the largest dot product with any position of the guide: its gradient at the layer is the best match."""

    def build(model: Model) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        name = model.layer(layer)
        with torch.no_grad():
            known = (
                reshape_to_unit_grid(model.run(guide, [name])[name], guide)
                .transpose(0, 1)
                .flatten(1)
            )  # C×positions of all guides

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            seen = reshape_to_unit_grid(features[name], image).flatten(2).transpose(1, 2)
            return (seen @ known).amax(2).mean(1) / len(known)

        return score

    return Objective(f"echo({layer!r})", (layer,), build)


def build_dream_objective(
    model: Model,
    image: Tensor,
    layers: list[str],
    unit: int | None,
    guide: Tensor | str | Path | None,
) -> Objective:
    """The objective that the knobs name."""
    if guide is not None and unit is not None:
        raise SightlineError(
            f"guide chooses among all units of a layer; leave out unit={unit} or the guide"
        )
    if guide is not None:
        other = resolve_image(guide)
        other = resize_short_side(other, min(model.size, *other.shape[-2:])).to(model.device)
        aims = [make_guide_objective(layer, other) for layer in layers]
    else:
        aims = (
            [energy(layer) for layer in layers]
            if unit is None
            else [channel(layer, unit) for layer in layers]
        )
    return aims[0] if len(aims) == 1 else combine_objectives(aims, model, image)


# ── the dream ──


@dataclass
class DreamRun:
    """What stays the same from size to size and from frame to frame."""

    model: Model
    objective: Objective
    octaves: int
    octave_scale: float
    steps: int
    step_size: float
    jitter: int
    tile_side: int
    generator: torch.Generator
    callback: Callback | None
    total_steps: int
    steps_before: int = 0  # steps that were done by another dreamer
    scores: list[Tensor] = field(default_factory=list[Tensor])
    stop_note: str = ""

    def dream_image(self, original: Tensor) -> Tensor:
        """The image with what the layer sees in it, N×3×H×W, grown from small to large, the detail carried upwards."""
        height, width = original.shape[-2:]
        picture = original.new_zeros(
            len(original), 3, 2, 2
        )  # between two sizes: only what the dream has added
        for octave in reversed(range(self.octaves)):
            size = (
                round(height / self.octave_scale**octave),
                round(width / self.octave_scale**octave),
            )
            base = resize_image(original, *size)
            # All in place: of a large image every copy counts.
            picture = resize_detail(picture, size).add_(base).clamp_(0, 1)
            self.run_octave(picture)
            picture.sub_(base)
            if self.stop_note:
                break
        return resize_detail(picture, (height, width)).add_(original).clamp_(0, 1)

    def run_octave(self, image: Tensor) -> None:
        """The steps of one size, in place."""
        reach = min(self.jitter, min(image.shape[-2:]) // 4)
        for _ in range(self.steps):
            down, right = torch.randint(-reach, reach + 1, (2,), generator=self.generator).tolist()
            if not self.take_step(image, (down, right)):
                break

    def take_step(self, image: Tensor, shift: tuple[int, int]) -> bool:
        """One step, in place, seen by the network after a shift; False when the run ends with it."""
        slope, scores = compute_tiled_gradient(
            self.model, self.objective, image, self.tile_side, shift
        )
        mean = torch.linalg.vector_norm(slope, 1, dim=(1, 2, 3), keepdim=True) / slope[0].numel()
        if not mean.isfinite().all():
            self.stop_note = f"The gradient was no number at step {self.steps_before + len(self.scores) + 1}; the picture is the one before. "
            return False
        self.scores.append(scores.cpu())
        before = image.clone() if self.callback else image
        image.add_(slope.mul_(self.step_size / mean.clamp_min(1e-20))).clamp_(0, 1)
        if self.callback and self.callback(
            Step(self.steps_before + len(self.scores), self.total_steps, scores, before)
        ):
            self.stop_note = "Stopped. "
        return not self.stop_note

    def render_zoom(self, image: Tensor, frames: int) -> Tensor:
        """A ride into the dream: each frame is the one before, enlarged and dreamed on. frames×3×H×W."""
        height, width = image.shape[-2:]
        film = [image.cpu()]
        while len(film) < frames and not self.stop_note:
            inner = crop_center(image, round(height / ZOOM_FACTOR), round(width / ZOOM_FACTOR))
            image = self.dream_image(resize_image(inner, height, width))
            film.append(image.cpu())
        return torch.cat(film)


def resize_detail(detail: Tensor, size: tuple[int, int]) -> Tensor:
    """What the dream added, at another size; it is signed, so it is not clamped. Without a copy if it has that size."""
    if detail.shape[-2:] == size:
        return detail
    return torch.nn.functional.interpolate(detail, size=size, mode="bilinear", align_corners=False)


def choose_octave_count(
    model: Model, objective: Objective, image: Tensor, octaves: int | None, scale: float
) -> int:
    """How many sizes: the given number if the image allows it, else up to 4; one for a network of a fixed size."""
    height, width = image.shape[-2:]
    most = sum(
        min(round(height / scale**smaller), round(width / scale**smaller)) >= MIN_DREAM_SIDE
        for smaller in range(12)
    )
    if octaves is not None:
        if octaves > most:
            raise SightlineError(
                f"octaves is {octaves}; an image of {height}×{width} pixels allows {most} at scale {scale} (the smallest needs {MIN_DREAM_SIDE} pixels)"
            )
        return octaves
    if most == 0:
        raise SightlineError(
            f"an image of {height}×{width} pixels is too small to dream on; the shorter side needs {MIN_DREAM_SIDE}"
        )
    try:
        score_images(
            model,
            objective,
            resize_image(image[:1], round(height / scale), round(width / scale)).detach(),
        )
    except SightlineError:
        return 1
    return min(DEFAULT_OCTAVES, most)


@register_method(
    chapter="artistic",
    title="DeepDream",
    question="What does a layer already see in this image? Make more of it.",
    reading="Patterns that the layer answers to grow out of whatever resembles them: strokes and textures from early layers, parts of learned things from deeper ones.",
    caution="It exaggerates on purpose. The patterns tell about the training images, not about this photograph.",
    quick_parameters={"steps": 5},
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
    """Ascends the energy of layers (or one unit, or what they share with a guide) from the image, small sizes first.

    The gradient at the layer is the layer's own activation; at the image it is divided by its mean magnitude. The detail
    of each size is carried to the next. Works tile by tile: beyond the image and the result itself, memory is bounded by the
    tile; a callback takes one image more.
    `values["image"]` is N×3×H×W; "scores", steps×N, are means over tiles. The film is of the first image.

    Args:
        layers: Further layers to strengthen together with `layer`, each in units of what it sees in the image.
        unit: Channel to strengthen instead of the whole layer.
        guide: An image whose features at the layer are strengthened wherever something resembles them.
        octaves: How many image sizes, the last being the image's own; 4 by default, 1 for a network of a fixed size.
        scale: Factor between two sizes.
        steps: Steps at each size.
        step_size: Mean change of a pixel value per step, in units of [0, 1].
        jitter: Random shift before every step, in pixels at most; less at small sizes.
        tile: Largest side in pixels that the network sees at once; neighbouring tiles overlap by a fourth.
        frames: Frames of a film into the dream, each the one before enlarged by 1.05 and dreamed on; 0 for none.
    """
    original = image.to(model.device)
    names = [layer, *(name for name in layers if name != layer)]
    aim = build_dream_objective(model, original, names, unit, guide)
    sizes = choose_octave_count(model, aim, original, octaves, scale)
    total = sizes * steps * max(1, frames)
    dreamer = DreamRun(
        model, aim, sizes, scale, steps, step_size, jitter, tile, torch.Generator().manual_seed(seed), callback, total
    )  # fmt: skip
    dream = dreamer.dream_image(original)
    movies = dict[str, Tensor]()
    if frames:
        alone = build_dream_objective(model, original[:1], names, unit, guide)
        rider = replace(dreamer, objective=alone, steps_before=len(dreamer.scores), scores=[])
        movies["zoom"] = rider.render_zoom(dream[:1], frames)
        dreamer.stop_note = rider.stop_note
    dream, scores = (
        dream.cpu(),
        torch.stack(dreamer.scores) if dreamer.scores else torch.empty(0, len(image)),
    )
    first, last = (
        float(compute_tiled_score(model, aim, picture.to(model.device), tile)[0])
        for picture in (image[:1], dream[:1])
    )
    caption = f"{dreamer.stop_note}{aim}: {first:.3g} on the image, {last:.3g} on the dream, after {len(scores)} steps over {sizes} sizes."
    return Result(
        {"deepdream": arrange_in_row(image, dream)}, {"image": dream, "scores": scores}, {"deepdream": caption}, movies=movies
    )  # fmt: skip
