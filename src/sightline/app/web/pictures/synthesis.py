"""The synthesis of every unit of a scan: what each would like to see, many units in one ascent.

Each picture is kept as soon as its batch is finished, so a run that was killed goes on where it
was. The recipe is the preset "smooth" of `sightline synthesis` at a small size, with longer steps;
most of them show the network only a random window of the picture, which costs a quarter. All units
of a batch start alike and see the same views, so a unit's picture does not depend on its batch.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sightline.app.web.pictures.cache import PictureCache, compute_key_digest
from sightline.app.web.pictures.weights_digest import WHOLE_NETWORK, compute_layer_digests
from sightline.errors import SightlineError
from sightline.images.transforms import Transform, make_random_affine
from sightline.methods.synthesis.initialization import (
    PictureSpec,
    make_synthesis_optimizer,
    make_synthesis_start,
)
from sightline.methods.synthesis.presets import SYNTHESIS_PRESETS, SynthesisPreset
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.optim.ascent import maximize_objective
from sightline.optim.objectives.features import diversity
from sightline.optim.objectives.objective import Objective, channel, logit

PRESET = "smooth"
# Twice the preset's: a window moves the picture less than the whole of it would.
LEARNING_RATE = 0.2

# Raised when the pictures of the same recipe look different.
SYNTHESIS_VERSION = 2

DEFAULT_STEPS = 128
DEFAULT_SIDE = 128  # pixels, at most; smaller for networks of smaller images
# Shorter side of the windows, for pictures at least twice as large, and the share of the steps that
# see one. They are not reduced views: whatever a unit looks for keeps its size in pixels.
WINDOW_SIDE = 64
WINDOW_SHARE = 13 / 16
# Units of one ascent, at most: what is made is kept after each.
MAX_BATCH_SIZE = 32

# Pictures of one unit that differ from each other, and what their difference counts beside the
# unit's response. A larger weight gives pictures that have little to do with the unit.
VARIANT_COUNT = 4
VARIANT_WEIGHT = 0.3

SYNTHESIS_QUALITY = 80  # of the WebP files; they are shown larger than patches

# Called with the units made so far, and all; returns whether to stop.
SynthesisProgress = Callable[[float, float], bool]


@dataclass(frozen=True)
class UnitSynthesis:
    """How the units of a network are synthesized, and where the pictures are kept.

    Attributes:
        model: The network.
        pictures: Where they are kept.
        steps: Steps of each ascent.
        side: Shorter side of the pictures in pixels, at most.
        batch_size: Units of one ascent; None for the number that a short timing finds fastest.
    """

    model: Model
    pictures: PictureCache
    steps: int = DEFAULT_STEPS
    side: int = DEFAULT_SIDE
    batch_size: int | None = None

    @cached_property
    def layer_digests(self) -> dict[str, str]:
        """The digest of what the features of each layer depend on."""
        return compute_layer_digests(self.model)

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures: the network's, scaled to the side if it takes that."""
        size = self.model.scale_size(min(self.side, self.model.size))
        return size if self.accepts_size(size) else self.model.image_size

    @cached_property
    def window_size(self) -> tuple[int, int] | None:
        """Height and width of the windows; None where every step sees the whole picture."""
        if min(self.picture_size) < 2 * WINDOW_SIDE:
            return None
        size = self.model.scale_size(WINDOW_SIDE)
        return size if self.accepts_size(size) else None

    def accepts_size(self, size: tuple[int, int]) -> bool:
        """Whether the network takes images of this height and width."""
        if size == self.model.image_size:
            return True
        image = torch.full((1, self.model.channels, *size), 0.5)
        try:
            with torch.no_grad(), self.model.lock:
                self.model.run_network(image)
        except SightlineError:
            return False
        return True

    def make_key(self, layer: str, unit: int, sign: int = 1) -> dict[str, Any]:
        """What a unit's picture depends on."""
        return {
            "picture": "synthesis",
            "version": SYNTHESIS_VERSION,
            "preset": PRESET,
            "learning rate": LEARNING_RATE,
            "steps": self.steps,
            "size": self.picture_size,
            "window": self.window_size,
            "window share": WINDOW_SHARE,
            "layer": layer,
            "unit": unit,
            "sign": sign,
            "depends on": self.find_layer_digest(layer),
        }

    def find_layer_digest(self, layer: str) -> str:
        """The digest of what the features of a layer depend on; of the classes, all weights."""
        digests = self.layer_digests
        return digests.get(self.model.layer(layer), digests[WHOLE_NETWORK])

    def name_picture(self, layer: str, unit: int, sign: int = 1) -> str:
        """The file name of a unit's picture, made when it is read."""

        def make_picture() -> Tensor:
            return self.ascend_units(layer, [unit], sign)

        key = self.make_key(layer, unit, sign)
        return self.pictures.add(key, make_picture, quality=SYNTHESIS_QUALITY)

    def name_variants(self, layer: str, unit: int) -> str:
        """The file name of four different pictures of a unit side by side, made when read."""

        def make_picture() -> Tensor:
            units = [unit] * VARIANT_COUNT
            return torch.cat(self.ascend_units(layer, units, is_diverse=True).split(1), 3)

        key = self.make_variants_key(layer, unit)
        return self.pictures.add(key, make_picture, quality=SYNTHESIS_QUALITY)

    def has_variants(self, layer: str, unit: int) -> bool:
        """Whether a unit's different pictures are kept."""
        return self.pictures.has(f"{compute_key_digest(self.make_variants_key(layer, unit))}.webp")

    def make_variants_key(self, layer: str, unit: int) -> dict[str, Any]:
        """What a unit's different pictures depend on."""
        variants = {"count": VARIANT_COUNT, "weight": VARIANT_WEIGHT}
        return {**self.make_key(layer, unit), "variants": variants}

    def has_picture(self, layer: str, unit: int, sign: int = 1) -> bool:
        """Whether a unit's picture is kept."""
        digest = compute_key_digest(self.make_key(layer, unit, sign))
        return self.pictures.has(f"{digest}.webp")

    def ascend_units(
        self, layer: str, units: Sequence[int], sign: int = 1, *, is_diverse: bool = False
    ) -> Tensor:
        """The images that drive units of a layer up (sign 1) or down (−1), N×3×H×W in [0, 1].

        Diverse ones start differently, and the likeness of their styles counts against them (Olah
        2017). Gray for a unit that no gradient reached: it does not respond to anything near the
        start.
        """
        objective = sign * make_units_objective(layer, units)
        if is_diverse:
            objective = objective - VARIANT_WEIGHT * diversity(layer)
        preset = replace(SYNTHESIS_PRESETS[PRESET], lr=LEARNING_RATE)
        spec = PictureSpec(
            self.picture_size,
            len(units),
            seed=0,
            same_start=not is_diverse,
            channels=1 if self.model.is_gray else self.model.channels,
        )
        generator = torch.Generator().manual_seed(0)
        parameterization, regularize = make_synthesis_start(
            self.model, preset, spec, None, generator
        )
        ascent = maximize_objective(
            self.model,
            objective,
            parameterization,
            make_synthesis_optimizer(preset),
            self.steps,
            transform=self.make_views(preset, generator),
            regularize=regularize,
        )
        images, _ = ascent
        pictures = self.model.to_picture(images.clamp(0, 1).cpu())
        is_reached = ascent.received_gradient.cpu().expand(len(units))
        return torch.where(is_reached.view(-1, 1, 1, 1), pictures, 0.5)

    def make_views(self, preset: SynthesisPreset, generator: torch.Generator) -> Transform:
        """What the network is shown of the pictures: first windows, in the last steps all."""
        window_steps = 0 if self.window_size is None else round(WINDOW_SHARE * self.steps)
        steps_done = itertools.count()
        show_window, show_whole = (
            make_random_affine(
                preset.warp_shift * min(self.picture_size),
                preset.warp_scale,
                preset.warp_angle,
                generator,
                same_for_batch=True,
                window=window,
            )
            for window in (self.window_size, None)
        )

        def show_view(image: Tensor) -> Tensor:
            show = show_window if next(steps_done) < window_steps else show_whole
            return show(image)

        return show_view

    def keep_units(self, layer: str, units: Sequence[int]) -> None:
        """Makes and keeps the pictures of some units of a layer."""
        try:
            images = self.ascend_units(layer, units)
        except SightlineError:
            if len(units) == 1:
                images = torch.full((1, 3, *self.picture_size), 0.5)
            else:
                # One unit that can't be ascended does not spoil the others.
                for unit in units:
                    self.keep_units(layer, [unit])
                return
        for unit, image in zip(units, images.split(1), strict=True):
            self.pictures.keep(self.make_key(layer, unit), image, SYNTHESIS_QUALITY)

    def keep_all(self, unit_counts: dict[str, int], on_progress: SynthesisProgress) -> bool:
        """Makes what is missing of the units of several layers. Returns whether it was finished.

        `on_progress` gets the work done and all of it: a unit counts as much as its layer is deep,
        since that is how far each step goes through the network.
        """
        batches = list(self.list_missing_batches(unit_counts))
        depths = {layer: self.measure_depth(layer) for layer in unit_counts}
        total = sum(depths[layer] * len(units) for layer, units in batches)
        done = 0.0
        for layer, units in batches:
            if on_progress(done, total):
                return False
            self.keep_units(layer, units)
            done += depths[layer] * len(units)
        on_progress(total, total)
        return True

    def choose_batch_size(self, unit_count: int) -> int:
        """How many of so many units are ascended at once."""
        if self.batch_size is not None:
            return self.batch_size
        image = torch.full((1, self.model.channels, *self.picture_size), 0.5)
        image_count = max(1, unit_count * self.steps)
        try:
            fastest = choose_batch_size(self.model, image, image_count=image_count)
        except SightlineError:  # a network without scores, on which nothing can be timed
            fastest = 1
        return min(MAX_BATCH_SIZE, fastest)

    def list_missing_batches(self, unit_counts: dict[str, int]) -> Iterator[tuple[str, list[int]]]:
        """The units whose pictures are not kept, in batches of one layer."""
        missing_units: dict[str, list[int]] = {}
        for layer, unit_count in unit_counts.items():
            missing = [unit for unit in range(unit_count) if not self.has_picture(layer, unit)]
            missing_units[layer] = missing
        missing_count = sum(map(len, missing_units.values()))
        if not missing_count:
            return
        batch_size = self.choose_batch_size(missing_count)
        for layer, units in missing_units.items():
            for start in range(0, len(units), batch_size):
                yield layer, units[start : start + batch_size]

    def measure_depth(self, layer: str) -> float:
        """How deep a layer lies, as a share of all layers."""
        layers = list(self.model.layers)
        name = self.model.layer(layer)
        position = layers.index(name) if name in layers else len(layers) - 1
        return (position + 1) / len(layers)


def make_units_objective(layer: str, units: Sequence[int]) -> Objective:
    """The mean activations of units of a layer, or the scores of classes, one for each image."""
    return logit(tuple(units)) if layer == "logits" else channel(layer, tuple(units))
