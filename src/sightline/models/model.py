"""The model: a network with its preprocessing, labels and layer names, whose layers can be read.

The caller's network is never changed. The work happens in a private copy of the module tree that
shares the weights' storage.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from typing import Any, Self

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, is_out_of_memory, make_unknown_name_error
from sightline.images.validation import check_image
from sightline.models.heads.labels import find_label_index
from sightline.models.heads.output_head import OUTPUT_KIND_DESCRIPTIONS, Head, OutputKind
from sightline.models.heads.recognition import HeadHints
from sightline.models.heads.target_text import TargetChoice, make_target
from sightline.models.layers.capture import (
    Capture,
    Layer,
    StopForwardPass,
    find_first_tensor,
    split_call_name,
)
from sightline.models.layers.landmarks import LANDMARK_NAMES, guess_landmarks
from sightline.models.layers.listing import (
    LayerListing,
    find_layer_by_index,
    is_layer_pattern,
    match_one_layer,
)
from sightline.models.network.copy import make_private_network
from sightline.models.network.guard import list_nearby_sizes, make_network_error
from sightline.models.network.inputs import (
    NUMBER_FORMS,
    ExtraInputs,
    Preprocess,
    apply_layout,
    make_network_inputs,
    parse_layout_words,
)
from sightline.models.network.probe import NetworkFindings, make_probe_images, probe_network
from sightline.models.overrides.onednn import use_packed_weights
from sightline.models.preprocessing import (
    PICTURE_CHANNELS,
    call_preprocess,
    check_bands,
    check_channel_statistics,
    check_image_size,
    convert_to_luminance,
    fit_image,
    show_as_picture,
)
from sightline.models.weights.known_input import check_known_weights_input

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Model:
    """A network with its preprocessing, labels and layer names.

    Args:
        network: any eager `nn.Module`. It keeps its weights, buffers, hooks, modes and flags.
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
        lock: an `RLock`, held while the network runs with hooks, which other threads must not meet.
        overwritten_calls: module calls whose output a later in-place operation overwrites; `run`
            finds them and lets the network go on with a copy.
        allows_nan: whether NaN scores are passed on; else they are refused.
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
        if mean is None and std is None and preprocess is not None:
            mean, std = (0.0,) * 3, (1.0,) * 3
        means, deviations = check_channel_statistics(
            IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std
        )
        self.image_size = check_image_size(size)
        self.size = min(self.image_size)
        self.resize = resize or self.size
        self.channels = 3 if len(means) in PICTURE_CHANNELS else len(means)
        self.bands = check_bands(bands, self.channels)
        check_output_kind(output_kind)

        with torch.inference_mode(False):  # what is made in inference mode never has a gradient
            private = make_private_network(network)
            first_weight = next(private.parameters(), torch.empty(0))
            self.device = torch.device(device) if device is not None else first_weight.device
            self.network = private.to(self.device)
            dtype = first_weight.dtype if first_weight.is_floating_point() else torch.float32
            statistics = torch.tensor([means, deviations], device=self.device, dtype=dtype)
        self.mean, self.std = statistics.view(2, 1, -1, 1, 1).unbind()
        self.name = name or type(network).__name__

        self.output = output
        self.unit = unit
        self.recipe = dict(recipe or {"model": self.name})
        self.aliases = dict(aliases or {})
        self.overwritten_calls: set[str] = set()
        self.lock = threading.RLock()
        self.allows_nan = False
        self._preprocess = preprocess if callable(preprocess) else None
        self._layout: tuple[str, ...] = ()
        if preprocess is not None and not callable(preprocess):
            self._layout = parse_layout_words(preprocess)
        self._inputs = make_network_inputs(self.network, inputs)
        self._inputs_settled = not self._inputs.holds_numbers
        self._output_kind: OutputKind | None = output_kind
        self._target_head: Head | None = None
        self._custom_labels = tuple(labels)
        self._custom_landmarks = dict(landmarks or {})
        check_known_weights_input(self.network, self.normalize, self.size, self.name)

    def __repr__(self) -> str:
        facts = [repr(self.name), self._describe_scores(), self._describe_input(), str(self.device)]
        return f"Model({', '.join([*facts, *self.findings.notes])})"

    def _describe_scores(self) -> str:
        """«logits of 1000 classes»."""
        try:
            count = len(self.labels)
        except SightlineError:
            return "no class scores"
        if self.output_kind == "binary":
            return "binary: one score, for no and yes"
        noun = {"regression": "numbers", "embedding": "dimensions", "target": "score"}
        of_unit = f" in {self.unit}" if self.unit else ""
        return f"{self.output_kind} of {count} {noun.get(self.output_kind, 'classes')}{of_unit}"

    def _describe_input(self) -> str:
        """«224 px, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)»."""
        height, width = self.image_size
        size = f"{height} px" if height == width else f"{height}×{width} px"
        if self._preprocess is not None:
            return f"{size}, preprocess={getattr(self._preprocess, '__name__', 'a function')}"
        mean = ", ".join(f"{value:.3g}" for value in self.mean.flatten().tolist())
        std = ", ".join(f"{value:.3g}" for value in self.std.flatten().tolist())
        layout = f", {' '.join(self._layout)}" if self._layout else ""
        return f"{size}, mean ({mean}), std ({std}){layout}"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that copies and other processes get one of their own."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.RLock()

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

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that gives a tensor, by name, in the order of the forward pass.

        These are module calls, and functional steps such as `layer1.0/relu`.
        """
        alias_of = {path: alias for alias, path in self.aliases.items()}
        listing = LayerListing(self.network, alias_of)
        with self.lock, torch.no_grad():
            listing.run_forward_pass(lambda: self.run_network(self.blank()))
        return listing.layers

    @cached_property
    def landmarks(self) -> Mapping[str, str]:
        """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names.

        `NAME:in` is the input of a layer's module.
        """
        layers = list(self.layers.values())
        modules = [self.module(layer.name) for layer in layers]
        return {**guess_landmarks(layers, modules), **self._custom_landmarks}

    def layer(self, name: str | int) -> str:
        """Resolves a layer's name, alias, landmark, index or pattern to its name.

        An index counts the layers in the order of the forward pass from 0, or from the end if it is
        negative. A pattern such as "features.*.conv" has to match exactly one layer.

        Raises SightlineError with the closest name for an unknown one, and with the matches of a
        pattern that has several.
        """
        name = str(name)
        resolved = self.aliases.get(name, name)
        # Finding landmarks takes a few passes, which a plain name need not wait for.
        if name in LANDMARK_NAMES or name in self._custom_landmarks:
            resolved = self.landmarks.get(name, resolved)
        if resolved == "logits" or resolved.removesuffix(":in") in self.layers:
            return resolved
        if is_layer_pattern(name):
            return match_one_layer(name, self.layers)
        if re.fullmatch("-?[0-9]{1,9}", name):
            return find_layer_by_index(int(name), list(self.layers))
        candidates = [*self.aliases, *self.landmarks, *self.layers]
        raise make_unknown_name_error("layer", name, candidates)

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
        hints = HeadHints(
            network=self.network,
            selector=self.output,
            kind=self._output_kind,
            labels=self._custom_labels,
            unit=self.unit,
            network_name=self.name,
        )
        images = make_probe_images((self.channels, *self.image_size), self.device)
        with self.lock:
            return probe_network(self.run_network, images, hints)

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
        head = make_target(target).bind(self)
        model = object.__new__(type(self))
        vars(model).update(vars(self))
        vars(model).pop("labels", None)
        model._target_head = head
        return model

    def require_classes(self, method: str) -> None:
        """Raises SightlineError unless the scores are those of classes or labels."""
        if self.output_kind in ("regression", "embedding"):
            raise SightlineError(
                f"{method} needs classes; {self.name} gives "
                f"{OUTPUT_KIND_DESCRIPTIONS[self.output_kind]} ({self.output_kind}). If these are "
                "class scores, say so: output_kind='logits'"
            )

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One name per score: the given ones, else `class 0`, `class 1`, …

        Raises SightlineError when another number of labels was given than the network has logits.
        """
        return self.head.name_scores(self._custom_labels, self.name)

    def choose(self, label: int | str, image: Tensor, logits: Tensor | None = None) -> Tensor:
        """Class index for each image, N.

        "top" is the predicted class, from `logits` if they are already computed; anything else is
        an index or name of a class, as for `index`.
        """
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
        return find_label_index(self.labels, label, self.name)

    # ── images ──

    @property
    def is_gray(self) -> bool:
        """Whether the network sees the luminance of color images."""
        return self.mean.shape[1] == 1 and self._preprocess is None

    def blank(self) -> Tensor:
        """A gray image of the network's own size, 1×channels×height×width."""
        return torch.full((1, self.channels, *self.image_size), 0.5, device=self.device)

    def fit(self, image: Tensor, size: int | None = None) -> Tensor:
        """What the network was made to see of an image, N×channels×height×width.

        The short side is resized to `resize` pixels and the centre of `size` pixels is cropped. A
        `size` of your own keeps their ratio. Raises SightlineError for anything that is no image.
        """
        checked = check_image(image, channels=self.channels)
        height, width = self.image_size
        if size is not None:
            height, width = (round(side * size / self.size) for side in self.image_size)
        return fit_image(checked, (height, width), self.resize / self.size)

    def to_picture(self, image: Tensor) -> Tensor:
        """What pictures show of an image N×channels×H×W: N×3×H×W, three of its bands."""
        return show_as_picture(image, self.bands)

    def normalize(self, image: Tensor) -> Any:
        """What the network is fed for an image N×channels×H×W in [0, 1].

        On the network's device, in its precision, normalized, as luminance for a network of one
        channel. The memory format is channels_last, which is faster on the CPU. With `preprocess`,
        whatever that function returns.
        """
        image = image.to(self.mean)
        if self._preprocess is not None:
            return call_preprocess(self._preprocess, image)
        if self.mean.shape[1] == 1:
            image = convert_to_luminance(image)
        normalized = (image - self.mean) / self.std
        if self._layout:
            return apply_layout(normalized, self._layout)
        return normalized.contiguous(memory_format=torch.channels_last)

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
            capture, _ = self._run_capture(image, names, leaf, on_layer)
            capture.require_all_tensors(self.name)
            return capture.tensors
        head = self.head
        wanted = (names - {"logits"}) | set(head.layers)
        capture, output = self._run_capture(
            image, wanted, leaf, on_layer, run_to_end=head.needs_output
        )
        capture.require_all_tensors(self.name)
        selected = head.select(output) if head.needs_output else None
        scores = head.read_scores(selected, capture.tensors, image.shape)
        if not self.allows_nan and bool(scores.isnan().any()):
            raise self._make_nan_error(image)
        return {**capture.tensors, "logits": scores}

    def read_scores(self, output: Any, image_shape: Sequence[int]) -> Tensor:
        """Scores N×K from what the network returned for images of this shape N×C×H×W."""
        head = self.head
        return head.read_scores(head.select(output), {}, image_shape)

    def run_with_output(
        self, image: Tensor, layers: Iterable[str]
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the network itself returns, and the tensors of layers by name."""
        capture, output = self._run_capture(image, set(layers), None, None, run_to_end=True)
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

    def _run_capture(
        self,
        image: Tensor,
        names: set[str],
        leaf: str | None,
        on_layer: Callable[[str, Tensor], object] | None,
        *,
        run_to_end: bool = False,
    ) -> tuple[Capture, Any]:
        """A forward pass: the layers' tensors, and the network's output if it ran to its end.

        It is repeated where the network overwrote one of the tensors later.
        """

        def run_once() -> tuple[Capture, Any]:
            capture = Capture(
                self.network,
                names,
                copied_calls=self.overwritten_calls,
                run_to_end=run_to_end,
                leaf=leaf,
                on_layer=on_layer,
            )
            return capture, capture.run_forward_pass(lambda: self.run_network(image))

        with self.lock:
            capture, output = run_once()
            overwritten = capture.find_overwritten_calls()
            if overwritten:
                self.overwritten_calls |= overwritten
                capture, output = run_once()
        return capture, output

    def _make_nan_error(self, image: Tensor) -> SightlineError:
        """The error for NaN scores, with the first layer that has NaN."""
        broken: list[str] = []

        def check_layer(name: str, tensor: Tensor) -> None:
            if not broken and tensor.is_floating_point() and bool(tensor.isnan().any()):
                broken.append(name)

        with torch.no_grad():
            self._run_capture(image[:1], set(self.layers), None, check_layer, run_to_end=True)
        place = f"the first layer with NaN is {broken[0]}" if broken else "only its output has NaN"
        return SightlineError(
            f"{self.name} gives NaN for this image ({place}); nothing can be shown of it"
        )

    # ── running the network ──

    def run_network(self, image: Tensor) -> Any:
        """What the network itself returns for an image, which is normalized first.

        Raises SightlineError with the network's own error for an image that it can't take.
        """
        if not self._inputs_settled:
            self._settle_number_form()
        prepared = self.normalize(image)
        try:
            with use_packed_weights():
                return self.call_network(prepared, len(image))
        except SightlineError:
            raise
        except Exception as error:
            if isinstance(error, StopForwardPass) or is_out_of_memory(error):
                raise
            raise make_network_error(
                error,
                network=self.network,
                name=self.name,
                image_shape=tuple(image.shape),
                network_size=self.image_size,
                find_size=lambda: self._find_nearby_size(image),
            ) from error

    def call_network(self, prepared: Any, batch: int) -> Any:
        """The network's answer to what `normalize` gives, with its further inputs."""
        extra = self._inputs.make_arguments(batch, self.mean)
        if self._inputs.image_parameter:
            return self.network(**{self._inputs.image_parameter: prepared}, **extra)
        return self.network(prepared, **extra)

    def _settle_number_form(self) -> None:
        """Finds how the network takes a number among its inputs: as N×1, N or the number itself."""
        self._inputs_settled = True
        images = make_probe_images((self.channels, *self.image_size), self.device)
        given = self._inputs
        for form in NUMBER_FORMS:
            self._inputs = replace(given, number_form=form)
            try:
                with torch.no_grad():
                    output = self.call_network(self.normalize(images), len(images))
            except Exception:  # noqa: BLE001 - the next form is tried; the last error is told below
                continue
            tensor = find_first_tensor(output)
            if tensor is not None and len(tensor) == len(images):
                return
        self._inputs = given

    def _find_nearby_size(self, image: Tensor) -> tuple[int, int] | None:
        """A size near the image's that the network takes; None where none is found."""
        for height, width in list_nearby_sizes(*image.shape[-2:]):
            blank = image.new_full((1, image.shape[1], height, width), 0.5)
            try:
                with torch.no_grad():
                    self.call_network(self.normalize(blank), 1)
            except Exception:  # noqa: BLE001 - this size is as bad as the one that was asked for
                continue
            return height, width
        return None


def check_output_kind(kind: str | None) -> None:
    """Raises SightlineError for a kind of output that can't be declared."""
    allowed = ("logits", "probabilities", "binary", "multilabel", "regression", "embedding")
    if kind is not None and kind not in allowed:
        raise make_unknown_name_error("output_kind", kind, allowed)


def _format_html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with escaped cells."""
    cells = [f"<th>{escape(title)}</th>" for title in header]
    lines = [f"<tr>{''.join(cells)}</tr>"]
    for row in rows:
        cells = [f"<td>{escape(value)}</td>" for value in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
