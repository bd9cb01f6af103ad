"""One guard round the caller's network: whatever its `forward` raises becomes one line.

The line quotes the error, names the innermost file and line of the caller's own code, and says the
first thing to try.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from torch import nn

from sightline.errors import SightlineError, get_first_error_line

# Sizes that networks ask for a multiple of.
SIZE_MULTIPLES = (32, 16, 14, 64, 8, 7, 4, 2)

# How many sizes of the errors' texts are tried to name one that the network takes.
MAX_TRIED_SIZES = 12
# How many of those that are near the image's.
MAX_NEARBY_SIZES = 6

# Sides that are tried, in pixels.
MAX_TRIED = 1024

# Words of an error that is about the shape of a tensor.
SHAPE_WORDS = re.compile(
    r"(?i)\b(shapes?|sizes?|dim(ension)?s?|channels?|heights?|widths?|resolution|divisible|multiples?"
    r"|broadcast|too (small|large)|square|rows?|columns?|sides?|pixels?|\d+ ?[x×*] ?\d+)\b"
)

MATRIX_MISMATCH = re.compile(r"\(\d+x(?P<given>\d+) and (?P<wanted>\d+)x\d+\)")
TENSOR_MISMATCH = re.compile(
    r"tensor a \((?P<given>\d+)\) must match the size of tensor b \((?P<wanted>\d+)\)"
)

IMAGE_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
VOLUME_LAYERS = (
    nn.Conv3d,
    nn.ConvTranspose3d,
    nn.BatchNorm3d,
    nn.InstanceNorm3d,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool3d,
)
VOLUME_HINT = (
    "it takes video or volumes N×C×T×H×W. Explain it slice by slice: preprocess= can make the "
    "volume from one image, as lambda image: image.unsqueeze(2).expand(-1, -1, 16, -1, -1) does "
    "for 16 equal slices"
)

PACKAGE_FOLDER = str(Path(__file__).parents[2])


def make_network_error(
    error: Exception,
    *,
    network: nn.Module,
    name: str,
    image_shape: tuple[int, ...],
    input_axes: int,
    network_size: tuple[int, int],
    find_size: Callable[[], tuple[int, int] | None],
) -> SightlineError:
    """The error for a network that fails on an image.

    Args:
        error: what `forward` raised.
        network: the network.
        name: what messages call it.
        image_shape: N×C×H×W of the image.
        input_axes: axes of the tensor that the network was given; 0 for what is no tensor.
        network_size: height and width that the network was made for.
        find_size: finds a size that the network takes: the image's own, or one near it.
    """
    reason = get_first_error_line(error)
    if not reason or not isinstance(error, (RuntimeError, ValueError, AssertionError)):
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    place = describe_user_frame(error.__traceback__)
    height, width = image_shape[-2:]
    if input_axes == 4 and begins_with_volumes(network) and may_concern_shape(error):
        hint = VOLUME_HINT
    else:
        hint = find_hint(error, network)
    if not hint and not may_concern_shape(error):
        return SightlineError(
            f"{name} fails on an image of {height}×{width} pixels ({reason}){place}; "
            "the error is its own, and not one of size or channels"
        )
    if not hint:
        hint = _describe_size_hint((height, width), network_size, reason, find_size)
    return SightlineError(
        f"{name} can't take an image of {height}×{width} pixels ({reason}){place}; {hint}"
    )


def may_concern_shape(error: Exception) -> bool:
    """Whether an error may come from the shape of the image, by its text and where it was raised.

    What torch and other libraries raise mostly does.
    """
    if isinstance(error, (KeyError, AttributeError, NameError, ImportError, OSError)):
        return False
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    # The line that raised it may say more, as a bare assertion does.
    if any(SHAPE_WORDS.search(text or "") for text in (str(error), *(f.line for f in frames))):
        return True
    is_from_library = any(not _is_callers_file(frame.filename) for frame in frames)
    has_its_type = isinstance(error, (RuntimeError, ValueError, IndexError, AssertionError))
    return has_its_type and is_from_library


def _describe_size_hint(
    image_size: tuple[int, int],
    network_size: tuple[int, int],
    reason: str,
    find_size: Callable[[], tuple[int, int] | None],
) -> str:
    """The first thing to try where the error itself says nothing."""
    if "allocate" in reason:
        return "lower the batch or the size"
    allowed = find_size()
    if allowed == image_size:
        return "a gray image of this size is taken: the error is its own, and not one of size"
    if image_size == network_size:
        if allowed is not None:
            return (
                f"is it made for another size? It takes {allowed[0]}×{allowed[1]}: "
                f"sl.load(network, size={allowed})"
            )
        return "is it made for another size=, or for other channels (mean= and std= tell how many)?"
    made_for = f"it was made for {network_size[0]}×{network_size[1]}"
    if allowed is not None and allowed != network_size:
        return f"{made_for}, and takes {allowed[0]}×{allowed[1]}"
    return made_for


def find_hint(error: Exception, network: nn.Module) -> str:
    """What to try first, from the text of an error; empty where it tells nothing."""
    text = str(error)
    missing = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)", text)
    if missing and "forward" in text:
        names = re.findall(r"'(\w+)'", missing[1])
        listed = ", ".join(f"{name!r}: VALUE" for name in names)
        return f"give what is missing: sl.load(network, inputs={{{listed}}})"
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", text)
    if channels:
        return describe_channel_hint(int(channels[1]), int(channels[2]))
    if "could not create a primitive" in text:
        return describe_channel_hint(find_input_channels(network), given=3)
    if "uninitialized parameter" in text.lower():
        return "it has lazy layers: run it once on a batch before sl.load"
    if "should be the same" in text and "type" in text:
        return "its layers differ in precision; convert the whole network: network.float()"
    if reads_by_key(error):
        return "if it takes a dict or a list, preprocess= can make it from the image"
    if re.search(r"\b(uint8|Byte)\b", text):
        return "if it takes whole numbers up to 255, give preprocess='0..255 uint8'"
    return describe_missing_input(text, network)


def describe_missing_input(text: str, network: nn.Module) -> str:
    """What to give where an error asks for one of `forward`'s parameters; empty if none is named.

    «You have to specify input_ids».
    """
    asked = re.search(r"(?i)\b(?:specify|provide|pass)\b[ `'\"]*(\w+)", text)
    if asked is None or asked[1] not in inspect.signature(network.forward).parameters:
        return ""
    return f"give what is missing: sl.load(network, inputs={{{asked[1]!r}: VALUE}})"


def find_input_channels(network: nn.Module) -> int:
    """Channels that the first convolution takes; 0 without one."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return 0 if first is None else first.in_channels


