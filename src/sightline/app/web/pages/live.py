"""The page that asks the network about a picture of one's own; it needs a server."""

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.errors import escape_for_display

# What the server answers, see `delivery/live/schema.py`.
ATTRIBUTIONS = (
    ("gradcam", "Grad-CAM"),
    ("saliency", "Saliency"),
    ("gradient_input", "Gradient × input"),
    ("guided", "Guided backpropagation"),
)

CAUTION = (
    "A cover also makes an image that the network has never seen: what changes is due to what is "
    "hidden and to the cover itself. A unit that is switched off is set to zero, which may be an "
    "unusual value for it."
)


def build_live_page(explorer: Explorer) -> Page:
    """The page without an image; its script asks the server."""
    scan = explorer.scan
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            ("live", ""),
        ],
        "has_model": explorer.model is not None,
        "model_note": explorer.model_note,
        "layers": [escape_for_display(layer) for layer in scan.layers],
        "attributions": ATTRIBUTIONS,
        "samples": [
            {"id": id, "picture": explorer.thumbnail(id)} for id in range(min(8, scan.images))
        ],
        "settings": {
            "size": scan.size,
            "folders": {
                escape_for_display(layer): explorer.link("unit", layer=layer, unit=0).removesuffix(
                    "0.html"
                )
                for layer in scan.layers
            },
        },
        "serve_command": explorer.format_command("explore"),
        "caution": CAUTION,
    }
    return Page("explorer/live.html", data, "Live")
