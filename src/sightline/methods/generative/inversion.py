"""Feature inversion: which images look the same to a layer? (Mahendran & Vedaldi 2015; Dosovitskiy & Brox 2016)"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...ascend import Callback, Step, ascend
from ...catalog import method
from ...knobs import Between
from ...model import Model
from ...networks.decoder import decoder_of, known
from ...objective import Objective, tv
from ...outputs import positions
from ...parameterize import Fourier, Parameterization
from ...result import Result

Kind = Literal["pixels", "fourier", "learned"]

# Root mean square of a pixel's distance to gray in photographs, of 255 (measured on Imagenette's training images).
NATURAL = 72.0
SMOOTHNESS = (1.0, 10.0, 100.0)  # the weight of total variation for the first, middle and last third of the layers (their table 2)
PLAN = ((1.0, 0.25), (0.1, 0.5), (0.01, 0.25))  # their learning rates for 100, 200 and 100 steps
ALIKE = ("Dropout", "Identity", "Flatten")  # these say what the layer before them says


class Levels:
    """Pixels in gray levels around the middle, 255·(image − ½), as the published constants count them; kept in [0, 1] as an image."""

    def __init__(self, like: Tensor, seed: int) -> None:
        start = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(len(like), -1, -1, -1)
        self.levels = (start * NATURAL).to(like.device).clamp(-127.5, 127.5).requires_grad_()
        self.parameters = [self.levels]

    def __call__(self) -> Tensor:
        return self.levels / 255 + 0.5

    @torch.no_grad()
    def project_(self) -> None:
        """A picture must be one that can be saved; the published norm only discourages what can't."""
        self.levels.clamp_(-127.5, 127.5)


class Annealed(torch.optim.SGD):
    """Gradient descent with momentum 0.9 whose learning rate drops in stages; the momentum starts anew at each (invert_nn.m)."""

    def __init__(self, parameters: list[Tensor], lr: float, steps: int) -> None:
        super().__init__(parameters, lr=lr, momentum=0.9)
        ends = [round(steps * sum(share for _, share in PLAN[:stage])) for stage in range(1, len(PLAN))]
        self.drops = {end: lr * factor for end, (factor, _) in zip(ends, PLAN[1:], strict=True)}
        self.done = 0

    def step(self, closure: Any = None) -> None:
        if self.done in self.drops:
            self.param_groups[0]["lr"] = self.drops[self.done]
            self.state.clear()
        super().step(closure)
        self.done += 1


# ── what is asked of the picture ──


def resemblance(layer: str, wanted: Tensor, patch: int | None) -> Objective:
    """−‖Φ(x) − Φ₀‖² / ‖Φ₀‖² for each image; `patch` compares only so many rows and columns in the middle."""

    def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return -relative_error(middle(features[layer], image, patch), middle(wanted, image, patch))

    return Objective(f"resemblance({layer!r})", (layer,), lambda _: score)


def bounded() -> Objective:
    """Σ |255·(image − ½)|⁶, small as long as the pixels can be shown (the α-norm of Mahendran & Vedaldi 2015, section 3)."""
    return Objective("bounded()", (), lambda _: lambda image, _: (255 * (image - 0.5)).pow(6).flatten(1).sum(1))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖², per image."""
    return (found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(1).clamp_min(1e-12)


def middle(features: Tensor, image: Tensor, patch: int | None) -> Tensor:
    """The features at the `patch`×`patch` positions in the middle."""
    if patch is None:
        return features
    maps = positions(features, image)
    return images.center_crop(maps, *(min(patch, side) for side in maps.shape[2:]))


def smoothness(model: Model, layer: str) -> float:
    """The published weight of total variation for a layer, by its place in the network."""
    names = list(model.layers)
    place = names.index(layer.removesuffix(":in")) if layer.removesuffix(":in") in names else len(names) - 1
    return SMOOTHNESS[3 * place // len(names)]


def chosen(model: Model, layer: str, k: int, kind: str) -> list[str]:
    """The layers to invert, by their own names."""
    if layer != "depth":
        return [model.layer(layer)]
    if kind == "learned":
        return list(known(model))
    names = [name for name, found in model.layers.items() if not found.kind.startswith(ALIKE)]
    places = torch.linspace(0, len(names) - 1, min(k, len(names))).round().long().tolist()
    return [names[place] for place in places]


# ── the inversions ──


@dataclass
class Inversion:
    """One layer after the other of an image N×3×H×W."""

    model: Model
    image: Tensor
    layers: list[str]
    kind: Kind
    patch: int | None
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
        penalty = even / 2 * 255**2 * height * width * tv(2.0) + limit / 2 * bounded()
        aim = power * resemblance(layer, wanted, self.patch) - penalty
        if self.kind == "fourier":
            start: Parameterization = Fourier(len(self.image), height, width, seed=self.seed, device=self.model.device)
            optimizer = partial(torch.optim.Adam, lr=self.lr)
        else:
            start, optimizer = Levels(self.image.to(self.model.device), self.seed), partial(Annealed, lr=self.lr, steps=self.steps)

        def counted(step: Step) -> bool:
            done = Step(number * self.steps + step.index, len(self.layers) * self.steps, step.scores / power, step.image)
            self.stopped = bool(self.callback and self.callback(done))
            return self.stopped

        made, scores = ascend(self.model, aim, start, optimizer, self.steps, callback=counted if self.callback else None)
        self.scores.append(scores.cpu() / power)
        return made.clamp(0, 1)

    @torch.no_grad()
    def learned(self, layer: str, wanted: Tensor) -> Tensor:
        """The generator's picture, of its own size."""
        return decoder_of(self.model, layer)(wanted)

    @torch.no_grad()
    def error(self, layer: str, made: Tensor, wanted: Tensor) -> Tensor:
        """The relative error of the finished picture's features, N."""
        found = self.model.run(made, [layer])[layer]
        return relative_error(middle(found, made, self.patch), middle(wanted, self.image, self.patch)).cpu()


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
    tour=({"k": 5, "steps": 40},),
    quick={"k": 4, "steps": 20},
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
    """
    names = chosen(model, layer, k, kind)
    with torch.no_grad():
        wanted = model.run(image, names)
    rate = (0.05 if kind == "fourier" else 0.004) if lr is None else lr
    work = Inversion(model, image, names, kind, patch, steps, rate, seed, callback)
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
        captions["depth"] = "The same numbers by depth, of the first image: SSIM falls from layer to layer as the picture is forgotten."
    return Result(panels, values, captions)
