"""The pages of two networks compared, and of mistakes with what causes them.

What they show takes up to minutes to find, so it is kept with its pictures.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sightline.app.web.diagnosis.comparison import build_comparison_data
from sightline.app.web.diagnosis.mistakes import build_mistakes_data
from sightline.app.web.diagnosis.pictures import AddPicture
from sightline.app.web.explorer.explorer import Explorer, digest_scan
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.facts import link_image
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.images.decode.pixels import quantize_image
from sightline.methods.diagnosis.compare import StepProgress, compare, ignore_progress
from sightline.methods.diagnosis.mistakes import mistakes

# Raised when the pages show something else for the same scans.
DIAGNOSIS_VERSION = 2

PICTURE_QUALITY = 80

PICTURE_FOLDER = "pictures/"

# Takes what keeps a picture, and returns the variables of a template.
ContentMaker = Callable[[AddPicture], dict[str, Any]]


def build_comparison_page(explorer: Explorer) -> Page:
    """The network beside an earlier one, over the same images.

    Raises SightlineError for scans that can't be compared.
    """
    compared_scan = explorer.compared_scan
    if compared_scan is None:
        raise SightlineError("nothing is compared: name another store of the same images")
    content = read_comparison(explorer, compared_scan)
    words = ["sightline", "compare", compared_scan.path.name, explorer.scan.path.name]
    return make_diagnosis_page(explorer, "compare", content, shlex.join(words))


def build_mistakes_page(explorer: Explorer) -> Page:
    """The network's mistakes in groups, with a test of what causes each.

    Raises SightlineError for a scan that tells nothing of mistakes.
    """
    content = read_mistakes(explorer)
    return make_diagnosis_page(explorer, "mistakes", content, explorer.format_command("mistakes"))


def make_diagnosis_page(
    explorer: Explorer, name: str, content: Mapping[str, Any], command: str
) -> Page:
    """A page around the body of a report of diagnosis."""
    for address in content["pictures"]:
        explorer.show_kept_picture(address)
    network = escape_for_display(str(explorer.scan.recipe.get("model")))

    def link_unit(layer: str, unit: int) -> str:
        return explorer.link("unit", layer=layer, unit=unit)

    def link_shown_image(id: int) -> str:
        return link_image(explorer, id)

    data = {
        **content["data"],
        "breadcrumb": [(network, explorer.link("network")), (name, "")],
        "body": f"diagnosis/{name}_body.html",
        "link_unit": link_unit,
        "link_image": link_shown_image,
        "command": command,
    }
    return Page("explorer/diagnosis.html", data, f"{name.capitalize()}: {network}")


# ── what is kept ──


def read_comparison(
    explorer: Explorer, compared_scan: Scan, on_step: StepProgress = ignore_progress
) -> dict[str, Any]:
    """What the page of the comparison shows, found once.

    Raises SightlineError for scans that can't be compared.
    """

    def make_data(add_picture: AddPicture) -> dict[str, Any]:
        comparison = compare(compared_scan, explorer.scan, callback=on_step)
        return build_comparison_data(comparison, compared_scan, explorer.scan, add_picture)

    key = {"numbers": "comparison", "with": digest_scan(compared_scan)}
    return keep_content(explorer, key, make_data)


def read_mistakes(explorer: Explorer, on_step: StepProgress = ignore_progress) -> dict[str, Any]:
    """What the page of mistakes shows, found once.

    Raises SightlineError for a scan without classes, with too few images or too few mistakes.
    """

    def make_data(add_picture: AddPicture) -> dict[str, Any]:
        result = mistakes(explorer.scan, model=explorer.model, callback=on_step)
        return build_mistakes_data(result, explorer.scan, add_picture)

    return keep_content(explorer, {"numbers": "mistakes"}, make_data)


def keep_content(explorer: Explorer, key: Mapping[str, Any], make: ContentMaker) -> dict[str, Any]:
    """What a template is filled with, and the addresses of its pictures, made once."""
    full_key = {
        **key,
        "version": DIAGNOSIS_VERSION,
        "depends on": {"scan": explorer.store_digest},
    }
    content = explorer.pictures.read_numbers(full_key, None)
    if content is not None and all(
        map(explorer.pictures.has, map(_name_picture, content["pictures"]))
    ):
        return content
    addresses: dict[str, None] = {}

    def keep_picture(_key: str, picture: Tensor) -> str:
        pixels = quantize_image(picture[0])
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        picture_key = {"picture": "diagnosis", "size": pixels.shape, "pixels": digest}
        name = explorer.pictures.keep(picture_key, picture, PICTURE_QUALITY)
        addresses[PICTURE_FOLDER + name] = None
        return PICTURE_FOLDER + name

    data = make(keep_picture)
    content = json.loads(json.dumps({"data": data, "pictures": list(addresses)}, default=asdict))
    explorer.pictures.keep_numbers(full_key, content)
    return content


def _name_picture(address: str) -> str:
    return address.removeprefix(PICTURE_FOLDER)
