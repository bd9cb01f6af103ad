"""One guard round the caller's network: whatever its `forward` raises becomes one line.

The line quotes the error, names the innermost file and line of the caller's own code, and says the
first thing to try.
"""

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from torch import nn

from sightline.errors import SightlineError, get_first_error_line

# Sizes that networks ask for a multiple of.
SIZE_MULTIPLES = (32, 16, 14, 64, 8, 7, 4, 2)

# How many sizes are tried to name one that the network takes.
MAX_TRIED_SIZES = 6

PACKAGE_FOLDER = str(Path(__file__).parents[2])


def make_network_error(
    error: Exception,
    *,
    network: nn.Module,
    name: str,
    image_shape: tuple[int, ...],
    network_size: tuple[int, int],
    find_size: Callable[[], tuple[int, int] | None],
) -> SightlineError:
    """The error for a network that fails on an image.

    Args:
        error: what `forward` raised.
        network: the network.
        name: what messages call it.
        image_shape: N×C×H×W of the image.
        network_size: height and width that the network was made for.
        find_size: finds a size near the image's that the network takes.
    """
    reason = get_first_error_line(error)
    if not reason or not isinstance(error, (RuntimeError, ValueError, AssertionError)):
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    place = describe_user_frame(error.__traceback__)
    hint = find_hint(error, network)
    if not hint:
        hint = _describe_size_hint(image_shape[-2:], network_size, reason, find_size)
    height, width = image_shape[-2:]
    return SightlineError(
        f"{name} can't take an image of {height}×{width} pixels ({reason}){place}; {hint}"
    )


def _describe_size_hint(
    image_size: tuple[int, ...],
    network_size: tuple[int, int],
    reason: str,
    find_size: Callable[[], tuple[int, int] | None],
) -> str:
    """The first thing to try where the error itself says nothing."""
    if "allocate" in reason:
        return "lower the batch or the size"
    if tuple(image_size) == network_size:
        return "is it made for another size=, or for other channels (mean= and std= tell how many)?"
    allowed = find_size()
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
    if takes_volumes(network):
        return "it takes video or volumes, which can't be shown; explain a 2-D network of slices"
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
    return ""


def find_input_channels(network: nn.Module) -> int:
    """Channels that the first convolution takes; 0 without one."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return 0 if first is None else first.in_channels


def reads_by_key(error: Exception) -> bool:
    """Whether a network failed to read its input as a dict or a list."""
    is_wrong_index = isinstance(error, (TypeError, IndexError)) and "indices" in str(error)
    return is_wrong_index or isinstance(error, KeyError)


def describe_channel_hint(expected: int, given: int) -> str:
    """What to try for a network that takes another number of channels."""
    if given > 16 and expected <= 16:
        return "if it takes N×H×W×C, give preprocess='nhwc'"
    values = "one value" if expected == 1 else f"{expected} values"
    seen = ", as for a network that sees luminance" if expected == 1 else ""
    return f"it takes {expected} channels: give mean= and std= of {values}{seen}"


def takes_volumes(network: nn.Module) -> bool:
    """Whether the network's convolutions are three-dimensional."""
    modules = list(network.modules())
    has_volumes = any(isinstance(module, nn.Conv3d) for module in modules)
    return has_volumes and not any(isinstance(module, nn.Conv2d) for module in modules)


def describe_user_frame(tb: TracebackType | None) -> str:
    """«, at net.py:12 in forward»: the innermost line of the caller's own code; empty without."""
    for frame in reversed(traceback.extract_tb(tb)):
        is_installed = "site-packages" in frame.filename or frame.filename.startswith(sys.prefix)
        is_ours = frame.filename.startswith(PACKAGE_FOLDER)
        is_generated = frame.filename.startswith("<") and "eval_with_key" in frame.filename
        if not (is_installed or is_ours or is_generated or "/torch/" in frame.filename):
            return f", at {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return ""


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

    return sorted(sizes, key=measure_distance)[:MAX_TRIED_SIZES]
