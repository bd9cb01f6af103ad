"""The explorer: what its pages are made from."""

import json
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from sightline.app.web.explorer.addresses import LayerSpellings, make_address
from sightline.app.web.pictures.cache import PictureCache
from sightline.app.web.pictures.synthesis import UnitSynthesis
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.models.model import Model

# Of a scan of more images, only those have an exported page that are among the strongest of a unit.
MAX_IMAGE_PAGES = 5_000

# Units of a layer share many of their strongest images, so the last ones that were read are kept:
# of the originals as many as fit, of the thumbnails, about 4 kB each, a number.
RECENT_IMAGE_BYTES = 200_000_000
MAX_RECENT_THUMBNAILS = 8_192

# So many scripts are remembered that pages have added.
MAX_SCRIPTS = 50_000
SCRIPT_NAME = re.compile(r"[A-Za-z0-9_~][A-Za-z0-9._~-]*(/[A-Za-z0-9_~][A-Za-z0-9._~-]*)*")


class Explorer:
    """A scan and its network, and what their pages show.

    Pictures and scripts that a page shows are added while it is built, and made when they are asked
    for. All addresses are relative to the root of the site.

    Attributes:
        scan: The scan.
        model: Its network; None where it can't be had, and `model_note` says why.
        pictures: Where pictures are kept.
        has_synthesis: Whether the pages show what each unit would like to see.
        compared_scan: Of another network over the same images, that a page compares with this one.
        has_mistakes: Whether a page shows the groups of mistakes, and what causes them.
        is_served: Whether a server answers, so that numbers may be made when they are asked for.
        command: What makes the site again.
        network_options: What a command needs to load the network, where the store alone does not
            tell.
    """

    def __init__(
        self,
        scan: Scan,
        model: Model | None = None,
        *,
        model_note: str = "",
        pictures: PictureCache | None = None,
        has_synthesis: bool = False,
        compared_scan: Scan | None = None,
        has_mistakes: bool = False,
        is_served: bool = False,
        command: str = "",
        network_options: Sequence[str] = (),
    ) -> None:
        self.scan = scan
        self.model = model
        self.model_note = model_note
        self.pictures = pictures or PictureCache()
        self.has_synthesis = has_synthesis and model is not None
        self.compared_scan = compared_scan
        self.has_mistakes = has_mistakes
        self.is_served = is_served
        self.command = command
        self.network_options = list(network_options)
        self.spellings = LayerSpellings(scan.layers)
        self.script_makers: OrderedDict[str, Callable[[], object]] = OrderedDict()
        self._recent_images: OrderedDict[int, Tensor] = OrderedDict()
        self._recent_thumbnails: OrderedDict[int, bytes] = OrderedDict()
        self._lock = RLock()
        self._resources: ContextVar[set[str] | None] = ContextVar("resources", default=None)

    def format_command(self, name: str, *options: str) -> str:
        """A command line that asks this store."""
        words = ["sightline", name, "--store", self.scan.path.name, *options]
        return shlex.join([*words, *self.network_options])

    # ── addresses ──

    def link(self, route: str, **parts: Any) -> str:
        """The address of a page: `link("unit", layer="layer1.0/relu", unit=7)`.

        Layers are named as the scan names them. Raises SightlineError for others.
        """
        if "layer" in parts:
            layer = self.scan.resolve_layer("layer", parts["layer"], self.scan.layers)
            parts = {**parts, "layer": layer}
        return make_address(route, parts, self.spellings)

    # ── pictures, scripts and numbers ──

    def add_picture(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Tensor | bytes],
        *,
        depends_on: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        """The address of a picture; `settings` are those of `PictureCache.add`.

        The key says what is drawn, and `depends_on` of what: by default of this scan, so of all
        weights and the whole dataset. What names less, such as only the images that are shown
        (`digest_image`) or the weights up to a layer, is not made again for another checkpoint.
        `make` gives the picture as 1×3×H×W in [0, 1], when it is asked for.
        """
        origin = {"scan": self.store_digest} if depends_on is None else dict(depends_on)
        name = self.pictures.add({**key, "depends on": origin}, make, **settings)
        return self._note_resource(f"pictures/{name}")

    def show_kept_picture(self, address: str) -> None:
        """Says that a page shows a picture that is kept already."""
        self._note_resource(address)

    def add_script(self, name: str, make: Callable[[], object]) -> str:
        """The address of a script that hands JSON to the page: `sightline.receive(NAME, JSON)`.

        `name` has letters, digits and «._~-», in segments with a slash between. `make` gives the
        content, when it is asked for.
        """
        if not SCRIPT_NAME.fullmatch(name):
            raise ValueError(f"no script may have the name {name!r}")
        with self._lock:
            self.script_makers[name] = make
            self.script_makers.move_to_end(name)
            if len(self.script_makers) > MAX_SCRIPTS:
                self.script_makers.popitem(last=False)
        return self._note_resource(f"data/{name}.js")

    def _note_resource(self, address: str) -> str:
        resources = self._resources.get()
        if resources is not None:
            resources.add(address)
        return address

    @contextmanager
    def record_resources(self) -> Generator[set[str], None, None]:
        """Collects the addresses of pictures and scripts that are added while the block runs."""
        resources: set[str] = set()
        token = self._resources.set(resources)
        try:
            yield resources
        finally:
            self._resources.reset(token)

    def read_script(self, name: str) -> str | None:
        """The text of a script; None if no page has added it."""
        make = self.script_makers.get(name)
        if make is None:
            return None
        content = json.dumps(make(), separators=(",", ":"), allow_nan=False)
        return f"sightline.receive({json.dumps(name)},{content});\n"

    def read_numbers(
        self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Numbers that take long, by their key. None where they are not kept and nobody waits."""
        full_key = {**key, "depends on": {"scan": self.store_digest}}
        return self.pictures.read_numbers(full_key, make if self.is_served else None)

    def thumbnail(self, id: int) -> str:
        """The address of an image's thumbnail, a JPEG."""
        network = self.scan.description.network
        key = {"picture": "thumbnail", "sides": [*network.size, network.short_side]}
        origin = {"image": self.digest_image(id)}

        def read_thumbnail() -> bytes:
            return self.read_thumbnails([id])[0]

        return self.add_picture(
            key, read_thumbnail, depends_on=origin, suffix=".jpg", is_kept=False
        )

    def read_thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """The thumbnails of several images as JPEG files; those that are not in memory together."""
        with self._lock:
            contents = {id: self._recent_thumbnails.get(id) for id in ids}
        missing_ids = [id for id, content in contents.items() if content is None]
        missing_contents = self.scan.thumbnail_bytes(missing_ids)
        with self._lock:
            for id, content in zip(missing_ids, missing_contents, strict=True):
                contents[id] = content
                self._recent_thumbnails[id] = content
            while len(self._recent_thumbnails) > MAX_RECENT_THUMBNAILS:
                self._recent_thumbnails.popitem(last=False)
        return [content for content in map(contents.get, ids) if content is not None]

    def read_input(self, id: int) -> Tensor:
        """An image as the network gets it, 1×C×side×side in [0, 1].

        Raises SightlineError where the original is gone or has changed.
        """
        with self._lock:
            pixels = self._recent_images.get(id)
            if pixels is not None:
                self._recent_images.move_to_end(id)
        if pixels is None:
            image = self.scan.image(id)
            steps = image.mul(255).round().to(torch.uint8)
            # Those that a scan saw as pictures have 8 bits; of others the numbers are kept.
            pixels = steps if torch.equal(steps.float().div(255), image) else image
            with self._lock:
                self._recent_images[id] = pixels
                while len(self._recent_images) * pixels.nbytes > RECENT_IMAGE_BYTES:
                    self._recent_images.popitem(last=False)
        return pixels if pixels.is_floating_point() else pixels.float().div(255)

    def read_image(self, id: int) -> Tensor | None:
        """The original as a picture, 1×3×side×side; None where it is gone or has changed."""
        try:
            image = self.read_input(id)
        except SightlineError:
            return None
        return image if self.model is None else self.model.to_picture(image)

    # ── synthesis ──

    @cached_property
    def unit_synthesis(self) -> UnitSynthesis | None:
        """How units are synthesized; None without the network."""
        return None if self.model is None else UnitSynthesis(self.model, self.pictures)

    def synthesis(self, layer: str, unit: int, sign: int = 1) -> str | None:
        """The address of the image that drives a unit up (sign 1) or down (−1).

        None where none are made. The one that drives it down is made when it is asked for, so a
        site of files has it only if somebody has looked at it before.
        """
        if self.unit_synthesis is None or not self.has_synthesis:
            return None
        is_made = sign == 1 or self.is_served
        if not is_made and not self.unit_synthesis.has_picture(layer, unit, sign):
            return None
        name = self.unit_synthesis.name_picture(layer, unit, sign)
        return self._note_resource(f"pictures/{name}")

    def synthesis_variants(self, layer: str, unit: int) -> str | None:
        """The address of four different images that drive a unit up; None where none are made.

        There are none of a layer without maps, in which an image has no style that could differ.
        They are made when they are asked for, so a site of files has them only if somebody has
        looked at them before.
        """
        synthesis = self.unit_synthesis
        has_maps = min(self.scan.description.layers[layer].map_shape) > 1
        if synthesis is None or not self.has_synthesis or not has_maps:
            return None
        if not self.is_served and not synthesis.has_variants(layer, unit):
            return None
        return self._note_resource(f"pictures/{synthesis.name_variants(layer, unit)}")

    @cached_property
    def has_classes(self) -> bool:
        """Whether the network is here and gives scores of classes."""
        if self.model is None:
            return False
        try:
            self.model.require_classes("the explorer")
        except SightlineError:
            return False
        return True

    # ── which images have a page ──

    @cached_property
    def image_ids(self) -> list[int]:
        """The images that have an exported page, in order: all, or the strongest of the units."""
        if self.scan.images <= MAX_IMAGE_PAGES:
            return list(range(self.scan.images))
        ids: dict[int, None] = {}
        rank = 0
        while len(ids) < MAX_IMAGE_PAGES and rank < self._ranked_image_ids.shape[0]:
            ids.update(dict.fromkeys(self._ranked_image_ids[rank].tolist()))
            rank += 1
        return sorted(id for id in list(ids)[:MAX_IMAGE_PAGES] if id >= 0)

    @cached_property
    def _ranked_image_ids(self) -> Tensor:
        """Ids of the strongest images of all units, ranks×units."""
        return torch.cat([self.scan.top(layer).ids for layer in self.scan.layers], 1)

    @cached_property
    def _exported_images(self) -> set[int]:
        return set(self.image_ids)

    def has_image_page(self, id: int) -> bool:
        """Whether an image has a page: when served all have one, else those of `image_ids`."""
        if self.is_served:
            return 0 <= id < self.scan.images
        return id in self._exported_images

    # ── what keys are made of ──

    @cached_property
    def store_digest(self) -> str:
        """What tells this scan from others: its network's weights and its dataset."""
        return digest_scan(self.scan)

    @cached_property
    def _image_digests(self) -> list[str]:
        return self.scan.read_column("sha256").to_pylist()

    def digest_image(self, id: int) -> str:
        """What tells an image from others: the digest of its file, or its number in this scan.

        Raises SightlineError for an id that the scan has not.
        """
        if not 0 <= id < self.scan.images:
            raise SightlineError(f"id is {id}; the scan has images 0 to {self.scan.images - 1}")
        return self._image_digests[id] or f"{self.store_digest}-{id}"


def digest_scan(scan: Scan) -> str:
    """What tells a scan from others: its network's weights and its dataset."""
    dataset = scan.description.dataset
    return f"{scan.description.network.weights[:32]}-{dataset.sha256[:32]}"
