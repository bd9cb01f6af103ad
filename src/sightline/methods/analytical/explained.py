"""The map of any method that has one, by any network, in one form: what the tests of maps ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import render
from ...catalog import METHODS, Map, load_methods
from ...errors import SightlineError, unknown
from ...model import Model
from .faithful import Evidence

# Standard deviation of the noise of the stability test, in [0, 1] units: about two and a half steps of an 8-bit picture.
NOISE = 0.01


@dataclass(frozen=True)
class Explained:
    """A method and its kind of map ("" where it has none), ready to be asked for the map of one class by any network.

    `knobs` are the method's own, besides those that its `Map` sets."""

    name: str
    kind: str
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def source(self) -> Map:
        """Where the method's map is."""
        found = METHODS[self.name].map
        if not found:
            raise unknown("method with a map", self.name, mapping())
        return found

    @property
    def spoken(self) -> str:
        """Method and kind in words."""
        return f"{self.kind} backpropagation" if self.name == "guided" else f"{self.name} ({self.kind})" if self.kind else self.name

    @property
    def seeded(self) -> bool:
        """Whether the method draws at random."""
        return "seed" in METHODS[self.name].fields

    @property
    def costly(self) -> bool:
        """Whether the map is averaged over many passes of the network."""
        costly = self.source.costly
        return costly if isinstance(costly, bool) else self.kind in costly

    def asked(self, index: int, seed: int) -> dict[str, Any]:
        """The knobs of the map of one class."""
        source = self.source
        told = {**self.knobs, **source.knobs, source.label: index}
        return told | ({source.kind: self.kind} if self.kind else {}) | ({"seed": seed} if self.seeded else {})

    def map(self, model: Model, image: Tensor, index: int, seed: int) -> Evidence:
        """The map of one image 1×3×H×W for one class."""
        found = METHODS[self.name].function(model, image, **self.asked(index, seed))
        value = found.tensors[self.source.value].detach().cpu().float().nan_to_num(0, 0, 0)
        if value.ndim == 4:
            size = self.kind in self.source.sizes
            return Evidence(value[0].abs().amax(0) if size else value[0].sum(0), value[0], self.kind in self.source.slopes)
        shown = render.fit(value, image.shape[-2:])
        return Evidence(shown[0], shown, slope=False)

    def again(  # noqa: PLR0917 - the image's map, and what it came from
        self, model: Model, image: Tensor, index: int, clean: Tensor, seed: int, generator: torch.Generator
    ) -> tuple[Tensor, str]:
        """The map H×W by another seed or, where that changes nothing, of the image with a trace of noise; and "seed" or "noise"."""
        if self.seeded:
            other = self.map(model, image, index, seed + 1).shown
            if not torch.equal(other, clean):
                return other, "seed"
        noisy = (image + NOISE * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        return self.map(model, noisy, index, seed).shown, "noise"


def mapping() -> list[str]:
    """The methods that give a map, in the catalogue's order."""
    return [name for name, method in load_methods().items() if method.map]


def explained(name: str, kind: str | None = None, knobs: Mapping[str, Any] | None = None) -> Explained:
    """The method by its name, or by "method:kind". Raises SightlineError for a method without a map, and a kind that it hasn't."""
    name, _, told = name.partition(":")
    kind = kind if kind is not None else told or None
    names = mapping()
    if name not in names:
        raise unknown("method with a map", name, names)
    found = Explained(name, "", knobs or {})
    if not found.source.kind:
        if kind is not None:
            raise SightlineError(f"kind is {kind!r}; {name} has no kinds")
        return found
    declared = METHODS[name].fields[found.source.kind]
    return Explained(name, str(declared.default if kind is None else declared.check(kind)), found.knobs)
