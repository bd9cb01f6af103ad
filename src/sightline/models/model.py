"""The model: a network with its preprocessing, labels and layer names, whose layers can be read.

The caller's network is never changed. The work happens in a private copy of the module tree that
shares the weights' storage.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from html import escape
from typing import Any, Self, cast, get_args

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, escape_for_display, make_unknown_name_error
from sightline.images.validation import check_image
from sightline.models.ablation import AblatedModel, Ablation, AblationFill, make_ablation
from sightline.models.heads.labels import ClassChoice, check_class_count, find_label_index
from sightline.models.heads.output_head import (
    OUTPUT_KIND_DESCRIPTIONS,
    PLACE_KINDS,
    DeclaredKind,
    Head,
    OutputHead,
    OutputKind,
)
from sightline.models.heads.recognition import HeadHints
from sightline.models.heads.target_head import ScoredModel
from sightline.models.heads.target_text import TargetChoice, make_target
from sightline.models.layers.capture import (
    Layer,
    is_module_path,
    make_plain_tensor,
    split_call_name,
)
from sightline.models.layers.feature_maps import describe_image_count
from sightline.models.layers.landmarks import (
    LANDMARK_NAMES,
    InspectedModel,
    find_landmarks,
    make_missing_landmark_error,
)
from sightline.models.layers.listing import (
    LayerListing,
    find_layer_by_index,
    is_layer_pattern,
    match_layer_names,
    match_one_layer,
)
from sightline.models.network.copy import copy_network
from sightline.models.network.inputs import (
    ExtraInputs,
    Preprocess,
)
from sightline.models.network.probe import (
    RANDOM_NOTE,
    NetworkFindings,
    is_last_answer_same,
    probe_network,
)
from sightline.models.network.runner import NetworkRunner
from sightline.models.overrides.mode import suspend_overrides
from sightline.process.default_device import make_tensors_on_cpu
from sightline.process.locks import ForkSafeLock

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

logger = logging.getLogger(__name__)


class Model(NetworkRunner):
    """A network with its preprocessing, labels and layer names.

    Args:
        network: any eager `nn.Module`. It keeps its weights, buffers, hooks, modes and flags. Its
            forward hooks run in the private copy, and act on the copy.
        name: what messages and recipes call it; by default the module's class.
        mean: channel means that normalize a [0, 1] image; one value for a network that sees
            luminance, as many values as bands for other images. By default those of ImageNet,
            or none where `preprocess` is given.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels of the images that the network was trained on, or (height, width).
        resize: short side in pixels before the centre crop to `size`; by default `size`.
        aliases: customary layer names, as alias → layer name.
        landmarks: layer names that replace guessed landmarks.
        output: which of several outputs are the scores: an index, a key, or a path such as
            "heads.sex".
        output_kind: what the output means, where it can't be found from its values: "logits",
            "probabilities", "binary", "multilabel", "regression" or "embedding".
        unit: of a regression, such as "years".
        inputs: further inputs of the network, by the name of `forward`'s parameter, or a function
            of the batch size that returns them. The image goes to the first other parameter.
        preprocess: a function from an image N×C×H×W in [0, 1] to what the network takes, which
            replaces normalization; or words for its layout: "bgr", "0..255", "nhwc", "uint8".
        bands: which three bands pictures of an image with other channels show as red, green and
            blue; by default the first three.
        device: where to run; by default where the network's parameters are.
        recipe: how to load the same model again, JSON-able.

    Raises SightlineError for networks that can't be copied, NaN weights, a mean and std of
    different lengths, impossible sizes, unknown inputs, and known weights that would be fed images
    of another range or order.

    Attributes:
        network: the private copy: frozen, in evaluation mode, on `device`.
        mean, std: tensors 1×C×1×1 on the device, in the network's precision.
        image_size: height and width of the images that the network was trained on.
        size: the shorter of both.
        resize: short side before the centre crop.
        channels: of the images that the network is given: 3 for networks that see luminance too.
        name, device, output, aliases, bands, unit, recipe: as given.
        lock: reentrant, held while the network runs with hooks, which other threads must not meet.
        has_plain_layout: whether the network gets images in torch's default memory layout, since it
            takes no other; it is then run by torch's own operations.
        overwritten_calls: module calls whose output a later in-place operation overwrites; `run`
            finds them and lets the network go on with a copy.
        allows_nan: whether NaN scores are passed on; else they are refused.
        weights_note: what every result says of the weights, such as that they are random; or empty.
        ablations: which units are off, in the order in which they were turned off.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        labels: Sequence[str] = (),
        size: int | tuple[int, int] = 224,
        resize: int | None = None,
        aliases: Mapping[str, str] | None = None,
        landmarks: Mapping[str, str] | None = None,
        output: int | str | None = None,
        output_kind: OutputKind | None = None,
        unit: str = "",
        inputs: ExtraInputs | None = None,
        preprocess: Preprocess | None = None,
        bands: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        check_output_kind(output_kind)
        super().__init__(
            network,
            name=name,
            mean=mean,
            std=std,
            size=size,
            resize=resize,
            inputs=inputs,
            preprocess=preprocess,
            bands=bands,
            device=device,
        )
        self.output = output
        self.unit = unit
        self.recipe = dict(recipe or {"model": self.name})
        self.aliases = dict(aliases or {})
        self.allows_nan = False
        self.weights_note = ""
        self.ablations: tuple[Ablation, ...] = ()
        self._output_kind: OutputKind | None = output_kind
        self._target_head: Head | None = None
        self._untargeted: Model | None = None
        self._intact: Model | None = None
        self._custom_labels = tuple(labels)
        self._custom_landmarks = dict(landmarks or {})
        self._shadowed_landmarks: set[str] = set()

    def __repr__(self) -> str:
        facts = [repr(self.name), self._describe_scores(), self.describe_input(), str(self.device)]
        facts += map(str, self.ablations)
        return f"Model({', '.join([*facts, *self.findings.notes])})"

    def _describe_scores(self) -> str:
        """«logits of 1000 classes»."""
        try:
            count = len(self.labels)
        except SightlineError:
            return "no class scores"
        if self.output_kind == "binary":
            return "binary: one score, for no and yes"
        nouns = {"embedding": "dimensions", "target": "scores"}
        noun = "numbers" if self.gives_numbers else nouns.get(self.output_kind, "classes")
        if count == 1:
            noun = noun.removesuffix("es" if noun == "classes" else "s")
        of_unit = f" in {self.unit}" if self.unit else ""
        return f"{self.output_kind} of {count} {noun}{of_unit}"

    def _repr_html_(self) -> str:
        """Tables of the layers and landmarks, for notebooks."""
        layer_rows = [
            (layer.name, layer.kind, "×".join(map(str, layer.shape)), layer.alias)
            for layer in self.layers.values()
        ]
        layer_table = _format_html_table(("layer", "kind", "shape", "alias"), layer_rows)
        landmark_table = _format_html_table(("landmark", "layer"), self.landmarks.items())
        return (
            f"<p><code>{escape(repr(self))}</code></p>"
            f'<div style="max-height: 30em; overflow: auto">{layer_table}</div>'
            f"{landmark_table}"
        )

    @property
    def body(self) -> nn.Module:
        """The private copy, by its older name."""
        return self.network

    # ── layers ──

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that gives a tensor, by name, in the order of the forward pass.

        These are module calls, and functional steps such as `layer1.0/relu`.
        """
        return self._listed_layers

    @cached_property
    def _listed_layers(self) -> Mapping[str, Layer]:
        blank = self.blank()
        layers = self.findings.layers or self._list_layers_of(blank)
        if self._repeats_weights(layers):
            plain = (blank, torch.zeros_like(blank), torch.ones_like(blank))
            for image in (*plain, self.make_probe_images()[:1]):
                with suppress(SightlineError):
                    common = self._list_layers_of(image)
                    both = {name: layer for name, layer in layers.items() if name in common}
                    layers = both or layers
        alias_of = {path: alias for alias, path in self.aliases.items()}
        return {
            name: replace(layer, alias=alias_of.get(name, "")) for name, layer in layers.items()
        }

    def _repeats_weights(self, layers: Mapping[str, Layer]) -> bool:
        """Whether the network runs layers with weights repeatedly.

        How often may then depend on the image; what several images pass is listed.
        """
        calls = [layer.name for layer in layers.values() if not layer.step]
        return any(
            name != split_call_name(self.network, name)[0]
            and any(parameter.ndim > 1 for parameter in self.module(name).parameters())
            for name in calls
        )

    def _list_layers_of(self, image: Tensor) -> Mapping[str, Layer]:
        """The layers of an image's pass. Raises SightlineError for a network that fails."""

        def list_once() -> Mapping[str, Layer]:
            listing = LayerListing(self.network)
            listing.run_forward_pass(lambda: self.run_network(image))
            return listing.layers

        with self.lock, torch.inference_mode(False), torch.no_grad():
            self.settle_inputs()
            return self.repeat_in_plain_layout(list_once)

    @cached_property
    def landmarks(self) -> Mapping[str, str]:
        """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names.

        `NAME:in` is the input of a layer's module.
        """
        # They depend on the gradient of the class scores, not of what is asked about, and on that
        # of the network with all its units.
        reference = self._untargeted or self._intact
        if reference is not None:
            return reference.landmarks
        custom = self._custom_landmarks
        with make_tensors_on_cpu():
            return {**find_landmarks(cast(InspectedModel, self), custom), **custom}

    def layer(self, name: str | int) -> str:
        """Resolves a layer's name, alias, landmark, index or pattern to its name.

        An index counts the layers in the order of the forward pass from 0, or from the end if it is
        negative. A pattern such as "features.*.conv" has to match exactly one layer. A layer of the
        network's own goes before a landmark of the same name, with a warning.

        Raises SightlineError with the closest name for an unknown one, and with the matches of a
        pattern that has several.
        """
        name = str(name)
        resolved = self.aliases.get(name, name)
        # Finding landmarks takes a few passes, which a plain name need not wait for.
        is_landmark = name in LANDMARK_NAMES or name in self._custom_landmarks
        if is_landmark and name not in self.layers:
            resolved = self.landmarks.get(name, resolved)
        elif is_landmark:
            self._warn_of_shadowed_landmark(name)
        if resolved == "logits" or resolved.removesuffix(":in") in self.layers:
            return resolved
        if is_layer_pattern(name):
            return match_one_layer(name, self.layers)
        if re.fullmatch("-?[0-9]{1,9}", name):
            return find_layer_by_index(int(name), list(self.layers))
        if name in LANDMARK_NAMES:
            raise make_missing_landmark_error(name, self)
        if is_module_path(self.network, resolved):
            raise SightlineError(
                f"{name} is a module of {self.name} and no layer: when the network runs, it gives "
                "no tensor of features, or complex numbers; choose another"
            )
        candidates = [*self.aliases, *self.landmarks, *self.layers]
        raise make_unknown_name_error("layer", name, candidates)

    def _warn_of_shadowed_landmark(self, name: str) -> None:
        """Says once that a layer of the network's own stands for a landmark of the same name."""
        landmark = self.landmarks.get(name)
        if landmark in (None, name) or name in self._shadowed_landmarks:
            return
        self._shadowed_landmarks.add(name)
        logger.warning(
            "%r is taken as the network's own layer of that name, not as the landmark, which is %s",
            name,
            landmark,
        )

    def match_layers(self, names: Iterable[str | int]) -> tuple[str, ...]:
        """The names with every pattern, such as "features.*.conv", replaced by all its matches.

        Raises SightlineError for a pattern that matches no layer.
        """
        matches: list[str] = []
        for name in map(str, names):
            is_pattern = is_layer_pattern(name) and name not in self.layers
            matches.extend(match_layer_names(name, self.layers) if is_pattern else [name])
        return tuple(matches)

    def module(self, name: str) -> nn.Module:
        """The module behind a layer's name; for a functional step the module that contains it.

        It belongs to the private copy: don't change it.
        """
        path, _ = split_call_name(self.network, name)
        return self.network.get_submodule(path)

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of a layer's output for an image of the network's size, without the batch.

        Raises SightlineError for an unknown name.
        """
        name = self.layer(layer)
        if name.endswith(":in"):
            return tuple(self.run(self.blank(), [name])[name].shape[1:])
        if name == "logits":
            return (len(self.labels),)
        return self.layers[name].shape

    # ── what the output means ──

    @cached_property
    def findings(self) -> NetworkFindings:
        """What one run on two images shows: the head, and whether images may share a batch."""
        return self._probe(self.image_size)

    def _probe(self, size: tuple[int, int]) -> NetworkFindings:
        """What one run on two images of this size shows."""
        hints = HeadHints(
            network=self.network,
            selector=self.output,
            kind=self._output_kind,
            labels=self._custom_labels,
            unit=self.unit,
            network_name=self.name,
            image_size=size,
        )
        is_plain = self.has_plain_layout

        # One of the runs has two images, the layout of all later ones, and modules in place if they
        # are. The other one has a gradient.
        def run(images: Tensor) -> Any:
            with self.watch_writes(), self.modules_in_place():
                output = self.repeat_in_plain_layout(lambda: self.run_network(images))
            self.in_place_writes.is_known = True
            return output

        def run_plainly(images: Tensor) -> Any:
            with self.try_plain_layout(), self.watch_writes():
                return self.run_network(images)

        # Found once, so not under the backward rules and paddings of a single run.
        # What is made in inference mode never has a gradient, such as weights laid out anew.
        with self.lock, suspend_overrides(), make_tensors_on_cpu(), torch.inference_mode(False):
            self.settle_inputs()
            images = self.make_probe_images(size)
            has_two_ways = not is_plain or bool(self.in_place_modules)
            findings = probe_network(run, images, hints, run_plainly if has_two_ways else None)
            if self._goes_on_in_place(findings, images):
                self.keep_in_place()
                findings = probe_network(run, images, hints, None if is_plain else run_plainly)
            if findings.needs_plain_layout:
                self.use_plain_layout()
                findings = probe_network(run, images, hints)
            return findings

    def _goes_on_in_place(self, findings: NetworkFindings, images: Tensor) -> bool:
        """Whether the network goes on by what modules wrote over what they were given.

        It does if it calls `self.relu(x)` and reads `x`, and has another answer otherwise.
        """
        head = findings.head
        is_clear = not (findings.notes or findings.needs_plain_layout or findings.runs_one_by_one)
        if not self.in_place_modules or head is None or is_clear or RANDOM_NOTE in findings.notes:
            return False
        with torch.no_grad():
            output = self.run_network(images[-1:].clone())
            with self.modules_in_place():
                in_place_output = self.run_network(images[-1:].clone())
        return not is_last_answer_same(in_place_output, output, head)

    def probe_at_size_of(self, image: Tensor) -> None:
        """Finds what the output means for images of this size, if it was not found for its own."""
        size = (image.shape[-2], image.shape[-1])
        if self._target_head is None and self.findings.head is None and size != self.image_size:
            findings = self._probe(size)
            if findings.head is not None:
                self.findings = replace(findings, layers=self.findings.layers)

    @property
    def head(self) -> Head:
        """How scores are read from the output. Raises SightlineError where there are none."""
        if self._target_head is not None:
            return self._target_head
        if self.findings.head is None:
            raise self.findings.head_error or SightlineError(f"{self.name} gives no scores")
        return self.findings.head

    @property
    def output_kind(self) -> str:
        """What the output means, found once: a key of `OUTPUT_KIND_DESCRIPTIONS`.

        "logits", "probabilities", "binary", "multilabel", "regression", "embedding", "dense",
        "positions", "detections", or "target" for a model that was asked for a target.
        """
        return self.head.kind

    def with_target(self, target: TargetChoice | None) -> Self:
        """This model with a target's score in place of the class scores; itself for None.

        Layers and weights are shared. Raises SightlineError for a target that can't be asked of
        this network.
        """
        if target is None:
            return self
        head = make_target(target).bind(cast(ScoredModel, self))
        model = object.__new__(type(self))
        vars(model).update(vars(self))
        vars(model).pop("labels", None)
        model._target_head = head
        model._untargeted = self
        return model

    # ── without some of its units ──

    @property
    def intact(self) -> "Model":
        """The network with all its units; itself where none is off."""
        return self._intact or self

    def ablated(
        self,
        units: Mapping[str, Sequence[int] | int],
        *,
        fill: AblationFill = "zero",
        images: Tensor | None = None,
        seed: int = 0,
    ) -> Self:
        """This network with units off, as a model for every method. The weights are shared.

        Morcos et al. 2018, "On the importance of single directions for generalization".

        Args:
            units: numbers of units by layer, such as `{"layer4": [12, 40]}`. A layer is named as
                for `layer`; NAME:in is what a layer is given.
            fill: what stands in their place at every position: "zero"; "mean" for each unit's mean
                over the reference images; "resample" for its map in one of these, drawn by `seed`,
                which needs images of one size.
            images: the reference images, N×channels×H×W in [0, 1]; the sample photographs by
                default. A recipe names no others.
            seed: of the drawing.

        What is off stays off in every further model made of this one, and in scans. Raises
        SightlineError for unknown layers and units, for no unit at all, and for a model that was
        asked for a target: turn units off first.
        """
        if self._target_head is not None:
            raise SightlineError(
                "this model was asked for a target; turn units off first, and then ask for it"
            )
        # What is made in inference mode never has a gradient.
        with self.lock, torch.inference_mode(False), torch.no_grad():
            ablation, edits = make_ablation(
                cast(AblatedModel, self), units, fill=fill, images=images, seed=seed
            )
            # What the output means is found with all units.
            _ = self.findings
            network = copy_network(self.network, share_parameters=True)
        edits.attach(network)
        model = object.__new__(type(self))
        vars(model).update(vars(self))
        model.network = network
        model.lock = ForkSafeLock(reentrant=True)
        model.overwritten_calls = set(self.overwritten_calls)
        model.ablations = (*self.ablations, ablation)
        model.recipe = {**self.recipe, "ablated": [item.to_recipe() for item in model.ablations]}
        sentence = str(ablation)
        note = f"{sentence[0].upper()}{sentence[1:]}."
        model.weights_note = f"{self.weights_note} {note}".lstrip()
        model._intact = self.intact
        return model

    @property
    def gives_numbers(self) -> bool:
        """Whether the scores are numbers in their own unit, of the image or of its places."""
        head = self.head
        score_kind = head.score_kind if isinstance(head, OutputHead) else head.kind
        return score_kind == "regression"

    def require_classes(self, method: str) -> None:
        """Raises SightlineError unless the scores are those of classes or labels."""
        if self.gives_numbers or self.output_kind == "embedding":
            description = OUTPUT_KIND_DESCRIPTIONS[self.output_kind]
            if self.output_kind in PLACE_KINDS:
                description = "numbers at every place"
            raise SightlineError(
                f"{method} needs classes; {self.name} gives {description} ({self.output_kind}). "
                "If these are class scores, say so: output_kind='logits'"
            )

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One name per score, as it is shown: the given ones, else `class 0`, `class 1`, …

        Line ends and other characters that are not to be printed are escaped in them, and a name of
        more than 200 characters is cut.

        Raises SightlineError when another number of labels was given than the network has logits.
        """
        names = self.head.name_scores(self._custom_labels, self.name)
        return tuple(map(escape_for_display, names))

    def choose(self, label: ClassChoice, image: Tensor, logits: Tensor | None = None) -> Tensor:
        """Class index for each image, N.

        "top" is the predicted class, from `logits` if they are already computed; anything else is
        an index or name of a class, as for `index`. A list has one of these for each image.
        """
        if isinstance(label, (tuple, list)):
            check_class_count(label, len(image))
            chosen = [
                self.choose(name, image[row : row + 1], None if logits is None else logits[row:])
                for row, name in enumerate(label)
            ]
            return torch.cat([indices[:1] for indices in chosen])
        if label != "top":
            return torch.full((image.shape[0],), self.index(label), device=self.device)
        with torch.no_grad():
            if logits is None:
                logits = self.run(image, ["logits"])["logits"]
            return logits.argmax(1)

    def index(self, label: int | str) -> int:
        """Index of a class by its number, its name, or a part of the name that no other class has.

        The exact spelling counts first, then a number, then the name in any case, then a part of
        it. Raises SightlineError with the closest names, and for a name that several classes have.
        """
        shown_label = escape_for_display(label) if isinstance(label, str) else label
        return find_label_index(self.labels, shown_label, self.name)

    # ── outputs ──

    def logits(self, image: Tensor) -> Tensor:
        """Scores before the softmax, N×classes, of images N×channels×H×W in [0, 1].

        Of a network that gives probabilities, their logarithms. Normalizes, does not resize.
        Differentiable. Raises SightlineError for anything that is no image, and for a size that the
        network can't take.
        """
        return self.run(check_image(image, channels=self.channels), ["logits"])["logits"]

    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities of the classes, N×classes; raises as `logits` does.

        The softmax of the logits; the sigmoid where labels don't exclude each other.
        """
        return self.to_probabilities(self.logits(image))

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities from scores that this model gave, of the same shape."""
        return self.head.to_probabilities(logits)

    def features(self, image: Tensor, layers: str | Iterable[str]) -> dict[str, Tensor]:
        """Outputs of layers, by the name, alias or landmark that was asked for.

        The forward pass stops at the deepest one. Differentiable. Raises as `logits` does, and for
        unknown layers.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        resolved = {name: self.layer(name) for name in names}
        outputs = self.run(check_image(image, channels=self.channels), resolved.values())
        return {name: outputs[layer] for name, layer in resolved.items()}

    def run(
        self,
        image: Tensor,
        layers: Iterable[str],
        *,
        leaf: str | None = None,
        on_layer: Callable[[str, Tensor], object] | None = None,
    ) -> dict[str, Tensor]:
        """`features` for engines: the image is not checked and may leave [0, 1].

        Args:
            image: N×3×H×W.
            layers: layer names as `layer` returns them.
            leaf: a layer whose output becomes a variable without a history: gradients reach back to
                it, and nothing is kept of the layers before it.
            on_layer: called with each inner layer's name and output before the network goes on. The
                gradient of what it computes is then formed only when the network's own has come
                back to that layer.
        """
        names = set(layers)
        if torch.is_inference_mode_enabled():
            # Tensors of inference mode don't count writes, which show the overwritten calls. There
            # are no gradients, so no leaf either.
            with torch.inference_mode(False), torch.no_grad():
                return self.run(image, names, on_layer=on_layer)
        if len(image) > 1 and self.findings.runs_one_by_one:
            return self._run_one_by_one(image, names, leaf, on_layer)
        if "logits" not in names:
            capture, _ = self.capture_layers(image, names, leaf, on_layer)
            capture.require_all_tensors(self.name)
            return capture.tensors
        self.probe_at_size_of(image)
        head = self.head
        captured_layers = (names - {"logits"}) | set(head.layers)
        capture, output = self.capture_layers(
            image, captured_layers, leaf, on_layer, run_to_end=head.needs_output
        )
        capture.require_all_tensors(self.name)
        selected = head.select(output) if head.needs_output else None
        scores = make_plain_tensor(head.read_scores(selected, capture.tensors, image.shape))
        if len(scores) != len(image):
            raise self._make_count_error(len(scores), len(image))
        check_score_count(head, scores, self.name)
        if not self.allows_nan and bool(scores.isnan().any()):
            raise self._make_nan_error(image)
        if scores.requires_grad and not torch.is_grad_enabled():
            scores = scores.detach()  # of a network that turns gradients on by itself
        return {**capture.tensors, "logits": scores}

    def read_scores(self, output: Any, image_shape: Sequence[int]) -> Tensor:
        """Scores N×K from what the network returned for images of this shape N×C×H×W."""
        head = self.head
        return make_plain_tensor(head.read_scores(head.select(output), {}, image_shape))

    def run_with_output(
        self, image: Tensor, layers: Iterable[str]
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the network itself returns, and the tensors of layers by name."""
        capture, output = self.capture_layers(image, set(layers), run_to_end=True)
        return output, capture.tensors

    def _run_one_by_one(
        self,
        image: Tensor,
        names: set[str],
        leaf: str | None,
        on_layer: Callable[[str, Tensor], object] | None,
    ) -> dict[str, Tensor]:
        """`run` for networks whose answer to an image depends on the others of its batch."""
        if leaf is not None:
            raise SightlineError(
                f"{self.name} takes images one by one ({', '.join(self.findings.notes)}): "
                "give one image at a time"
            )
        runs = [self.run(single, names, on_layer=on_layer) for single in image.split(1)]
        return {name: torch.cat([tensors[name] for tensors in runs]) for name in runs[0]}

    def _make_count_error(self, answer_count: int, image_count: int) -> SightlineError:
        """The error for another number of answers than of images."""
        images = describe_image_count(image_count)
        answers = "one answer" if answer_count == 1 else f"{answer_count} answers"
        advice = "ask for a number for each image with target=sl.score(function)"
        if RANDOM_NOTE in self.findings.notes:
            advice = (
                "it answers by what it keeps of the images before, in another number; let it begin "
                "anew in each forward pass"
            )
        return SightlineError(f"{self.name} gives {answers} to {images}; {advice}")

    def _make_nan_error(self, image: Tensor) -> SightlineError:
        """The error for NaN scores, with the first layer that has NaN."""
        broken: list[str] = []

        def check_layer(name: str, tensor: Tensor) -> None:
            if not broken and tensor.is_floating_point() and bool(tensor.isnan().any()):
                broken.append(name)

        with torch.no_grad():
            self.capture_layers(image[:1], set(self.layers), on_layer=check_layer, run_to_end=True)
        place = f"the first layer with NaN is {broken[0]}" if broken else "only its output has NaN"
        return SightlineError(
            f"{self.name} gives NaN for this image ({place}); nothing can be shown of it"
        )


def check_output_kind(kind: str | None) -> None:
    """Raises SightlineError for a kind of output that can't be declared."""
    allowed = get_args(DeclaredKind)
    if kind is not None and kind not in allowed:
        raise make_unknown_name_error("output_kind", kind, allowed)


def check_score_count(head: Head, scores: Tensor, network_name: str) -> None:
    """Raises SightlineError where a network gives another number of scores than it was found to.

    What they stand for then depends on the image, as with the scores of keypoints. A vector of
    features may be longer for a larger image.
    """
    if not isinstance(head, OutputHead) or head.kind == "embedding":
        return
    if scores.shape[1] != head.count:
        raise SightlineError(
            f"{network_name} gives {scores.shape[1]} scores here and {head.count} elsewhere, so "
            "that they are not those of classes; pick others with output=, or ask with "
            "target=sl.score(function)"
        )


def _format_html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with escaped cells."""
    cells = [f"<th>{escape(title)}</th>" for title in header]
    lines = [f"<tr>{''.join(cells)}</tr>"]
    for row in rows:
        cells = [f"<td>{escape(value)}</td>" for value in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
