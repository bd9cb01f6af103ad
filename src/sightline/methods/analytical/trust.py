"""Can a map be trusted? It is held against the network with parts of the image removed, and against networks that learned nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ... import render
from ...catalog import METHODS, load_methods
from ...catalog import method as registered
from ...errors import SightlineError, unknown
from ...knobs import Between
from ...model import Model
from ...result import Result
from . import faithful, randomize
from .faithful import Asked, Evidence
from .paths import affordable
from .saliency import MAGNITUDES
from .verdict import captions, verdicts

# How often the map is shifted elsewhere to see what chance would give; for the curves, which cost a forward pass a point, fewer.
CHANCES, CURVE_CHANCES = 16, 3
# Standard deviation of the noise of the stability test, in [0, 1] units: about two and a half steps of an 8-bit picture.
NOISE = 0.01
LEAST = 7


@dataclass(frozen=True)
class Source:
    """Where the map of a method is: the value's name, N×3×H×W signed or N×h×w; the knob that `kind` sets; the kinds whose value is a
    slope per unit of pixel value; other knobs, with the class's index for `LABEL`."""

    value: str
    kind: str = ""
    slopes: tuple[str, ...] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str = "label"


# The one place that knows which value of a method is its map.
SOURCES: dict[str, Source] = {
    "saliency": Source("attribution", "kind", ("gradient", "smoothgrad")),
    # The default stride of 8 has four times the windows, and every randomized network is asked again.
    "occlusion": Source("drop", knobs={"stride": 16}),
    "gradcam": Source("map"),
    "cam": Source("map", "kind"),
    "attention": Source("map", "kind"),
    # Guided backpropagation explains a neuron; the class score is one.
    "guided": Source("gradient", "rule", ("gradient", "deconvnet", "guided"), {"layer": "logits"}, label="unit"),
}


@dataclass(frozen=True)
class Explained:
    """A method, ready to be asked for the map of one class by any network."""

    name: str
    kind: str
    index: int

    def map(self, model: Model, image: Tensor, seed: int) -> Evidence:
        """The map of one image 1×3×H×W."""
        source = SOURCES[self.name]
        knobs = {**source.knobs, source.label: self.index, **({source.kind: self.kind} if self.kind else {})}
        if self.seeded:
            knobs["seed"] = seed
        value = METHODS[self.name].function(model, image, **knobs).tensors[source.value].detach().cpu().float().nan_to_num(0, 0, 0)
        if value.ndim == 4:
            slope = self.kind in source.slopes
            sized = self.name == "guided" or self.kind in MAGNITUDES
            return Evidence(value[0].abs().amax(0) if sized else value[0].sum(0), value[0], slope)
        shown = render.fit(value, image.shape[-2:])
        return Evidence(shown[0], shown, slope=False)

    @property
    def seeded(self) -> bool:
        """Whether the method draws at random."""
        return "seed" in METHODS[self.name].fields


@dataclass(frozen=True)
class Effort:
    """How much is spent: points of a curve, subsets of pixels, stages of randomization; and the seed of all draws."""

    steps: int
    samples: int
    stages: int
    seed: int


