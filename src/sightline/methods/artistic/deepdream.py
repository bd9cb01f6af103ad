"""DeepDream: what a layer already sees in an image, made stronger (Mordvintsev 2015)."""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...ascend import Callback, Steepest, Step, ascend, score_of
from ...catalog import method
from ...errors import SightlineError
from ...knobs import Between
from ...model import Model
from ...objective import Objective, channel, energy
from ...parameterize import Pixels
from ...result import Result
from ...transform import roll_jitter

LEAST_SIDE = 32


@method(
    title="DeepDream",
    question="What does a layer already see in this image? Make more of it.",
    reading="Patterns that the layer answers to grow out of whatever resembles them: strokes and textures from early layers, parts of learned things from deeper ones.",
    caution="It exaggerates on purpose. The patterns tell about the training images, not about this photograph.",
    quick={"steps": 5},
)
def deepdream(
    model: Model,
    image: Tensor,
    *,
    layer: str = "middle",
    unit: Annotated[int | None, Between(0, 1_000_000)] = None,
    octaves: Annotated[int, Between(1, 12)] = 4,
    scale: Annotated[float, Between(1.01, 4)] = 1.4,
    steps: Annotated[int, Between(1, 10_000)] = 10,
    step_size: Annotated[float, Between(0, 1)] = 1.5 / 255,
    jitter: Annotated[int, Between(0, 512)] = 32,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Ascends the energy of a layer (or one unit) from the image, from small to large, carrying the detail upwards.

    The gradient at the layer is the layer's own activation; at the image it is divided by its mean magnitude.
    `values["image"]` is N×3×H×W.

    Args:
        unit: Channel to strengthen instead of the whole layer.
        octaves: How many image sizes, the last being the image's own.
        scale: Factor between two sizes.
        steps: Steps at each size.
        step_size: Mean change of a pixel value per step, in units of [0, 1].
        jitter: Random shift before every step, in pixels at most; less at small sizes.
    """
    height, width = image.shape[-2:]
    sizes = [(round(height / scale**i), round(width / scale**i)) for i in reversed(range(octaves))]
    if min(sizes[0]) < LEAST_SIDE:
        most = sum(min(size) >= LEAST_SIDE for size in sizes)
        raise SightlineError(
            f"octaves is {octaves}; an image of {height}×{width} pixels allows {most} at scale {scale} (the smallest needs {LEAST_SIDE} pixels)"
        )
    aim: Objective = energy(layer) if unit is None else channel(layer, unit)
    generator = torch.Generator().manual_seed(seed)
    original, detail = image.to(model.device), None
    stopped = False

    def counted(step: Step, octave: int) -> bool:
        nonlocal stopped
        stopped = bool(callback and callback(Step(octave * steps + step.index, octaves * steps, step.scores, step.image)))
        return stopped

    dream, scores = original, torch.empty(0, len(image))
    for octave, size in enumerate(sizes):
        base = images.resize(original, *size)
        start = base if detail is None else (base + resized_detail(detail, size)).clamp(0, 1)
        shift = roll_jitter(min(jitter, min(size) // 4), generator)
        dream, gained = ascend(
            model, aim, Pixels(start), partial(Steepest, lr=step_size, norm="mean"), steps,
            transform=shift, callback=(lambda step, octave=octave: counted(step, octave)) if callback else None,
        )  # fmt: skip
        scores = torch.cat([scores, gained.cpu()])
        detail = dream - base
        if stopped:
            break
    if detail is not None and dream.shape != original.shape:
        dream = (original + resized_detail(detail, (height, width))).clamp(0, 1)
    dream = dream.cpu()
    before, after = (float(score_of(model, aim, picture)[0]) for picture in (image, dream))
    caption = f"{aim}: {before:.3g} on the image, {after:.3g} on the dream, after {len(scores)} steps over {octaves} sizes."
    return Result({"deepdream": render.beside(image, dream)}, {"image": dream, "scores": scores}, {"deepdream": caption})


def resized_detail(detail: Tensor, size: tuple[int, int]) -> Tensor:
    """What the dream added, at another size; it is signed, so it is not clamped."""
    return torch.nn.functional.interpolate(detail, size=size, mode="bilinear", align_corners=False)
