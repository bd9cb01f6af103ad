"""Feature inversion: which images look the same to a layer? (Mahendran & Vedaldi 2015; Dosovitskiy & Brox 2016)"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...ascend import Callback, Count, Step, ascend
from ...catalog import method
from ...errors import SightlineError, outside
from ...knobs import Between
from ...model import Model
from ...networks.decoder import generator_of, known
from ...objective import bounded, tv
from ...optimizers import Adam
from ...parameterize import Fourier, Parameterization
from ...result import Result
from ...scans.store import Scan
from .resemblance import NATURAL, Annealed, Levels, Looking, middle, pooled, relative_error, resemblance, smoothness

Kind = Literal["pixels", "fourier", "learned"]

ALIKE = ("Dropout", "Identity", "Flatten")  # these say what the layer before them says


def chosen(model: Model, layer: str, k: int, kind: str) -> list[str]:
    """The layers to invert, by their own names."""
    if layer != "depth":
        return [model.layer(layer)]
    if kind == "learned":
        return list(known(model))
    names = [name for name, found in model.layers.items() if not found.kind.startswith(ALIKE)]
    places = torch.linspace(0, len(names) - 1, min(k, len(names))).round().long().tolist()
    return [names[place] for place in places]


def remembered(model: Model, layer: str, store: str | Path, id: int) -> dict[str, Tensor]:
    """The vectors that a scan by this very network kept of an image, 1×C by layer, for one layer or for all that it kept."""
    scan = Scan.open(store)
    scan.require(model)
    names = list(scan.facts["vectors"]) if layer == "depth" else [model.layer(layer)]
    if not 0 <= id < scan.images:
        raise outside("id", id, 0, scan.images - 1)
    return {name: scan.vectors(name)[id : id + 1].to(model.device) for name in names}


# ── the inversions ──


@dataclass
class Inversion:
    """One layer after the other of an image N×3×H×W."""

    model: Model
    image: Tensor
    layers: list[str]
    kind: Kind
    look: Looking
    steps: int
    lr: float
    seed: int
    callback: Callback | None
    scores: list[Tensor] = field(default_factory=list[Tensor])
    stopped: bool = False

    def ascended(self, number: int, wanted: Tensor, smooth: float | None, limit: float) -> Tensor:
        """The picture whose features at the layer of this number are the wanted ones, found step by step: N×3×H×W."""
        layer, (height, width) = self.layers[number], self.image.shape[-2:]
        power = 3 * height * width * NATURAL**2  # the squared norm of a natural image, in gray levels
        even = smoothness(self.model, layer) if smooth is None else smooth
        penalty = even / 2 * 255**2 * height * width * tv(2.0) + limit / 2 * 255**6 * 3 * height * width * bounded()
        aim = power * resemblance(layer, wanted, self.look) - penalty
        if self.kind == "fourier":
            start: Parameterization = Fourier(len(self.image), height, width, seed=self.seed, device=self.model.device)
            optimizer = partial(Adam, lr=self.lr)
        else:
            start, optimizer = Levels(self.image.to(self.model.device), self.seed), partial(Annealed, lr=self.lr, steps=self.steps)

        watch = Count(self.callback, number, len(self.layers))

        def watched(step: Step) -> bool:
            return watch(replace(step, scores=step.scores / power))

        made, scores = ascend(self.model, aim, start, optimizer, self.steps, callback=watched if self.callback else None)
        self.stopped = watch.stopped
        self.scores.append(scores.cpu() / power)
        return made.clamp(0, 1)

    @torch.no_grad()
    def learned(self, layer: str, wanted: Tensor) -> Tensor:
        """The generator's picture, of its own size."""
        return generator_of(self.model, layer)(wanted)

    @torch.no_grad()
    def error(self, layer: str, made: Tensor, wanted: Tensor) -> Tensor:
        """The relative error of the finished picture's features, N."""
        found = self.model.run(made, [layer])[layer]
        return relative_error(self.look(found, made), self.look(wanted, self.image)).cpu()


