"""What the network makes of a changed image: its answer, its units, and what it looked at."""

import base64
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sightline.app.web.delivery.live.changes import cover_image
from sightline.app.web.delivery.live.schema import (
    ActivationMap,
    AttributionMap,
    AttributionName,
    ClassAnswer,
    LiveAnswer,
    LiveLayer,
    LiveRequest,
    LiveState,
    UnitActivity,
)
from sightline.app.web.delivery.live.units_off import AblatedModels, resolve_units_off
from sightline.app.web.delivery.live.uploads import UploadShelf
from sightline.app.web.explorer.explorer import Explorer
from sightline.errors import escape_for_display
from sightline.methods import load_methods
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model

ANSWER_CLASSES = 5
UNITS_PER_LAYER = 4  # that are listed for every layer

# The methods that answer while somebody waits: which one, its parameter for the class, and others.
ATTRIBUTIONS: dict[AttributionName, tuple[str, str, dict[str, Any]]] = {
    "saliency": ("saliency", "label", {}),
    "gradient_input": ("saliency", "label", {"kind": "gradient_input"}),
    "guided": ("guided", "unit", {"layer": "logits"}),
    "gradcam": ("gradcam", "label", {}),
}
ATTRIBUTION_QUANTILE = 0.995

MAX_CLEAN_ANSWERS = 64


