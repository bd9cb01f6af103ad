"""The explorer: what its pages are made from."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from sightline.app.web.explorer.addresses import LayerSpellings, make_address
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.models.model import Model


class Explorer:
    """A scan and its network, and what their pages show.

    Pictures and scripts that a page shows are added while it is built, and made when they are asked
    for. All addresses are relative to the root of the site.

    Attributes:
        scan: The scan.
        model: Its network; None where it can't be had, and `model_note` says why.
        pictures: Where pictures are kept.
        has_synthesis: Whether the pages show what each unit would like to see.
        is_served: Whether a server answers, so that numbers may be made when they are asked for.
        command: What makes the site again.
    """

    def __init__(
        self,
        scan: Scan,
        model: Model | None = None,
        *,
        model_note: str = "",
        pictures: PictureCache | None = None,
        has_synthesis: bool = False,
        is_served: bool = False,
        command: str = "",
    ) -> None:
        self.scan = scan
        self.model = model
        self.model_note = model_note
        self.pictures = pictures or PictureCache()
        self.has_synthesis = has_synthesis and model is not None
        self.is_served = is_served
        self.command = command
        self.spellings = LayerSpellings(scan.layers)
        self.script_makers: dict[str, Callable[[], object]] = {}

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
        self, key: Mapping[str, Any], make: Callable[[], Tensor | bytes], **settings: Any
    ) -> str:
        """The address of a picture; `settings` are those of `PictureCache.add`.

        The key names everything that the pixels depend on. `make` gives the picture as 1×3×H×W in
        [0, 1], when it is asked for.
        """
        return f"pictures/{self.pictures.add(key, make, **settings)}"

    def add_script(self, name: str, make: Callable[[], object]) -> str:
        """The address of a script that hands JSON to the page: `sightline.receive(NAME, JSON)`.

        `name` has letters, digits and «._~-», in segments with a slash between. `make` gives the
        content, when it is asked for.
        """
        self.script_makers[name] = make
        return f"data/{name}.js"

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
        return self.pictures.read_numbers(key, make if self.is_served else None)

    def thumbnail(self, id: int) -> str:
        """The address of an image's thumbnail, a JPEG."""
        key = {"thumbnail": id, "image": self.digest_image(id)}

        def read_thumbnail() -> bytes:
            return self.scan.thumbnail_bytes([id])[0]

        return self.add_picture(key, read_thumbnail, suffix=".jpg", is_kept=False)

    # ── what keys are made of ──

    @cached_property
    def store_digest(self) -> str:
        """What tells this scan from others: its network's weights and its dataset."""
        dataset = self.scan.description.dataset
        return f"{self.scan.description.network.weights[:32]}-{dataset.sha256[:32]}"

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
