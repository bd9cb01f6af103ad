"""The attribution of any method, in the one form that the evaluation methods use."""

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

# Standard deviation of the noise of the stability test, in [0, 1] units: about two and a half steps
# of an 8-bit image.
STABILITY_NOISE = 0.01


@dataclass(frozen=True)
class AttributionMethod:
    """A method and its kind ("" where it has none), ready to explain one class of any network.

    `parameters` are the method's own, beside those that its `AttributionSpec` sets.
    """

    name: str
    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def spec(self) -> AttributionSpec:
        """Where the method's attribution is found. Raises SightlineError if it has none."""
        spec = METHODS[self.name].attribution
        if not spec:
            raise make_unknown_name_error(
                "attribution method", self.name, list_attribution_methods()
            )
        return spec

    @property
    def description(self) -> str:
        """Method and kind in words."""
        if self.name == "guided":
            return f"{self.kind} backpropagation"
        return f"{self.name} ({self.kind})" if self.kind else self.name

    @property
    def is_random(self) -> bool:
        """Whether the method takes a seed."""
        return "seed" in METHODS[self.name].parameters

    @property
    def is_costly(self) -> bool:
        """Whether the attribution takes many passes of the network."""
        costly_kinds = self.spec.costly_kinds
        return costly_kinds if isinstance(costly_kinds, bool) else self.kind in costly_kinds

    def collect_parameters(self, index: int, seed: int) -> dict[str, Any]:
        """The parameters with which the method explains class `index`."""
        parameters = {
            **self.parameters,
            **self.spec.test_parameters,
            self.spec.label_parameter: index,
        }
        if self.kind:
            parameters[self.spec.kind_parameter] = self.kind
        if self.is_random:
            parameters["seed"] = seed
        return parameters

    def compute_attribution(
        self, model: Model, image: Tensor, index: int, seed: int
    ) -> Attribution:
        """The attribution of class `index` in one image 1×3×H×W. NaN and infinities become 0."""
        parameters = self.collect_parameters(index, seed)
        result = METHODS[self.name].function(model, image, **parameters)
        value = result.tensors[self.spec.value_key]
        value = value.detach().cpu().float().nan_to_num(0, 0, 0)
        if value.ndim == 4:
            per_channel = value[0]
            if self.kind in self.spec.magnitude_kinds:
                heatmap = per_channel.abs().amax(0)
            else:
                heatmap = per_channel.sum(0)
            is_gradient = self.kind in self.spec.gradient_kinds
            return Attribution(heatmap, per_channel, is_gradient)
        enlarged = upsample_maps(value, image.shape[-2:])
        return Attribution(enlarged[0], enlarged, is_gradient=False)

    def repeat_attribution(  # noqa: PLR0917 - the original's arguments, and what varies them
        self,
        model: Model,
        image: Tensor,
        index: int,
        original: Tensor,
        seed: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, str]:
        """The heatmap H×W once more, slightly varied, and how: "seed" or "noise".

        It is that of the next seed, or, where this changes nothing in the `original` heatmap, that
        of the image with a little noise.
        """
        if self.is_random:
            reseeded = self.compute_attribution(model, image, index, seed + 1).heatmap
            if not torch.equal(reseeded, original):
                return reseeded, "seed"
        noise = STABILITY_NOISE * torch.randn(image.shape, generator=generator)
        noisy_image = (image + noise).clamp(0, 1)
        return self.compute_attribution(model, noisy_image, index, seed).heatmap, "noise"


def list_attribution_methods() -> list[str]:
    """The names of the methods that have an attribution, in the catalogue's order."""
    return [name for name, method in load_methods().items() if method.attribution]


def find_attribution_method(
    name: str, kind: str | None = None, parameters: Mapping[str, Any] | None = None
) -> AttributionMethod:
    """The method by its name, or by "method:kind".

    Raises SightlineError for a method without an attribution, and for a kind it does not have.
    """
    name, _, kind_suffix = name.partition(":")
    if kind is None and kind_suffix:
        kind = kind_suffix
    names = list_attribution_methods()
    if name not in names:
        raise make_unknown_name_error("attribution method", name, names)

    method = AttributionMethod(name, "", parameters or {})
    if not method.spec.kind_parameter:
        if kind is not None:
            raise SightlineError(f"kind is {kind!r}; {name} has no kinds")
        return method
    kind_spec = METHODS[name].parameters[method.spec.kind_parameter]
    checked_kind = kind_spec.default if kind is None else kind_spec.check_value(kind)
    return AttributionMethod(name, str(checked_kind), method.parameters)
