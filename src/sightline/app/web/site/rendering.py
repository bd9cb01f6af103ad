"""Pages as HTML: templates filled in, with everything from outside escaped."""

from importlib.metadata import version
from typing import Any

from sightline.app.web.explorer.addresses import find_root_prefix
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.errors import escape_for_display
from sightline.images.plotting.html import render_template

DIGEST_DIGITS = 12  # of the weights' digest that pages show


def render_page(explorer: Explorer, page: Page, address: str) -> str:
    """The HTML of a page.

    A template has the page's data, and besides:

    - `page`, `title`, `address`, and `root`, which leads from the page to the root of the site;
    - `link(route, ...)`, the address of another page, relative to this one;
    - `url(address)`, the same for the address of a picture, script or file of `static/`;
    - `site`, facts of the whole site (`describe_site`), and `made_with`, a line of them.
    """
    root = find_root_prefix(address)

    def make_relative_link(route: str, **parts: Any) -> str:
        return root + explorer.link(route, **parts)

    def make_relative_url(target: str) -> str:
        return root + target

    site = describe_site(explorer)
    content = {
        "page": page,
        "title": page.title,
        "address": address,
        "root": root,
        "link": make_relative_link,
        "url": make_relative_url,
        "site": site,
        "made_with": describe_origin(site),
        "breadcrumb": [],
    }
    return render_template(page.template, package="sightline.app.web", **{**content, **page.data})


def describe_site(explorer: Explorer) -> dict[str, Any]:
    """What every page may say of the whole site."""
    scan = explorer.scan
    return {
        "network": escape_for_display(str(scan.recipe.get("model"))),
        "weights": scan.description.network.weights[:DIGEST_DIGITS],
        "store": escape_for_display(scan.path.name),
        "images": scan.images,
        "is_complete": scan.complete,
        "classes": len(scan.model_labels),
        "layers": [
            {"name": escape_for_display(layer), "address": explorer.link("layer", layer=layer)}
            for layer in scan.layers
        ],
        "version": version("sightline"),
        "command": explorer.command,
        "is_served": explorer.is_served,
        "has_comparison": explorer.compared_scan is not None,
        "has_mistakes": explorer.has_mistakes,
    }


def describe_origin(site: dict[str, Any]) -> str:
    """«sightnet (weights 0f3c…) on 2,904 images of mine.scan, Sightline 0.1.0»."""
    count = f"{site['images']:,} images" if site["images"] != 1 else "1 image"
    weights = f"weights {site['weights']}"
    return (
        f"{site['network']} ({weights}) on {count} of {site['store']}, Sightline {site['version']}"
    )