def reads_by_key(error: Exception) -> bool:
    """Whether a network failed to read its input, a tensor, as a dict, a list or an object."""
    text = str(error)
    if isinstance(error, (TypeError, IndexError)):
        return "indices" in text
    if isinstance(error, ValueError):
        return "values to unpack" in text
    return isinstance(error, AttributeError) and "'Tensor' object has no attribute" in text


def describe_channel_hint(expected: int, given: int) -> str:
    """What to try for a network that takes another number of channels."""
    if given > 16 and expected <= 16:
        return "if it takes N×H×W×C, give preprocess='nhwc'"
    values = "one value" if expected == 1 else f"{expected} values"
    gray_note = ", as for a network that sees luminance" if expected == 1 else ""
    noun = "channel" if expected == 1 else "channels"
    return f"it takes {expected} {noun}: give mean= and std= of {values}{gray_note}"


def begins_with_volumes(network: nn.Module) -> bool:
    """Whether the first of the network's layers for images is one for volumes."""
    for module in network.modules():
        if isinstance(module, (*IMAGE_LAYERS, *VOLUME_LAYERS)):
            return isinstance(module, VOLUME_LAYERS)
    return False


def describe_user_frame(tb: TracebackType | None) -> str:
    """«, at net.py:12 in forward»: the innermost line of the caller's own code; empty without."""
    for frame in reversed(traceback.extract_tb(tb)):
        if _is_callers_file(frame.filename):
            return f", at {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return ""


def _is_callers_file(name: str) -> bool:
    """Whether a source file is neither installed, nor generated, nor ours."""
    is_installed = "site-packages" in name or name.startswith(sys.prefix)
    is_ours = name.startswith(PACKAGE_FOLDER)
    is_generated = name.startswith("<") and "eval_with_key" in name
    return not (is_installed or is_ours or is_generated or "/torch/" in name)


def list_sizes_in_text(text: str, height: int, width: int) -> list[tuple[int, int]]:
    """Sizes that an error's text may mean, for an image of height×width that it refuses.

    Two numbers may be a height and a width, one number either side. Of matrices that don't fit,
    the wanted number of features may be a multiple of what the image gives.
    """
    sizes: list[tuple[int, int]] = []
    mismatch = MATRIX_MISMATCH.search(text) or TENSOR_MISMATCH.search(text)
    if mismatch:
        ratio = int(mismatch["wanted"]) / max(1, int(mismatch["given"]))
        for rows, columns in ((1, ratio), (ratio, 1), (ratio**0.5, ratio**0.5)):
            sizes.append((round(height * rows), round(width * columns)))
    numbers = [int(digits) for digits in re.findall(r"(?<![\w.])\d{1,4}(?![\w.]\d)", text)]
    for pair in pairwise(numbers):
        sizes += [pair, (pair[1], pair[0])]
    for number in numbers:
        sizes += [(number, number), (height, number), (number, width)]
    fitting = [size for size in dict.fromkeys(sizes) if min(size) > 1 and max(size) <= MAX_TRIED]
    return [size for size in fitting if size != (height, width)]


def list_nearby_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes near height×width with both sides a multiple of a common number, nearest first."""
    sizes: set[tuple[int, int]] = set()
    for multiple in SIZE_MULTIPLES:
        rows = max(1, round(height / multiple)) * multiple
        columns = max(1, round(width / multiple)) * multiple
        sizes.add((rows, columns))
        sizes.add((multiple * -(-height // multiple), multiple * -(-width // multiple)))
    sizes.discard((height, width))

    def measure_distance(size: tuple[int, int]) -> int:
        return abs(size[0] - height) + abs(size[1] - width)

    return sorted(sizes, key=measure_distance)[:MAX_NEARBY_SIZES]
