"""A page of the explorer, before it is rendered."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Page:
    """A template of `app/web/templates/`, and what it is filled with.

    Attributes:
        template: Its path, such as "explorer/unit.html".
        data: Its variables by name.
        title: Of the browser's window, plain text.
    """

    template: str
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    title: str = ""