def likeness(made: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels and SSIM (Wang 2004) of each picture beside its photograph, N and N."""
    from skimage.metrics import structural_similarity

    square = (made - image).square().flatten(1).mean(1)
    pairs = zip(made.numpy(), image.numpy(), strict=True)
    window = min(7, min(image.shape[-2:]) // 2 * 2 - 1)
    alike = [structural_similarity(one, other, channel_axis=0, data_range=1, win_size=window) for one, other in pairs]
    return -10 * square.clamp_min(1e-12).log10(), torch.tensor(alike, dtype=torch.float32)


@method(
    title="Inversion of features",
    question="How much of the image does each layer still know?",
    reading="Each picture was made to look to one layer as the photograph does. What differs from the photograph is what this layer has "
    "forgotten: first hardly anything, then exact colours and places, at last all but what kind of things are there.",
    caution="Where the features leave the picture open, the smoothness that was asked for fills it in: blurred or mottled places show that "
    "choice, not the network's memory. A learned inversion fills them with what its training photographs had there.",
    tour=({"k": 5, "kind": "fourier", "steps": 60},),
    quick={"k": 4, "kind": "fourier", "steps": 20},
)
def inversion(
    model: Model,
    image: Tensor,
    *,
    layer: str = "depth",
    k: Annotated[int, Between(1, 1000)] = 6,
    kind: Kind = "pixels",
    patch: Annotated[int | None, Between(1, 1000)] = None,
    steps: Annotated[int, Between(1, 100_000)] = 400,
    lr: Annotated[float | None, Between(0, 100)] = None,
    smooth: Annotated[float | None, Between(0, 1_000_000)] = None,
    limit: Annotated[float, Between(0, 1)] = 8e-10,
    store: str | Path | None = None,
    id: Annotated[int, Between(0, 10**12)] = 0,
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
        wanted = remembered(model, layer, store, id)
        names, look = list(wanted), pooled
    else:
        names, look = chosen(model, layer, k, kind), partial(middle, patch=patch)
        with torch.no_grad():
            wanted = model.run(image, names)
    rate = (0.05 if kind == "fourier" else 0.004) if lr is None else lr
    work = Inversion(model, image, names, kind, look, steps, rate, seed, callback)
    made, errors = list[Tensor](), list[Tensor]()
    for number, name in enumerate(names):
        features = wanted[name]
        picture = work.learned(name, features) if kind == "learned" else work.ascended(number, features, smooth, limit)
        errors.append(work.error(name, picture, features))
        made.append(images.resize(picture.cpu(), *image.shape[-2:]))
        if work.stopped:
            break
    return shown(work, made, torch.stack(errors))


def shown(work: Inversion, made: list[Tensor], error: Tensor) -> Result:
    """The row of pictures by depth, the curves beside it, and the numbers."""
    names, image = work.layers[: len(made)], work.image.cpu()
    psnr, ssim = (torch.stack(part) for part in zip(*(likeness(picture, image) for picture in made), strict=True))
    values: dict[str, Any] = {"image": torch.cat(made), "error": error, "psnr": psnr, "ssim": ssim, "layers": names}
    if work.scores:
        values["scores"] = torch.cat(work.scores)
    told = "; ".join(f"{n}: {e:.3f}, {p:.1f} dB, {s:.2f}" for n, e, p, s in zip(names, error[:, 0], psnr[:, 0], ssim[:, 0], strict=True))
    panels = {"inversion": render.titled(["photograph", *names], [image, *made])}
    captions = {"inversion": f"From {work.kind}. Relative error of the features, PSNR and SSIM beside the photograph: {told}."}
    if len(made) > 1:
        depth = list(range(1, len(made) + 1))
        curves = {"feature error": (depth, error[:, 0].clamp(0, 1).tolist()), "SSIM": (depth, ssim[:, 0].tolist())}
        panels["depth"] = render.lines([render.Plot("What is lost with depth", "layer, from the first to the last", curves)])
        captions["depth"] = (
            "The same numbers by depth, of the first image: a low SSIM tells of a picture forgotten, a high feature error of too few steps."
        )
    return Result(panels, values, captions)
