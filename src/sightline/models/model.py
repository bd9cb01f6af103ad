"""The model: a network with its preprocessing, labels and layer names, whose layers can be read.

The caller's network is never changed. The work happens in a private copy of the module tree that
shares the weights' storage.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.images.color import LUMINANCE_WEIGHTS
from sightline.images.transforms import crop_center, resize_short_side
from sightline.images.validation import check_image
from sightline.models.heads.scores import select_logits
from sightline.models.layers.capture import Capture, Layer, find_first_tensor, format_call_name
from sightline.models.layers.landmarks import guess_landmarks
from sightline.models.network.copy import make_private_network
from sightline.models.overrides.onednn import use_packed_weights
from sightline.models.weights.known_input import check_known_weights_input


class Model:
    """A network with its preprocessing, labels and layer names.

    Args:
        network: any eager `nn.Module`. It keeps its weights, hooks, modes and flags. Forward hooks
            that the caller registered do not run in the private copy.
        name: what messages and recipes call it; by default the module's class.
        mean: channel means that normalize a [0, 1] image; one value for a network that sees
            luminance.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels of the images that the network was trained on.
        resize: short side in pixels before the centre crop to `size`; by default `size`.
        aliases: customary layer names, as alias → layer name.
        landmarks: layer names that replace guessed landmarks.
        output: which of several outputs are the logits: index in a tuple, key in a dict.
        device: where to run; by default where the network's parameters are.
        recipe: how to load the same model again, JSON-able.

    Raises SightlineError for networks that can't be copied, NaN weights, a mean and std of another
    length than 1 or 3, and known weights that would be fed images of another range or order.

    Attributes:
        network: the private copy: frozen, in evaluation mode, on `device`.
        mean, std: tensors 1×C×1×1 on the device, in the network's precision.
        size, resize, name, device, output, aliases, recipe: as given.
        lock: an `RLock`, held while the network runs with hooks, which other threads must not meet.
        overwritten_calls: module calls whose output a later in-place operation overwrites; `run`
            finds them and lets the network go on with a copy.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        labels: Sequence[str] = (),
        size: int = 224,
        resize: int | None = None,
        aliases: Mapping[str, str] | None = None,
        landmarks: Mapping[str, str] | None = None,
        output: int | str | None = None,
        device: torch.device | str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise SightlineError(
                "mean and std need one value for each of 1 or 3 channels; "
                f"they have {len(mean)} and {len(std)}"
            )
        private = make_private_network(network)
        first_weight = next(private.parameters(), torch.empty(0))
        self.device = torch.device(device) if device is not None else first_weight.device
        self.network = private.to(self.device)
        self.name = name or type(network).__name__
        self.size = size
        self.resize = resize or size

        dtype = first_weight.dtype if first_weight.is_floating_point() else torch.float32
        self.mean = torch.tensor(mean, device=self.device, dtype=dtype).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.device, dtype=dtype).view(1, -1, 1, 1)

        self.output = output
        self.recipe = dict(recipe or {"model": self.name})
        self.aliases = dict(aliases or {})
        self.overwritten_calls: set[str] = set()
        self.lock = threading.RLock()
        self._custom_labels = tuple(labels)
        self._custom_landmarks = dict(landmarks or {})
        check_known_weights_input(self.network, self.normalize, size, self.name)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {len(self.labels)} classes, {self.size} px, {self.device})"

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
        """Every module call that gives a tensor, by name, in the order of the forward pass."""
        layers: dict[str, Layer] = {}
        calls: Counter[str] = Counter()
        alias_of = {path: alias for alias, path in self.aliases.items()}

        def make_hook(path: str) -> Callable[..., None]:
            def record_layer(module: nn.Module, _args: Any, output: Any) -> None:
                name = format_call_name(path, calls[path])
                calls[path] += 1
                tensor = find_first_tensor(output)
                if tensor is not None and tensor.ndim > 1:
                    kind = type(module).__name__
                    shape = tuple(tensor.shape[1:])
                    layers[name] = Layer(name, kind, shape, alias_of.get(name, ""))

            return record_layer

        with self.lock, ExitStack() as hooks, torch.no_grad():
            for path, module in self.network.named_modules():
                # Parametrizations compute weights, not features.
                if path and "parametrizations" not in path.split("."):
                    hook = module.register_forward_hook(make_hook(path))
                    hooks.callback(hook.remove)
            self.run_network(self.blank())
        return layers

    @cached_property
    def landmarks(self) -> Mapping[str, str]:
        """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names.

        `NAME:in` is the input of a layer's module.
        """
        layers = list(self.layers.values())
        modules = [self.module(layer.name) for layer in layers]
        return {**guess_landmarks(layers, modules), **self._custom_landmarks}

    def layer(self, name: str) -> str:
        """Resolves a layer name, alias or landmark to the layer's name.

        Raises SightlineError with the closest name for an unknown one.
        """
        resolved = self.landmarks.get(name) or self.aliases.get(name) or name
        if resolved == "logits" or resolved.removesuffix(":in") in self.layers:
            return resolved
        candidates = [*self.aliases, *self.landmarks, *self.layers]
        raise make_unknown_name_error("layer", name, candidates)

    def module(self, name: str) -> nn.Module:
        """The module behind a layer's name. It belongs to the private copy: don't change it."""
        return self.network.get_submodule(name.split(":", maxsplit=1)[0])

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

    # ── labels ──

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One name per logit: the given ones, else `class 0`, `class 1`, …

        Raises SightlineError when another number of labels was given than the network has logits.
        """
        with torch.no_grad():
            logits = select_logits(self.run_network(self.blank()), self.output, self.name)
        count = logits.shape[1]
        if not self._custom_labels:
            return tuple(f"class {i}" for i in range(count))
        if len(self._custom_labels) != count:
            raise SightlineError(
                f"{self.name} has {count} logits, but {len(self._custom_labels)} labels were given"
            )
        return self._custom_labels

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
        if not isinstance(label, str):
            return self._check_class_number(int(label))
        exact = [i for i, name in enumerate(self.labels) if name == label]
        if exact:
            return self._require_one_class(label, exact)
        if re.fullmatch("-?[0-9]{1,9}", label):
            return self._check_class_number(int(label))
        requested = label.casefold()
        names = [name.casefold() for name in self.labels]
        same_in_any_case = [i for i, name in enumerate(names) if name == requested]
        if same_in_any_case:
            return self._require_one_class(label, same_in_any_case)
        partial = [i for i, name in enumerate(names) if requested in name]
        if len(partial) == 1:
            return partial[0]
        candidates = [self.labels[i] for i in partial] or self.labels
        raise make_unknown_name_error("label", label, candidates)

    def _require_one_class(self, label: str, indices: Sequence[int]) -> int:
        """The only index; raises SightlineError where several classes have the name."""
        if len(indices) == 1:
            return indices[0]
        numbers = " and ".join(str(index) for index in indices)
        raise SightlineError(
            f"label is {label!r}; {self.name} has {len(indices)} classes of that name: "
            f"give the number, {numbers}"
        )

    def _check_class_number(self, number: int) -> int:
        if not 0 <= number < len(self.labels):
            raise SightlineError(
                f"label is {number}; {self.name} has classes 0 to {len(self.labels) - 1}"
            )
        return number

    # ── images ──

    def blank(self) -> Tensor:
        """A gray image of the network's own size, 1×3×size×size."""
        return torch.full((1, 3, self.size, self.size), 0.5, device=self.device)

    def fit(self, image: Tensor, size: int | None = None) -> Tensor:
        """The square that the network was made to see of an image, N×3×size×size.

        The short side is resized to `resize` pixels and the centre of `size` pixels is cropped. A
        `size` of your own keeps their ratio. Raises SightlineError for anything that is no image.
        """
        side = size or self.size
        height, width = check_image(image).shape[-2:]
        # Only the centre is used, so the ends of a very long image need not be resized.
        image = crop_center(image, min(height, 3 * width), min(width, 3 * height))
        short_side = round(side * self.resize / self.size)
        resized = resize_short_side(image, max(side, short_side))
        return crop_center(resized, side, side)

    def normalize(self, image: Tensor) -> Tensor:
        """What the network is fed for an image N×3×H×W in [0, 1].

        On the network's device, in its precision, normalized, as luminance for a network of one
        channel. The memory format is channels_last, which is faster on the CPU.
        """
        image = image.to(self.mean)
        if self.mean.shape[1] == 1:
            weights = image.new_tensor(LUMINANCE_WEIGHTS).view(1, 3, 1, 1)
            image = (image * weights).sum(1, keepdim=True)
        normalized = (image - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)

    # ── outputs ──

    def logits(self, image: Tensor) -> Tensor:
        """Scores before the softmax, N×classes, of images N×3×H×W in [0, 1].

        Normalizes, does not resize. Differentiable. Raises SightlineError for anything that is no
        image, and for a size that the network can't take.
        """
        return self.run(check_image(image), ["logits"])["logits"]

    def probabilities(self, image: Tensor) -> Tensor:
        """Softmax of the logits, N×classes; raises as `logits` does."""
        return self.logits(image).softmax(1)

    def features(self, image: Tensor, layers: str | Iterable[str]) -> dict[str, Tensor]:
        """Outputs of layers, by the name, alias or landmark that was asked for.

        The forward pass stops at the deepest one. Differentiable. Raises as `logits` does, and for
        unknown layers.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        resolved = {name: self.layer(name) for name in names}
        outputs = self.run(check_image(image), resolved.values())
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
        with self.lock:
            capture, output = self._run_capture(image, names, leaf, on_layer)
            overwritten = capture.find_overwritten_calls()
            if overwritten:
                self.overwritten_calls |= overwritten
                capture, output = self._run_capture(image, names, leaf, on_layer)
        if "logits" not in names:
            return capture.tensors
        return {**capture.tensors, "logits": select_logits(output, self.output, self.name)}

    def _run_capture(
        self,
        image: Tensor,
        names: set[str],
        leaf: str | None,
        on_layer: Callable[[str, Tensor], object] | None,
    ) -> tuple[Capture, Any]:
        """One forward pass: the layers' tensors, and the network's output if it ran to its end."""
        capture = Capture(
            self.network,
            names - {"logits"},
            copied_calls=self.overwritten_calls,
            run_to_end="logits" in names,
            leaf=leaf,
            on_layer=on_layer,
        )
        return capture, capture.run_forward_pass(lambda: self.run_network(image))

    def run_network(self, image: Tensor) -> Any:
        """What the network itself returns for an image, which is normalized first.

        Raises SightlineError with the network's own error for an image that it can't take.
        """
        try:
            with use_packed_weights():
                return self.network(self.normalize(image))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = image.shape[-2:]
            reason = get_first_error_line(error)
            if (height, width) == (self.size, self.size):
                hint = "is it made for another size=, or for gray (mean= and std= of one value)?"
            elif "allocate" in reason:
                hint = "lower the batch or the size"
            else:
                hint = f"it was made for {self.size}×{self.size}"
            raise SightlineError(
                f"{self.name} can't take an image of {height}×{width} pixels ({reason}); {hint}"
            ) from error


def _format_html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with escaped cells."""
    cells = [f"<th>{escape(title)}</th>" for title in header]
    lines = [f"<tr>{''.join(cells)}</tr>"]
    for row in rows:
        cells = [f"<td>{escape(value)}</td>" for value in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
