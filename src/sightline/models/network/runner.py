"""Running the private copy of a network on images, whatever it takes beside them."""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import (
    SightlineError,
    escape_for_display,
    get_first_error_line,
    is_out_of_memory,
)
from sightline.images.io.pictures import ImageOrPath, read_file_or_sample
from sightline.images.validation import check_image
from sightline.models.layers.capture import Capture, StopForwardPass, find_first_tensor
from sightline.models.layers.functional_steps import edit_functional_steps
from sightline.models.network.compilation import disable_compilation
from sightline.models.network.copy import (
    copy_network,
    find_in_place_modules,
    make_private_network,
    set_in_place,
)
from sightline.models.network.copying.weight_writes import separate_written_weights
from sightline.models.network.guard import (
    MAX_TRIED_SIZES,
    list_nearby_sizes,
    list_sizes_in_text,
    make_network_error,
)
from sightline.models.network.inputs import (
    NUMBER_FORMS,
    ExtraInputs,
    NumberForm,
    Preprocess,
    apply_layout,
    make_network_inputs,
    parse_layout_words,
)
from sightline.models.network.preprocessing import (
    PICTURE_CHANNELS,
    call_preprocess,
    check_bands,
    check_channel_statistics,
    check_image_size,
    convert_to_luminance,
    fit_image,
    format_size,
    show_as_picture,
)
from sightline.models.network.probe import make_probe_images
from sightline.models.overrides.checkpointing import disable_checkpointing
from sightline.models.overrides.mode import suspend_overrides
from sightline.models.overrides.onednn import (
    LayerSizes,
    find_layer_sizes,
    use_packed_weights,
)
from sightline.models.overrides.unsaved_inputs import (
    InPlaceWrites,
    WriteObserver,
    WriteWatchingMode,
)
from sightline.models.weights.known_input import check_known_weights_input
from sightline.process.default_device import use_default_device_of_user
from sightline.process.locks import ForkSafeLock
from sightline.process.memory import keep_freed_memory

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The types in which torch computes with images.
COMPUTING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

T = TypeVar("T")


def choose_channel_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, preprocess: Preprocess | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std that were given; ImageNet's, or none beside `preprocess`, in their place."""
    if mean is None and std is None and preprocess is not None:
        return (0.0,) * 3, (1.0,) * 3
    return check_channel_statistics(
        IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std
    )


def find_image_dtype(network: nn.Module) -> torch.dtype:
    """The precision in which a network is given images: that of its first weight to compute in.

    Whole numbers, complex ones and floats of 8 bits are what weights are stored in, or are tables.
    """
    dtypes = (weight.dtype for weight in network.parameters())
    return next((dtype for dtype in dtypes if dtype in COMPUTING_DTYPES), torch.float32)


class LayoutError(SightlineError):
    """A network turned out, in the middle of a pass, to need images in torch's default layout.

    The next pass gives it those: `NetworkRunner.repeat_in_plain_layout` begins it at once.
    """


