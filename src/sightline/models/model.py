"""A network one can look into: its layers, features and logits, its own preprocessing, its labels.

The caller's network is never touched: the work happens in a private copy of the module tree that shares
the weights' storage.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.images.color import LUMINANCE_WEIGHTS
from sightline.images.io import check_image, crop_center, resize_short_side
from sightline.models.copy import make_private_network
from sightline.models.hooks import Capture, Layer, find_first_tensor, format_call_name
from sightline.models.outputs import select_logits
from sightline.models.overrides.onednn import use_packed_weights
from sightline.models.preprocessing import check_known_weights_input


class Model:
    """A network with its preprocessing, labels and layer names.

    `network` is any eager `nn.Module`; it keeps its weights, hooks, modes and flags. Forward hooks that the caller
    set do not run in the copy. `mean` and `std` normalize a [0, 1] image (one value: the network sees luminance);
    `size` is the side in pixels it was made for and `resize` the short side before the centre crop;
    `output` picks the logits from a network that returns a tuple (index) or dict (key).
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
                f"mean and std need one value for each of 1 or 3 channels; given were {len(mean)} and {len(std)}"
            )
        body = make_private_network(network)
        first = next(body.parameters(), torch.empty(0))
        self.device = torch.device(device) if device is not None else first.device
        self.network = body.to(self.device)
        self.name = name or type(network).__name__
        self.size, self.resize = size, resize or size
        precision = first.dtype if first.is_floating_point() else torch.float32
        self.mean, self.std = (
            torch.tensor(v, device=self.device, dtype=precision).view(1, -1, 1, 1)
            for v in (mean, std)
        )
        self.output = output
        self.recipe = dict(recipe or {"model": self.name})
        self._given_labels = tuple(labels)
        self.aliases = dict(aliases or {})
        self._given_landmarks = dict(landmarks or {})
        self.overwritten_calls: set[str] = set()
        self.lock = threading.RLock()
        check_known_weights_input(self.network, self.normalize, size, self.name)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {len(self.labels)} classes, {self.size} px, {self.device})"

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every module call that gives a tensor, in the order of the forward pass, by name."""
        found: dict[str, Layer] = {}
        calls: Counter[str] = Counter()
        human = {path: alias for alias, path in self.aliases.items()}

        def record(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, _args: Any, output: Any) -> None:
                name = format_call_name(path, calls[path])
                calls[path] += 1
                value = find_first_tensor(output)
                if value is not None and value.ndim > 1:
                    found[name] = Layer(
                        name, type(module).__name__, tuple(value.shape[1:]), human.get(name, "")
                    )

            return hook

        with self.lock, ExitStack() as undo, torch.no_grad():
            for path, module in self.network.named_modules():
                if path and "parametrizations" not in path.split(
                    "."
                ):  # those give weights, not features
                    undo.callback(module.register_forward_hook(record(path)).remove)
            self.run_network(self.blank())
        return found

    @cached_property
    def landmarks(self) -> Mapping[str, str]:
        """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names (`NAME:in` is a module's input)."""
        layers = list(self.layers.values())
        convs = [layer for layer in layers if isinstance(self.module(layer.name), nn.Conv2d)]
        spatial = [layer for layer in layers if layer.is_spatial and "Pool" not in layer.kind]
        tokens = [layer for layer in layers if len(layer.shape) == 2]
        heads = [layer for layer in layers if isinstance(self.module(layer.name), nn.Linear)]
        guess = {"logits": "logits"}
        if convs:
            half = layers.index(convs[len(convs) // 2])
            active = (layer for layer in layers[half:] if layer.is_spatial and "ReLU" in layer.kind)
            guess |= {"first": convs[0].name, "middle": next(active, layers[half]).name}
        if spatial:
            guess["last_conv"] = spatial[-1].name
        if len(convs) < 3 and (
            places := [layer for layer in layers if layer in spatial or layer in tokens]
        ):
            guess["middle"] = places[len(places) // 2].name
        if tokens and tokens[-1].shape[0] > 1:
            # The class score reads one token after the last attention, so the others get their gradient before it.
            before = [
                layer.name
                for layer in tokens
                if layer.name.endswith(("norm1", "ln_1", "layernorm_before"))
            ]
            guess["last_conv"] = before[-1] if before else tokens[-1].name
        if heads:
            guess["penultimate"] = f"{heads[-1].name}:in"
        return {**guess, **self._given_landmarks}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One name per logit: the given ones, else `class 0`, `class 1`, …"""
        with torch.no_grad():
            count = select_logits(self.run_network(self.blank()), self.output, self.name).shape[1]
        if self._given_labels and len(self._given_labels) != count:
            raise SightlineError(
                f"{self.name} has {count} logits, but {len(self._given_labels)} labels were given"
            )
        return self._given_labels or tuple(f"class {i}" for i in range(count))

    def layer(self, name: str) -> str:
        """The layer's own name for a name, alias or landmark; raises SightlineError with the nearest one."""
        known = self.landmarks.get(name) or self.aliases.get(name) or name
        if known == "logits" or known.removesuffix(":in") in self.layers:
            return known
        raise make_unknown_name_error("layer", name, [*self.aliases, *self.landmarks, *self.layers])

    def module(self, name: str) -> nn.Module:
        """The module behind a layer's name. It belongs to the private copy: look, don't change."""
        return self.network.get_submodule(name.split(":", maxsplit=1)[0])

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of a layer's output at the network's own size, without the batch; raises for unknown names."""
        name = self.layer(layer)
        if name.endswith(":in"):
            return tuple(self.run(self.blank(), [name])[name].shape[1:])
        return (len(self.labels),) if name == "logits" else self.layers[name].shape

    def blank(self) -> Tensor:
        """A gray image of the network's own size, 1×3×H×W."""
        return torch.full((1, 3, self.size, self.size), 0.5, device=self.device)

    def fit(self, image: Tensor, size: int | None = None) -> Tensor:
        """The network's own view of an image: short side resized, centre cropped square; `size` overrides the side in pixels."""
        side = size or self.size
        height, width = check_image(image).shape[-2:]
        # Only the centre is kept, so the far ends of a very long picture need not be enlarged first.
        image = crop_center(image, min(height, 3 * width), min(width, 3 * height))
        resized = resize_short_side(image, max(side, round(side * self.resize / self.size)))
        return crop_center(resized, side, side)

    def logits(self, image: Tensor) -> Tensor:
        """Scores before the softmax, N×classes, of N×3×H×W in [0, 1]. Normalizes, does not resize. Differentiable.

        Raises SightlineError for anything that is not an image, and for a size the network can't take.
        """
        return self.run(check_image(image), ["logits"])["logits"]

    def probabilities(self, image: Tensor) -> Tensor:
        """Softmax of the logits, N×classes."""
        return self.logits(image).softmax(1)

    def features(self, image: Tensor, layers: str | Iterable[str]) -> dict[str, Tensor]:
        """Outputs of the named layers (names, aliases, landmarks), keyed as asked. Stops at the deepest one. Differentiable."""
        asked = [layers] if isinstance(layers, str) else list(layers)
        found = self.run(check_image(image), [self.layer(name) for name in asked])
        return {name: found[self.layer(name)] for name in asked}

    def choose(self, label: int | str, image: Tensor, logits: Tensor | None = None) -> Tensor:
        """Class index for each image, N: the predicted one for "top" (by the logits, if they are known), else that of `label` (index or name)."""
        if label == "top":
            with torch.no_grad():
                return (self.run(image, ["logits"])["logits"] if logits is None else logits).argmax(
                    1
                )
        return torch.full((image.shape[0],), self.index(label), device=self.device)

    def index(self, label: int | str) -> int:
        """Index of a class by number or name (whole, or a part that only one label has); raises with the nearest name."""
        if not isinstance(label, str) or re.fullmatch("-?[0-9]{1,9}", label):
            if not 0 <= int(label) < len(self.labels):
                raise SightlineError(
                    f"label is {label}; {self.name} has classes 0 to {len(self.labels) - 1}"
                )
            return int(label)
        folded, wanted = [name.casefold() for name in self.labels], label.casefold()
        if wanted in folded:
            return folded.index(wanted)
        partly = [i for i, name in enumerate(folded) if wanted in name]
        if len(partly) == 1:
            return partly[0]
        raise make_unknown_name_error(
            "label", label, [self.labels[i] for i in partly] or self.labels
        )

    def run(
        self,
        image: Tensor,
        layers: Iterable[str],
        *,
        leaf: str | None = None,
        on_layer: Callable[[str, Tensor], object] | None = None,
    ) -> dict[str, Tensor]:
        """`features` for engines: layer names must be resolved, the image is not checked and may leave [0, 1].

        The network goes on from layer `leaf` as from a new variable: gradients reach back to it and nothing is kept for what lies before.
        `seen` gets each inner layer's output before the network goes on: what it computes from it then gets its gradient only when the
        network's own has come back to that layer.
        """
        wanted = set(layers)
        if torch.is_inference_mode_enabled():  # its tensors don't count the writes to them
            with torch.inference_mode(False), torch.no_grad():
                return self.run(image, wanted, on_layer=on_layer)
        inner, whole = wanted - {"logits"}, "logits" in wanted

        def watched() -> tuple[Capture, Any]:
            watch = Capture(
                self.network,
                inner,
                copied_calls=self.overwritten_calls,
                run_to_end=whole,
                leaf=leaf,
                on_layer=on_layer,
            )
            return watch, watch.run_forward_pass(lambda: self.run_network(image))

        with self.lock:
            watch, output = watched()
            if overwritten := watch.find_overwritten_calls():
                self.overwritten_calls |= overwritten
                watch, output = watched()
        return (
            {**watch.tensors, "logits": select_logits(output, self.output, self.name)}
            if whole
            else watch.tensors
        )

    def run_network(self, image: Tensor) -> Any:
        """What the network itself returns for an image, normalized first. Raises SightlineError for a size it can't take."""
        height, width = image.shape[-2:]
        try:
            with use_packed_weights():
                return self.network(self.normalize(image))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = get_first_error_line(error)
            hint = (
                "lower the batch or the size"
                if "allocate" in reason
                else f"it was made for {self.size}×{self.size}"
            )
            if (height, width) == (self.size, self.size):
                hint = "is it made for another size=, or for gray (mean= and std= of one value)?"
            raise SightlineError(
                f"{self.name} can't take an image of {height}×{width} pixels ({reason}); {hint}"
            ) from error

    def normalize(self, image: Tensor) -> Tensor:
        """What the network itself is fed: on its device, in its precision, normalized, channels_last (faster on processors)."""
        image = image.to(self.mean)
        if self.mean.shape[1] == 1:
            image = (image * image.new_tensor(LUMINANCE_WEIGHTS).view(1, 3, 1, 1)).sum(
                1, keepdim=True
            )
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
