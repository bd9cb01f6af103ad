"""The map of any method that has one, by any network, in one form: what the tests of maps ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.images.plotting.maps import upsample_maps
from sightline.methods import load_methods
from sightline.methods.evaluation.faithfulness import Attribution
from sightline.models.model import Model
from sightline.registry.method import METHODS, AttributionSpec

# Standard deviation of the noise of the stability test, in [0, 1] units: about two and a half steps of an 8-bit picture.
STABILITY_NOISE = 0.01


@dataclass(frozen=True)
class AttributionMethod:
    """A method and its kind of map ("" where it has none), ready to be asked for the map of one class by any network.

    `knobs` are the method's own, besides those that its `Map` sets."""

    name: str
    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def map_declaration(self) -> AttributionSpec:
        """Where the method's map is."""
        found = METHODS[self.name].attribution
        if not found:
            raise make_unknown_name_error(
                "method with a map", self.name, list_attribution_methods()
            )
        return found

    @property
    def description(self) -> str:
        """Method and kind in words."""
        return (
            f"{self.kind} backpropagation"
            if self.name == "guided"
            else f"{self.name} ({self.kind})"
            if self.kind
            else self.name
        )

    @property
    def is_random(self) -> bool:
        """Whether the method draws at random."""
        return "seed" in METHODS[self.name].parameters

    @property
    def is_costly(self) -> bool:
        """Whether the map is averaged over many passes of the network."""
        costly = self.map_declaration.costly_kinds
        return costly if isinstance(costly, bool) else self.kind in costly

    def collect_parameters(self, index: int, seed: int) -> dict[str, Any]:
        """The knobs of the map of one class."""
        source = self.map_declaration
        told = {**self.parameters, **source.test_parameters, source.label_parameter: index}
        return (
            told
            | ({source.kind_parameter: self.kind} if self.kind else {})
            | ({"seed": seed} if self.is_random else {})
        )

    def compute_attribution(
        self, model: Model, image: Tensor, index: int, seed: int
    ) -> Attribution:
        """The map of one image 1×3×H×W for one class."""
        found = METHODS[self.name].function(model, image, **self.collect_parameters(index, seed))
        value = (
            found.tensors[self.map_declaration.value_key].detach().cpu().float().nan_to_num(0, 0, 0)
        )
        if value.ndim == 4:
            size = self.kind in self.map_declaration.magnitude_kinds
            return Attribution(
                value[0].abs().amax(0) if size else value[0].sum(0),
                value[0],
                self.kind in self.map_declaration.gradient_kinds,
            )
        shown = upsample_maps(value, image.shape[-2:])
        return Attribution(shown[0], shown, is_gradient=False)

    def repeat_attribution(  # noqa: PLR0917 - the image's map, and what it came from
        self,
        model: Model,
        image: Tensor,
        index: int,
        original: Tensor,
        seed: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, str]:
        """The map H×W by another seed or, where that changes nothing, of the image with a trace of noise; and "seed" or "noise"."""
        if self.is_random:
            other = self.compute_attribution(model, image, index, seed + 1).heatmap
            if not torch.equal(other, original):
                return other, "seed"
        noisy = (image + STABILITY_NOISE * torch.randn(image.shape, generator=generator)).clamp(
            0, 1
        )
        return self.compute_attribution(model, noisy, index, seed).heatmap, "noise"


def list_attribution_methods() -> list[str]:
    """The methods that give a map, in the catalogue's order."""
    return [name for name, method in load_methods().items() if method.attribution]


def find_attribution_method(
    name: str, kind: str | None = None, parameters: Mapping[str, Any] | None = None
) -> AttributionMethod:
    """The method by its name, or by "method:kind". Raises SightlineError for a method without a map, and a kind that it hasn't."""
    name, _, told = name.partition(":")
    kind = kind if kind is not None else told or None
    names = list_attribution_methods()
    if name not in names:
        raise make_unknown_name_error("method with a map", name, names)
    found = AttributionMethod(name, "", parameters or {})
    if not found.map_declaration.kind_parameter:
        if kind is not None:
            raise SightlineError(f"kind is {kind!r}; {name} has no kinds")
        return found
    declared = METHODS[name].parameters[found.map_declaration.kind_parameter]
    return AttributionMethod(
        name,
        str(declared.default if kind is None else declared.check_value(kind)),
        found.parameters,
    )