@registered(
    title="Trust",
    question="Does a map show what the score depends on, and would a network that has learned nothing give another one?",
    reading="A good map's deletion curve falls sooner and its insertion curve rises sooner than chance (the same map, shifted). Of the maps below, the first "
    "is the network's own; then more and more layers lose what they learned, from the answer down. The picture should change.",
    caution="Removing pixels makes unusual images, to which the network may answer anything. A map that passes every test here may still mislead, and one "
    "image proves little: look at several.",
    tour=({"method": "saliency"}, {"method": "gradcam"}),
    quick={"steps": 8, "samples": 16, "stages": 4},
)
def trust(
    model: Model,
    image: Tensor,
    *,
    method: str = "saliency",
    label: int | str = "top",
    kind: str | None = None,
    steps: Annotated[int, Between(1, 1000)] = 16,
    samples: Annotated[int, Between(4, 10_000)] = 32,
    stages: Annotated[int, Between(1, 1000)] = 10,
    batch: Annotated[int | None, Between(1, 4096)] = None,
    seed: int = 0,
) -> Result:
    """Tests the map of another method: deletion, insertion, sensitivity-n, infidelity, model randomization, stability.

    `values`, for N images, S steps, L stages: `map` N×H×W; `deletion`, `insertion` N×(S+1), class probability, with `…_auc` N
    (Petsiuk 2018); `sensitivity` N×3, the correlation of the map's sum over `sensitivity_n` random squares of `patch` pixels with the
    score lost when they turn gray (Ancona 2018); `infidelity` N, score² (Yeh 2019), and `unexplained`, its share of what the removals
    cost squared, 0 to 1; `cascade_rank`, `cascade_ssim`, `layer_rank`, `layer_ssim` N×L: Spearman's correlation and SSIM with the map
    of a network whose layers' weights are shuffled from the top down, or in one stage alone (Adebayo 2018), the stages in `layers`; of
    the cascade's maps, `empty` N are 0 everywhere; `stability_rank`, `stability_ssim` N: with the map of another seed or, where that
    changes nothing, of the image with noise of deviation 0.01 (`stability_of`). A name with `_chance` is what the same map, shifted at
    random, gets. `verdict` has sentences for each image, by these limits: an area differs by 0.02, a correlation or share by 0.1; a
    map is lost below a median rank correlation of 0.2 above chance and barely changes from 0.5; it is stable from 0.8.
    The other method is run 2 L + 2 times.

    Args:
        method: Whose map: "saliency", "occlusion", "gradcam", "cam", "attention" or "guided" (of the class score).
        kind: Kind of saliency, cam or attention, or rule of guided; None for that method's default.
        steps: Number of steps of the deletion and insertion curves.
        samples: Number of random removals for each n and for the infidelity.
        stages: Most stages of the randomization; deep networks have their layers put together to so many.
        batch: How many changed images are run at once; None for as many as fit into about a gigabyte, at most 32.
    """
    if min(image.shape[-2:]) < LEAST:
        raise SightlineError(f"the image is {image.shape[-2]}×{image.shape[-1]} pixels; trust needs at least {LEAST}×{LEAST}")
    kind, effort = chosen(method, kind), Effort(steps, samples, stages, seed)
    groups = randomize.gathered(randomize.layers_with_weights(model), stages)
    size = batch or min(32, affordable(model, image))
    index = model.choose(label, image)
    each: list[dict[str, Any]] = []
    for one, i in zip(image.cpu().split(1), index.tolist(), strict=True):
        explained = Explained(method, kind, i)
        each.append(judged(model, one, explained, Asked(model, i, size), groups=groups, effort=effort))
    rows = [found.pop("maps") for found in each]
    spoken = f"{kind} backpropagation" if method == "guided" else f"{method} ({kind})" if kind else method
    for found in each:
        found["verdict"] = verdicts(spoken, found)
    height, width = image.shape[-2:]
    values: dict[str, Any] = {
        name: torch.stack([found[name] for found in each]) if isinstance(each[0][name], Tensor) else [found[name] for found in each]
        for name in each[0]
    }
    names = [stage(paths) for paths in groups]
    values |= {
        "sensitivity_n": faithful.subset_sizes(height, width), "patch": faithful.patch_side(height, width), "layers": names, "label": index,
    }  # fmt: skip
    panels = {"curves": charted(each[0]), "maps": in_a_row(image[:1], rows[0])}
    return Result(panels, values, captions(spoken, str(model.labels[int(index[0])]), each[0], names))


def chosen(name: str, kind: str | None) -> str:
    """The kind of the method's map, or "" where it has none. Raises SightlineError for one that it hasn't, and a method without map."""
    if name not in SOURCES:
        raise unknown("method with a map", name, SOURCES)
    load_methods()
    knob = SOURCES[name].kind
    if not knob:
        if kind is not None:
            raise SightlineError(f"kind is {kind!r}; {name} has no kinds")
        return ""
    declared = METHODS[name].fields[knob]
    return str(declared.default if kind is None else declared.check(kind))


