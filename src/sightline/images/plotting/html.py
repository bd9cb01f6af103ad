"""Self-contained HTML pages: a template of `templates/` filled in, with every picture inside."""

import base64
from typing import Any

from torch import Tensor

from sightline.images.io import encode_png


def render_template(template: str, **content: Any) -> str:
    """The text of the page that a template gives; what is put in is escaped, what is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("sightline")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def make_data_uri(picture: Tensor) -> str:
    """A picture 1×3×H×W in [0, 1] as the source of an <img>."""
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()