class NetworkRunner:
    """The private copy of a network, and how it is given images.

    `Model` documents the arguments and attributes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        size: int | tuple[int, int],
        resize: int | None,
        inputs: ExtraInputs | None,
        preprocess: Preprocess | None,
        bands: Sequence[int] | None,
        device: torch.device | str | None,
    ) -> None:
        means, deviations = choose_channel_statistics(mean, std, preprocess)
        self.image_size = check_image_size(size)
        self.size = min(self.image_size)
        self.resize = resize or self.size
        self.channels = 3 if len(means) in PICTURE_CHANNELS else len(means)
        self.bands = check_bands(bands, self.channels)
        self.name = escape_for_display(name or type(network).__name__)

        with torch.inference_mode(False):  # what is made in inference mode never has a gradient
            private = make_private_network(network)
            self.in_place_modules = find_in_place_modules(network)
            first_weight = next(private.parameters(), torch.empty(0))
            self.device = torch.device(device) if device is not None else first_weight.device
            self.network = private.to(self.device)
            dtype = find_image_dtype(private)
            statistics = torch.tensor([means, deviations], device=self.device, dtype=dtype)
        self.mean, self.std = statistics.view(2, 1, -1, 1, 1).unbind()

        self.overwritten_calls: set[str] = set()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.has_plain_layout = False
        self.layer_sizes = find_layer_sizes(self.network)
        self.in_place_writes = InPlaceWrites()
        self.lock = ForkSafeLock(reentrant=True)
        self._preprocess = preprocess if callable(preprocess) else None
        self._layout = () if callable(preprocess) else parse_layout_words(preprocess or ())
        self._inputs = make_network_inputs(self.network, inputs)
        self._inputs_settled = not self._inputs.holds_numbers
        self._weights_settled = False
        check_known_weights_input(self.network, self.normalize, self.size, self.name)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that copies and other processes get one of their own."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = ForkSafeLock(reentrant=True)

    def __copy__(self) -> Self:
        """One with the same network, and so with the same lock."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with weights of its own, whose hooks act on the copy."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        with torch.inference_mode(False):  # weights that are made there never have a gradient
            with self.lock:  # not with the hooks of another thread's run
                network = copy_network(self.network, share_parameters=False)
            memo[id(self.network)] = network
            twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    # ── images ──

    @property
    def is_gray(self) -> bool:
        """Whether the network sees the luminance of color images."""
        return self.mean.shape[1] == 1 and self._preprocess is None

    @property
    def has_preprocess_function(self) -> bool:
        """Whether a function prepares images in place of normalization, which is for each pixel."""
        return self._preprocess is not None

    @property
    def has_further_inputs(self) -> bool:
        """Whether the network is given more than the image."""
        return callable(self._inputs.extra) or bool(self._inputs.extra)

    def blank(self) -> Tensor:
        """A gray image of the network's own size, 1×channels×height×width."""
        return torch.full((1, self.channels, *self.image_size), 0.5, device=self.device)

    def make_probe_images(self, size: tuple[int, int] | None = None) -> Tensor:
        """Two different images, of the network's own size unless another is given, N×channels×H×W.

        The layers are listed by the last one.
        """
        return make_probe_images((self.channels, *(size or self.image_size)), self.device)

    def fit(self, image: ImageOrPath | Sequence[ImageOrPath], size: int | None = None) -> Tensor:
        """What the network was made to see of an image, N×channels×height×width.

        A file or sample is read, and a list of images or files, of any sizes, becomes a batch.

        The short side is resized to `resize` pixels and the centre of `size` pixels is cropped. A
        `size` of your own keeps their ratio. Raises SightlineError for anything that is no image.
        """
        if isinstance(image, (list, tuple)):
            if not image:
                raise SightlineError("the list of images is empty; give one or more")
            return torch.cat([self.fit(picture, size) for picture in image])
        single = cast("ImageOrPath", image)
        if isinstance(single, (str, Path)):
            single = read_file_or_sample(single)
        checked = check_image(single, channels=self.channels)
        return fit_image(checked, self.scale_size(size), self.resize / self.size)

    def scale_size(self, size: int | None) -> tuple[int, int]:
        """Height and width of images with a shorter side of `size`, in the network's aspect."""
        height, width = self.image_size
        if size is None:
            return height, width
        return round(height * size / self.size), round(width * size / self.size)

    def to_picture(self, image: Tensor) -> Tensor:
        """What pictures show of an image N×channels×H×W: N×3×H×W, three of its bands."""
        return show_as_picture(image, self.bands)

    def normalize(self, image: Tensor) -> Any:
        """What the network is fed for an image N×channels×H×W in [0, 1].

        On the network's device, in its precision, normalized, as luminance for a network of one
        channel. The memory format is channels_last, which is faster on the CPU, or torch's default
        one for a network that takes no other. With `preprocess`, whatever that function returns.
        """
        if image.shape[1] != self.channels:
            raise SightlineError(
                f"{self.name} takes images of {self.channels} channels; "
                f"this one has {image.shape[1]}"
            )
        image = image.to(self.mean)
        if self._preprocess is not None:
            with use_default_device_of_user():
                # A copy: it may be handed on as it is to a network that writes to it.
                return call_preprocess(self._preprocess, image.clone())
        if self.mean.shape[1] == 1:
            image = convert_to_luminance(image)
        normalized = (image - self.mean) / self.std
        if self._layout:
            return apply_layout(normalized, self._layout)
        if self.has_plain_layout:
            return normalized.contiguous()
        return normalized.contiguous(memory_format=torch.channels_last)

    # ── running the network ──

    def run_network(self, image: Tensor) -> Any:
        """What the network itself returns for an image, which is normalized first.

        Raises SightlineError with the network's own error for an image that it can't take, and
        LayoutError where it is to be run once more.
        """
        self.settle_inputs()
        prepared = self.normalize(image)
        try:
            return self._call_fast_network(prepared, image)
        except SightlineError:
            raise
        except Exception as error:
            if isinstance(error, StopForwardPass) or is_out_of_memory(error):
                raise
            if self._settle_for_plain_layout(image):
                raise LayoutError(
                    f"{self.name} takes images in torch's default memory layout only "
                    f"({get_first_error_line(error)}); it gets them from now on: run this again"
                ) from error
            reason = str(error)
            raise make_network_error(
                error,
                network=self.network,
                name=self.name,
                image_shape=tuple(image.shape),
                input_axes=prepared.ndim if isinstance(prepared, Tensor) else 0,
                network_size=self.image_size,
                find_size=lambda: self._find_allowed_size(image, reason),
            ) from error

    def call_network(self, prepared: Any, batch: int) -> Any:
        """The network's answer to what `normalize` gives, with its further inputs."""
        extra = self._inputs.make_arguments(batch, self.mean)
        edits = edit_functional_steps(self.network)
        with disable_compilation(), edits, use_default_device_of_user():
            if self._inputs.image_parameter:
                return self.network(**{self._inputs.image_parameter: prepared}, **extra)
            return self.network(prepared, **extra)

    def _call_fast_network(self, prepared: Any, image: Tensor) -> Any:
        """`call_network` by the faster operations, as far as the network takes their layout."""
        packing: AbstractContextManager[Any] = nullcontext()
        if torch.is_grad_enabled() or self.layer_sizes is LayerSizes.LARGE:
            packing = use_packed_weights(
                keeps_layout=self.has_plain_layout,
                sizes=self.layer_sizes,
                writes=self.in_place_writes,
                pixel_count=image[:, 0].numel(),
            )
        with packing as mode, disable_checkpointing():
            output = self.call_network(prepared, len(image))
        # The pass was not stopped, and the mode saw all of it.
        if isinstance(mode, WriteWatchingMode) and not mode.is_suspended():
            self.in_place_writes.is_known = True
        return output

    def repeat_in_plain_layout(self, run: Callable[[], T]) -> T:
        """What `run` gives; it begins anew where the network turns out to need the plain layout."""
        try:
            return run()
        except LayoutError:
            return run()

    def _settle_for_plain_layout(self, image: Tensor) -> bool:
        """Whether a network that just failed works in torch's default memory layout.

        It is run so from then on. Networks that flatten their maps by `view`, or that ask for
        contiguous tensors, take no other layout.
        """
        if self.has_plain_layout or image.is_meta or self._takes(image):
            return False  # its error came and went
        before = self.use_plain_layout()
        if self._takes(image):
            return True
        self.has_plain_layout = False
        for weight, values in before:
            weight.data = values
        return False

    def use_plain_layout(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Has the network run in torch's default layout from now on.

        Returns the weights that were laid out otherwise, with what they were.
        """
        laid_out_otherwise = [
            (weight, weight.data)
            for weight in self.network.parameters()
            if weight.ndim == 4 and is_laid_out_channels_last(weight)
        ]
        self.has_plain_layout = True
        for weight, values in laid_out_otherwise:
            weight.data = values.clone(memory_format=torch.contiguous_format)
        return laid_out_otherwise

    @contextmanager
    def try_plain_layout(self) -> Generator[None]:
        """Context in which the network is given images in torch's default layout."""
        previous = self.has_plain_layout
        self.has_plain_layout = True
        try:
            yield
        finally:
            self.has_plain_layout = previous

    @contextmanager
    def modules_in_place(self) -> Generator[None]:
        """Context in which modules write over what they are given, as they are asked to."""
        set_in_place(self.network, self.in_place_modules, in_place=True)
        try:
            yield
        finally:
            set_in_place(self.network, self.in_place_modules, in_place=False)

    def keep_in_place(self) -> None:
        """Has modules write over what they are given from now on."""
        set_in_place(self.network, self.in_place_modules, in_place=True)
        self.in_place_modules = []

    def watch_writes(self) -> AbstractContextManager[Any]:
        """Context of a pass that shows whether the network overwrites inputs of its layers."""
        if self.layer_sizes is LayerSizes.LARGE:
            return nullcontext()  # its layers save none
        return WriteObserver(self.in_place_writes)

    def expect_writes(self) -> bool:
        """Expects from now on that inputs of layers are overwritten; False where it did already.

        Some networks do so for images of some sizes only.
        """
        expected_already = self.in_place_writes.found
        self.in_place_writes.found = True
        return not expected_already

    def _takes(self, image: Tensor) -> bool:
        """Whether the network runs on an image, or as far as it is to run."""
        try:
            self._call_fast_network(self.normalize(image), image)
        except StopForwardPass:
            return True
        except Exception:  # noqa: BLE001 - whatever it raises, it does not take the image
            return False
        return True

    def settle_inputs(self) -> None:
        """Finds once how the further inputs are given, and whether a pass writes to weights.

        It is called before a pass whose calls are counted.
        """
        if not self._inputs_settled:
            self._settle_number_form()
        if not self._weights_settled:
            self._weights_settled = True
            separate_written_weights(self.network, self._run_blank)

    def _run_blank(self) -> Any:
        """What the network returns for a gray image."""
        with suspend_overrides():
            return self.call_network(self.normalize(self.blank()), 1)

    def _settle_number_form(self) -> None:
        """Finds how the network takes a number among its inputs: as N×1, N or the number itself.

        A form that is not meant may run too, and be broadcast to a number for each pair of images:
        that with the smallest output counts.
        """
        self._inputs_settled = True
        images = self.make_probe_images()
        inputs = self._inputs
        output_sizes: dict[NumberForm, int] = {}
        for form in NUMBER_FORMS:
            self._inputs = replace(inputs, number_form=form)
            try:
                with torch.no_grad():
                    output = self.call_network(self.normalize(images), len(images))
            except Exception:  # noqa: BLE001 - the next form is tried; the last error is told below
                continue
            tensor = find_first_tensor(output)
            if tensor is not None and len(tensor) == len(images):
                output_sizes[form] = tensor.numel()
        self._inputs = inputs
        if output_sizes:
            best_form = min(output_sizes, key=lambda form: output_sizes[form])
            self._inputs = replace(inputs, number_form=best_form)

    def _find_allowed_size(self, image: Tensor, reason: str) -> tuple[int, int] | None:
        """A size that the network takes; None where none is found.

        Tried are the image's own with a gray image, those in the error's text, and those near.
        """
        height, width = image.shape[-2:]
        sizes = [(height, width), *list_sizes_in_text(reason, height, width)]
        tried: set[tuple[int, int]] = set()
        while sizes and len(tried) < MAX_TRIED_SIZES:
            size = sizes.pop(0)
            if size in tried:
                continue
            tried.add(size)
            refusal = self._refuse_size(image, size)
            if refusal is None:
                return size
            sizes += list_sizes_in_text(refusal, *size)
        nearby = list_nearby_sizes(height, width)
        return next((size for size in nearby if self._refuse_size(image, size) is None), None)

    def _refuse_size(self, image: Tensor, size: tuple[int, int]) -> str | None:
        """What the network raises for a gray image of this size and the image's channels.

        None where it takes it.
        """
        blank = image.new_full((1, image.shape[1], *size), 0.5)
        try:
            with torch.no_grad():
                self.call_network(self.normalize(blank), 1)
        except StopForwardPass:
            return None  # the layers that were asked for are reached
        except Exception as error:  # noqa: BLE001 - whatever it raises, it does not take the size
            return str(error)
        return None

    def capture_layers(
        self,
        image: Tensor,
        names: set[str],
        leaf: str | None = None,
        on_layer: Callable[[str, Tensor], object] | None = None,
        *,
        run_to_end: bool = False,
    ) -> tuple[Capture, Any]:
        """A forward pass: the layers' tensors, and the network's output if it ran to its end.

        It is repeated where the network overwrote one of the tensors later, and without the leaf
        where the network takes a gradient itself, which may be one through the leaf.
        """

        def run_pass(leaf: str | None) -> tuple[Capture, Any]:
            capture = Capture(
                self.network,
                names,
                copied_calls=self.overwritten_calls,
                run_to_end=run_to_end,
                leaf=leaf,
                on_layer=on_layer,
            )
            return capture, capture.run_forward_pass(lambda: self.run_network(image))

        def run_once() -> tuple[Capture, Any]:
            capture, output = run_pass(leaf)
            return run_pass(None) if capture.takes_gradient else (capture, output)

        with self.lock:
            self.settle_inputs()
            capture, output = self.repeat_in_plain_layout(run_once)
            overwritten = capture.find_overwritten_calls()
            if overwritten:
                self.overwritten_calls |= overwritten
                capture, output = run_once()
        return capture, output

    def describe_input(self) -> str:
        """«224 px, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)»."""
        size = f"{format_size(self.image_size)} px"
        if self._preprocess is not None:
            return f"{size}, preprocess={getattr(self._preprocess, '__name__', 'a function')}"
        mean = ", ".join(f"{value:.3g}" for value in self.mean.flatten().tolist())
        std = ", ".join(f"{value:.3g}" for value in self.std.flatten().tolist())
        layout = f", {' '.join(self._layout)}" if self._layout else ""
        return f"{size}, mean ({mean}), std ({std}){layout}"


def is_laid_out_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor N×C×H×W lies in memory with its channels last.

    One of a single pixel or channel lies there in both ways, and its strides tell which is meant.
    """
    default_strides = tensor.new_empty(tensor.shape, device="meta").stride()
    is_channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return is_channels_last and tensor.stride() != default_strides