# ── the tests of one image ──


def judged(model: Model, image: Tensor, explained: Explained, asked: Asked, *, groups: list[list[str]], effort: Effort) -> dict[str, Any]:
    """All numbers of one image, and the `maps` of the cascade."""
    clean, generator = explained.map(model, image, effort.seed), torch.Generator().manual_seed(effort.seed)
    others = [clean.elsewhere(generator) for _ in range(CHANCES)]
    found: dict[str, Any] = {"map": clean.shown}
    found |= faithful.curves(asked, image[0], clean, others[:CURVE_CHANCES], steps=effort.steps, generator=generator)
    found |= faithful.removals(asked, image[0], clean, others, samples=effort.samples, generator=generator)
    pairs = [
        (explained.map(cascade, image, effort.seed).shown, explained.map(alone, image, effort.seed).shown)
        for cascade, alone in randomize.randomized(model, groups, effort.seed)
    ]
    again, of = explained.map(model, image, effort.seed + 1).shown if explained.seeded else clean.shown, "seed"
    if torch.equal(again, clean.shown):  # nothing was drawn
        noisy = (image + NOISE * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        again, of = explained.map(model, noisy, effort.seed).shown, "noise"
    cascade, alone = zip(*pairs, strict=True)
    found["rank_chance"], found["ssim_chance"] = (
        part.mean() for part in randomize.likeness(clean.shown, [other.shown for other in others])
    )
    found["cascade_rank"], found["cascade_ssim"] = randomize.likeness(clean.shown, cascade)
    found["layer_rank"], found["layer_ssim"] = randomize.likeness(clean.shown, alone)
    found["stability_rank"], found["stability_ssim"] = (part[0] for part in randomize.likeness(clean.shown, [again]))
    found["empty"] = torch.tensor([not map_.any() for map_ in cascade]).sum()
    return {**found, "stability_of": of, "maps": [clean.shown, *cascade]}


# ── pictures ──


def charted(found: Mapping[str, Any]) -> Tensor:
    """Curves of one image: deletion, insertion, and how the maps of randomized networks are like its map."""
    removed = torch.linspace(0, 1, len(found["deletion"])).tolist()
    plots: list[render.Plot] = []
    for name, axis in (("deletion", "share of pixels turned gray"), ("insertion", "share of pixels made sharp")):
        curves = {name_: (removed, found[key].tolist()) for name_, key in (("the map", name), ("shifted maps", f"{name}_chance"))}
        plots.append(render.Plot(f"{name.capitalize()}: probability of the class", axis, curves))
    stages = list(range(len(found["cascade_rank"]) + 1))
    likeness = {
        "from the top down": (stages, [1.0, *found["cascade_rank"].tolist()]),
        "one alone": (stages, [1.0, *found["layer_rank"].tolist()]),
        "shifted maps": (stages, [float(found["rank_chance"])] * len(stages)),
    }
    plots.append(render.Plot("Randomized: rank correlation of the maps", "stage of randomization, from the answer down", likeness))
    return render.lines(plots)


def in_a_row(image: Tensor, maps: list[Tensor]) -> Tensor:
    """The image 1×3×H×W, then maps H×W, each on its own scale up to its 99th percentile."""
    stack = torch.stack(maps)
    limit = torch.stack([randomize.brightest(map_.abs()) for map_ in maps])
    shown = render.signed(stack, limit) if bool((stack < 0).any()) else render.heat(stack, limit)
    return render.sheet(torch.cat([image.cpu(), shown]), columns=len(maps) + 1, gap=4)


def stage(paths: list[str]) -> str:
    """A stage of the randomization in words: its topmost and lowest module."""
    names = [path or "the network's own weights" for path in paths]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
