"""Gradient ascent on the image: what would make the network respond so? (Simonyan 2013; Yosinski 2015; Olah 2017)"""

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render
from ...ascend import Callback, ascend, score_of
from ...catalog import method
from ...errors import SightlineError
from ...formula import parse
from ...knobs import Between
from ...model import Model
from ...objective import Objective
from ...optimizers import Steepest
from ...parameterize import Fourier, Pixels
from ...regularize import Regularizer
from ...result import Result
from ...transform import wobble


@method(
    title="Synthesis by gradient ascent",
    question="Which image, made from nothing, would make the network respond most?",
    reading="The picture shows the pattern that drives the unit or class hardest under the chosen regularizers: repeated parts, textures, sometimes whole objects.",
    caution="What makes it look natural is the regularizer, not the network: with strong ones the picture shows the prior, with none noise. It is one "
    "image of many that work, and no evidence that the network needs these parts in photographs.",
    tour=({"start": "fourier"}, {"start": "gray"}),
    quick={"steps": 64},
)
def synthesis(
    model: Model,
    objective: Objective | str,
    *,
    start: Literal["fourier", "gray"] = "fourier",
    size: Annotated[int | None, Between(16, 4096)] = None,
    steps: Annotated[int, Between(1, 100_000)] = 256,
    lr: Annotated[float | None, Between(0, 1000)] = None,
    decay: Annotated[float | None, Between(0, 1)] = None,
    blur: Annotated[float | None, Between(0, 50)] = None,
    clip: Annotated[float | None, Between(0, 1)] = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Ascends the objective from a start that knows nothing.

    From "gray" the pixels move by normalized gradient steps with the lecture's regularizers: L2 decay, Gaussian blur every
    4 steps, clipping of small pixels and of pixels with small gradients. From "fourier" a decorrelated spectrum moves
    (Olah 2017); both under small random shifts, scales and turns. `values["image"]` is 1×3×H×W, `values["scores"]` one per step.

    Args:
        start: "fourier" for Olah's preconditioned spectrum, "gray" for plain pixels with the lecture's regularizers.
        size: Side of the picture in pixels; the network's own by default.
        steps: How many gradient steps.
        lr: Step size: Adam's for "fourier" (0.05), the mean change per pixel in units of [0, 1] for "gray" (0.03).
        decay: L2 decay per step, for "gray" (0.005).
        blur: Standard deviation in pixels of the blur every 4 steps, for "gray" (0.8).
        clip: Share of pixels set to gray per step for being small or contributing little, for "gray" (0.3).
    """
    aim = parse(objective) if isinstance(objective, str) else objective
    if not isinstance(aim, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SightlineError(f"synthesis takes an objective, such as sl.logit('goose') or its text, not a {type(objective).__name__}")
    side = size or model.size
    generator = torch.Generator().manual_seed(seed)
    warp = wobble(side / 12, 0.2, 10, generator)
    if start == "gray":
        pixels = Pixels(gray(side, generator).to(model.device))
        keep = Regularizer(decay=default(decay, 0.005), sigma=default(blur, 0.8), small=default(clip, 0.3) / 2, idle=default(clip, 0.3) / 2)
        step = partial(Steepest, lr=default(lr, 0.03), norm="mean")
        image, scores = ascend(
            model, aim, pixels, step, steps, transform=warp, regularize=lambda index: keep.apply_(pixels, index), callback=callback
        )
    else:
        if refused := [name for name, value in (("decay", decay), ("blur", blur), ("clip", clip)) if value is not None]:
            raise SightlineError(f"{refused[0]} works on pixels, but start='fourier' moves a spectrum; choose start='gray'")
        spectrum = Fourier(1, side, side, seed=seed, device=model.device)
        adam = partial(torch.optim.Adam, lr=default(lr, 0.05))
        image, scores = ascend(model, aim, spectrum, adam, steps, transform=warp, callback=callback)
    image = image.clamp(0, 1).cpu()
    final = float(score_of(model, aim, image)[0])
    caption = f"{aim}: {final:.2f} on the finished picture, {float(scores[0, 0]):.2f} at the start; {len(scores)} steps from {start}."
    return Result(
        {"synthesis": render.enlarge(image, 128)}, {"image": image, "scores": scores[:, 0].cpu(), "score": final}, {"synthesis": caption}
    )


def gray(side: int, generator: torch.Generator) -> Tensor:
    """Gray with a trace of noise, since a constant picture can be a point without gradient: 1×3×side×side."""
    return (0.5 + 0.01 * torch.randn(1, 3, side, side, generator=generator)).clamp(0, 1)


def default(value: float | None, otherwise: float) -> float:
    """The value, or what stands for None."""
    return otherwise if value is None else value
