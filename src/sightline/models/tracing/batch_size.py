"""How many images a network runs on at once: as many as fit, and as a short timing finds fastest.

How the time for one image depends on their number differs from network to network: a single call
costs the same for many images, but larger feature maps no longer fit the caches. So it is timed, on
the network itself. What was timed is kept for each model, size of the image, kind of pass and
number of threads. Results depend on the number only to rounding.
"""

import math
import time
from collections.abc import Callable, Hashable
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sightline.errors import guard_backward
from sightline.models.model import Model

# Without gradients a layer's input and output are held, and one more map for a branch that waits or
# for a convolution's workspace.
MAPS_KEPT_WITHOUT_GRADIENTS = 3

# Measured on eight networks, with 1 to 16 images: about the largest output of a layer with which an
# image takes least time. Fewer images wait longer for single operations, and the outputs of more
# no longer fit the caches. It decides where there is too little to do for a timing.
CACHE_FRIENDLY_BYTES = 24e6

# The share of the images to run that the timing may cost.
MAX_TIMED_SHARE = 0.1

# Every number of images is timed so often, and the fastest time counts.
TIMING_REPEATS = 2

# The fewest images that a timing costs: one, two and four at once.
MIN_TIMED_IMAGES = TIMING_REPEATS * (1 + 2 + 4)

# No larger batches are timed.
MAX_TIMED_BATCH = 64

# Differences of the time for one image below this share may be noise.
TIME_TOLERANCE = 0.03

# The search ends after so many doublings in a row that did not lower the time.
MAX_VAIN_DOUBLINGS = 2


class BatchSizeSearch:
    """Doubles the number of images run at once until the time for one image no longer falls.

    Attributes:
        next_size: the number to time next.
        seconds_per_image: the shortest time for one image, for each number that was timed.
        vain_doublings: the last numbers that did not lower the time.
        is_finished: whether larger numbers are not worth a trial.
        announced_images: images that callers said they would run.
        timed_images: images that were run for the timing alone.
    """

    def __init__(self, first_size: int = 1, largest_size: int = MAX_TIMED_BATCH) -> None:
        self.next_size = first_size
        self.largest_size = largest_size
        self.seconds_per_image: dict[int, float] = {}
        self.vain_doublings = 0
        self.is_finished = first_size > largest_size
        self.announced_images = 0
        self.timed_images = 0

    @property
    def fastest_size(self) -> int:
        """The smallest number whose time is the shortest, or as good as that; 0 before a timing."""
        if not self.seconds_per_image:
            return 0
        limit = (1 + TIME_TOLERANCE) * min(self.seconds_per_image.values())
        return min(size for size, seconds in self.seconds_per_image.items() if seconds <= limit)

    def record_time(self, seconds: float) -> None:
        """Notes what `next_size` images took for each image, and goes on to the double number."""
        shortest = min(self.seconds_per_image.values(), default=float("inf"))
        has_fallen = seconds < (1 - TIME_TOLERANCE) * shortest
        self.vain_doublings = 0 if has_fallen else self.vain_doublings + 1
        self.seconds_per_image[self.next_size] = seconds
        self.next_size *= 2
        is_too_large = self.next_size > self.largest_size
        self.is_finished = is_too_large or self.vain_doublings == MAX_VAIN_DOUBLINGS

    def is_affordable(self) -> bool:
        """Whether timing `next_size` keeps the cost to its share of the announced images."""
        cost = max(self.timed_images + TIMING_REPEATS * self.next_size, MIN_TIMED_IMAGES)
        return cost <= MAX_TIMED_SHARE * self.announced_images


_SEARCHES: WeakKeyDictionary[Model, dict[Hashable, BatchSizeSearch]] = WeakKeyDictionary()


def find_batch_search(
    model: Model, purpose: Hashable, image: Tensor, first_size: int = 1
) -> BatchSizeSearch:
    """The search for this model, purpose, size of the image and number of threads."""
    key = (purpose, image.shape[-2:], torch.get_num_threads())
    return _SEARCHES.setdefault(model, {}).setdefault(key, BatchSizeSearch(first_size))