@dataclass
class LiveNetwork:
    """The network of an explorer, asked about images that are changed by hand."""

    explorer: Explorer
    model: Model
    max_bytes: int
    _clean_answers: OrderedDict[str, list[ClassAnswer]] = field(
        default_factory=OrderedDict[str, list[ClassAnswer]]
    )

    @cached_property
    def uploads(self) -> UploadShelf:
        """The images that were sent."""
        network = self.explorer.scan.description.network
        return UploadShelf(network.size, network.short_side, self.model.channels)

    @cached_property
    def ablated_models(self) -> AblatedModels:
        """The networks without units that were switched off."""
        return AblatedModels(self.model)

    def describe(self) -> LiveState:
        """What can be asked for."""
        scan = self.explorer.scan
        layers = [
            LiveLayer(name=name, units=layer.units)
            for name, layer in scan.description.layers.items()
        ]
        return LiveState(
            network=escape_for_display(str(scan.recipe.get("model"))),
            size=scan.size,
            layers=layers,
            attributions=list(ATTRIBUTIONS),
            images=scan.images,
            max_bytes=self.max_bytes,
        )

    def read_image(self, name: str) -> Tensor:
        """An image of the scan («s-ID») or one that was sent, 1×C×rows×columns in [0, 1].

        Raises SightlineError for one that is not here.
        """
        kind, _, key = name.partition("-")
        if kind == "u":
            return self.uploads.get(name).image
        return self.explorer.read_input(int(key))

    @torch.no_grad()
    def answer(self, request: LiveRequest) -> LiveAnswer:
        """What the network makes of a change. Only one thread at a time may ask.

        Raises SightlineError for layers, units and images that are not there.
        """
        started = time.perf_counter()
        scan = self.explorer.scan
        units_off = resolve_units_off(scan, request.off)
        layer = None
        if request.layer is not None:
            layer = scan.resolve_layer("layer", request.layer, scan.layers)
        image = self.read_image(request.image)
        changed = cover_image(image, request.cover, request.brush)
        clean = self.find_clean_answer(request.image, image)

        model = self.ablated_models.get(units_off)
        features, logits = self.run_network(model, changed)
        classes = self.name_classes(logits)
        attribution = None
        if request.attribution is not None and classes:
            attribution = self.compute_attribution(model, changed, request.attribution, classes[0])
        ranking = self.rank_units(changed, features)
        strongest = ranking.select(layer, request.units)
        return LiveAnswer(
            answer=classes,
            clean=clean,
            units=strongest,
            layers={name: ranking.select(name, UNITS_PER_LAYER) for name in features},
            maps=[
                activation_map for unit in strongest for activation_map in ranking.read_maps(unit)
            ],
            attribution=attribution,
            size=scan.size,
            seconds=round(time.perf_counter() - started, 4),
        )

    def run_network(self, model: Model, image: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The features of the scan's layers by name, and the scores; None where there are none."""
        layers = {name: model.layer(name) for name in self.explorer.scan.layers}
        image = image.to(model.device)
        has_scores = self.explorer.has_classes
        captured_layers = set(layers.values()) | ({"logits"} if has_scores else set())
        tensors = model.run(image, captured_layers)
        features = {name: tensors[layer].float().cpu() for name, layer in layers.items()}
        return features, tensors["logits"].float().cpu() if has_scores else None

    def find_clean_answer(self, name: str, image: Tensor) -> list[ClassAnswer]:
        """The answer to the unchanged image by the whole network, which is computed once."""
        if name not in self._clean_answers:
            _, logits = self.run_network(self.model, image)
            self._clean_answers[name] = self.name_classes(logits)
            while len(self._clean_answers) > MAX_CLEAN_ANSWERS:
                self._clean_answers.popitem(last=False)
        return self._clean_answers[name]

    def name_classes(self, logits: Tensor | None) -> list[ClassAnswer]:
        """The most probable classes, best first."""
        if logits is None:
            return []
        probabilities = self.model.to_probabilities(logits.to(self.model.device))[0].cpu()
        count = min(ANSWER_CLASSES, len(probabilities))
        values, indices = probabilities.topk(count)
        return [
            ClassAnswer(index=index, label=self.model.labels[index], probability=finite(value))
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def rank_units(self, image: Tensor, features: dict[str, Tensor]) -> "UnitRanking":
        """How strong each unit is, as a share of its strongest response in the scan."""
        maps: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        for layer, feature in features.items():
            grid = reshape_to_unit_grid(feature, image, self.model, self.model.layer(layer))[0]
            values = grid.flatten(1).amax(1)
            share = values / self.unit_maxima[layer].clamp_min(1e-12)
            # A unit whose responses are all negative has no share of a largest one.
            share = torch.where(self.unit_maxima[layer] > 0, share, 0.0)
            maps[layer] = grid
            shares[layer] = share
        return UnitRanking(self.explorer, maps, shares)

    @cached_property
    def unit_maxima(self) -> dict[str, Tensor]:
        """The strongest response of each unit in the scan, by layer."""
        scan = self.explorer.scan
        return {layer: scan.top(layer).values[0] for layer in scan.layers}

    def compute_attribution(
        self, model: Model, image: Tensor, name: AttributionName, answer: ClassAnswer
    ) -> AttributionMap:
        """The attribution of a class to the pixels."""
        method, class_parameter, settings = ATTRIBUTIONS[name]
        parameters = {**settings, class_parameter: answer.index}
        with torch.enable_grad():
            function = load_methods()[method].function
            result = function(model, image, **parameters)
        attribution = torch.as_tensor(result.values["attribution"])[0].float()
        signed = bool((attribution < 0).any())
        limit = max(float(attribution.abs().flatten().quantile(ATTRIBUTION_QUANTILE)), 1e-12)
        scaled = (attribution / limit).clamp(-1, 1)
        levels = 128 + 127 * scaled if signed else 255 * scaled
        height, width = attribution.shape
        return AttributionMap(
            name=name,
            label=answer.label,
            height=height,
            width=width,
            limit=finite(limit),
            signed=signed,
            bytes=encode_levels(levels),
        )


@dataclass(frozen=True)
class UnitRanking:
    """The units of an image's features: maps, units×rows×columns, and shares, by layer."""

    explorer: Explorer
    maps: dict[str, Tensor]
    shares: dict[str, Tensor]

    def select(self, layer: str | None, count: int) -> list[UnitActivity]:
        """The strongest units of a layer, or of all, strongest first."""
        layers = list(self.shares) if layer is None else [layer]
        candidates: list[tuple[float, str, int]] = []
        for name in layers:
            shares, units = self.shares[name].topk(min(count, len(self.shares[name])))
            for share, unit in zip(shares.tolist(), units.tolist(), strict=True):
                candidates.append((-share, name, unit))
        candidates.sort(key=lambda candidate: candidate[0])
        return [self.describe_unit(name, unit) for _, name, unit in candidates[:count]]

    def describe_unit(self, layer: str, unit: int) -> UnitActivity:
        """A unit with its response."""
        return UnitActivity(
            layer=layer,
            unit=unit,
            value=finite(float(self.maps[layer][unit].amax())),
            share_of_max=finite(float(self.shares[layer][unit])),
            link=self.explorer.link("unit", layer=layer, unit=unit),
        )

    def read_maps(self, activity: UnitActivity) -> list[ActivationMap]:
        """The unit's map; none where its layer has no positions."""
        values = self.maps[activity.layer][activity.unit]
        rows, columns = values.shape
        if rows * columns == 1:
            return []
        low = float(values.amin())
        high = float(values.amax())
        levels = (values - low) / max(high - low, 1e-12) * 255
        activation = ActivationMap(
            layer=activity.layer,
            unit=activity.unit,
            rows=rows,
            columns=columns,
            low=finite(low),
            high=finite(high),
            bytes=encode_levels(levels),
        )
        return [activation]


def encode_levels(levels: Tensor) -> str:
    """Numbers from 0 to 255 as bytes in rows, as Base64."""
    pixels = levels.nan_to_num().round().clamp(0, 255).to(torch.uint8)
    return base64.b64encode(pixels.contiguous().numpy().tobytes()).decode()


def finite(value: float) -> float:
    """A number with six digits that JSON can hold; 0 for one that is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else 0.0