def choose_batch_size(
    model: Model,
    image: Tensor,
    gigabytes: float = 1.0,
    *,
    image_count: int,
    gradients: bool = True,
) -> int:
    """How many of `image_count` images to run at once: as many as fit, but no more than is faster.

    On a processor a timing finds what is faster, once the images that were asked for here are many
    more than it takes; until then, the size of the layers' outputs tells.
    """
    max_batch = max(
        1, min(image_count, estimate_max_batch(model, image, gigabytes, gradients=gradients))
    )
    if model.device.type != "cpu" or max_batch == 1 or model.findings.runs_one_by_one:
        return max_batch
    search = find_batch_search(model, ("gradients" if gradients else "scores"), image)
    search.announced_images += image_count
    run_images = run_with_gradient if gradients else run_without_gradient
    while not search.is_finished and search.next_size <= max_batch and search.is_affordable():
        images = image[:1].expand(search.next_size, -1, -1, -1)
        search.timed_images += TIMING_REPEATS * search.next_size
        search.record_time(time_call(run_images, model, images) / search.next_size)
    if search.is_finished:
        return min(max_batch, search.fastest_size)
    largest_output = max(list_output_bytes(model, image), default=1)
    cache_friendly = max(1, int(CACHE_FRIENDLY_BYTES / largest_output))
    size = min(max_batch, max(cache_friendly, search.fastest_size))
    return min(max_batch, spread_evenly(image_count, size))


def spread_evenly(count: int, size: int) -> int:
    """A number near `size`: the largest of as many batches as `count` images make about evenly."""
    batch_count = max(1, round(count / size))
    return math.ceil(count / batch_count)


def split_into_batches(count: int, size: int) -> list[range]:
    """The numbers below `count` in their order, at most `size` at a time, and about evenly.

    A last batch of a single image would take twice as long for it.
    """
    batch_count = math.ceil(count / size)
    bounds = [count * number // max(1, batch_count) for number in range(batch_count + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


def run_without_gradient(model: Model, images: Tensor) -> None:
    """A forward pass."""
    with torch.no_grad():
        model.run(images, ["logits"])


def run_with_gradient(model: Model, images: Tensor) -> None:
    """The gradient of one score; nothing but the forward pass where the network has none."""
    with torch.enable_grad():
        leaf = images.to(model.device).detach().requires_grad_()
        score = model.run(leaf, ["logits"])["logits"][:, 0].sum()
        if score.requires_grad:
            with guard_backward():
                torch.autograd.grad(score, leaf, allow_unused=True)


def time_call(run_images: Callable[[Model, Tensor], None], model: Model, images: Tensor) -> float:
    """The shortest of a few times of a call, in seconds."""
    times: list[float] = []
    for _ in range(TIMING_REPEATS):
        start = time.perf_counter()
        run_images(model, images)
        times.append(time.perf_counter() - start)
    return min(times)


# ── memory ──


def estimate_max_batch(
    model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True
) -> int:
    """How many images of this size can be run at once, at least 1.

    Their features take at most `gigabytes` (10⁹ bytes). With gradients the outputs of all layers
    are kept, without them only some of the largest. It is an estimate from the layers' shapes: what
    a network makes outside its modules is not counted, what containers pass on is counted twice.
    """
    output_bytes = list_output_bytes(model, image)
    if gradients:
        bytes_per_image = sum(output_bytes)
    else:
        bytes_per_image = MAPS_KEPT_WITHOUT_GRADIENTS * max(output_bytes, default=0)
    return max(1, int(gigabytes * 1e9 / max(bytes_per_image, 1)))


def list_output_bytes(model: Model, image: Tensor) -> list[float]:
    """The size in bytes of every layer's output for one image as large as this one."""
    area_ratio = math.prod(image.shape[-2:]) / model.size**2
    bytes_per_number = model.mean.element_size()
    bytes_per_position = bytes_per_number * area_ratio
    return [bytes_per_position * math.prod(layer.shape) for layer in model.layers.values()]
