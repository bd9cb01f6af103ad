"""What a method returns: pictures, numbers, and the recipe that makes them again."""

import html
import json
import logging
import os
import sys
import tempfile
import textwrap
import warnings
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from sightline.errors import escape_text_for_display
from sightline.images.files import replace_atomically, replace_files_together, write_text
from sightline.images.io.pictures import WRITE_TOLERANCE, write
from sightline.images.plotting.figures import FigureData
from sightline.images.plotting.html import make_preview_uri
from sightline.images.video.properties import VIDEO_SUFFIXES
from sightline.images.video.writing import write_video

# What a method may put into `Result.values`.
ResultValue = Tensor | float | int | str | bool | None | list[Any] | dict[str, Any]

RECIPE_FILE = "recipe.json"

READ_ONLY_FIELDS = (
    "panels",
    "values",
    "captions",
    "recipe",
    "pages",
    "movies",
    "figures",
    "chosen",
)

# A tensor of up to so many numbers is written to values.json in full.
MAX_LISTED_NUMBERS = 16
# Pixels of the longer side of a picture in a notebook.
PREVIEW_SIDE = 640
# So many pictures of one result are written each by itself.
MAX_BARE_PICTURES = 64
# Characters of a caption below a panel that is shown in a window, and of a line of it.
MAX_SHOWN_CAPTION = 300
CAPTION_WIDTH = 72

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Result:
    """What a method returns. It cannot be changed, and shows its pictures in a notebook.

    Attributes:
        panels: Pictures by name, 1×3×H×W in [0, 1].
        values: Numbers and tensors by name, not scaled for display. The method's documentation
            lists them; each is a ResultValue.
        captions: What each panel or page shows, and its scale, by the same names. Each is one line
            that can be printed, whatever names are in it.
        recipe: Method, parameters, model, image and versions, as JSON holds them.
        pages: Self-contained HTML pages by name.
        movies: Frames N×3×H×W in [0, 1] by name. A name may end with its kind (zoom.gif,
            zoom.webp), otherwise the movie is saved as MP4.
        figures: What panels show, as data, by the same names: a page draws it in their place.
        chosen: Parameters that were None and that the method chose, by name. The recipe has them,
            so that it makes the result again to the bit.
    """

    panels: Mapping[str, Tensor]
    values: Mapping[str, Any]
    captions: Mapping[str, str] = field(default_factory=dict[str, str])
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pages: Mapping[str, str] = field(default_factory=dict[str, str])
    movies: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    figures: Mapping[str, FigureData] = field(default_factory=dict[str, FigureData])
    chosen: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in READ_ONLY_FIELDS:
            read_only_copy = MappingProxyType(dict(getattr(self, name)))
            object.__setattr__(self, name, read_only_copy)
        captions = {name: escape_text_for_display(text) for name, text in self.captions.items()}
        object.__setattr__(self, "captions", MappingProxyType(captions))

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any], ...]]:
        """How it is copied and pickled: its read-only mappings can't be, but their content can."""
        return type(self), tuple(dict(getattr(self, part.name)) for part in fields(self))

    def __repr__(self) -> str:
        panel_names = ", ".join(self.panels) or "none"
        values = [f"{name}: {_outline_value(value)}" for name, value in self.values.items()]
        contents = [f"panels: {panel_names}", f"values {{{', '.join(values)}}}"]
        if "method" in self.recipe:
            contents.insert(0, str(self.recipe["method"]))
        contents += [f"page: {name}" for name in self.pages]
        contents += [f"movie: {name}" for name in self.movies]
        return f"<Result {'; '.join(contents)}>"

    def _repr_html_(self) -> str:
        """The panels with their captions, as a notebook shows them."""
        figures = [
            _write_html_figure(name, panel, self.captions.get(name, ""))
            for name, panel in self.panels.items()
        ]
        outline = f"<p><code>{html.escape(repr(self))}</code></p>"
        return f"<div>{''.join(figures)}{outline}</div>"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The values that are tensors."""
        return {name: value for name, value in self.values.items() if isinstance(value, Tensor)}

    @property
    def numbers(self) -> dict[str, Any]:
        """All values as JSON holds them.

        A tensor of up to 16 numbers becomes a list, a larger one its shape and range.
        """
        return {
            name: summarize_tensor(value) if isinstance(value, Tensor) else value
            for name, value in self.values.items()
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes everything into a folder, all files or none.

        The files are `NAME.png` per panel, `NAME.html` per page, each movie, `values.json`,
        `values.safetensors` if there are tensors, and `recipe.json`. A method that makes pictures
        also writes each by itself: `image.png`, or `image_1.png` and so on.

        Returns the files. Raises SightlineError when the folder can't be written.
        """
        folder = Path(folder)
        with replace_files_together(folder, RECIPE_FILE) as temporary:
            names = self._write_files(temporary)
        return [folder / name for name in names]

    def _write_files(self, folder: Path) -> list[str]:
        """Writes every file into a folder; returns their names."""
        names: list[str] = []
        for name, panel in self.panels.items():
            names.append(f"{name}.png")
            write(panel, folder / names[-1])
        for name, picture in self.list_bare_pictures().items():
            names.append(f"{name}.png")
            write(picture, folder / names[-1])
        for name, page in self.pages.items():
            names.append(f"{name}.html")
            write_text(page, folder / names[-1])
        for name, frames in self.movies.items():
            names.append(_name_movie_file(name))
            write_video(frames, folder / names[-1])
        names.append("values.json")
        write_json(self.numbers, folder / names[-1])
        if self.tensors:
            names.append("values.safetensors")
            _write_tensors(self.tensors, folder / names[-1])
        names.append(RECIPE_FILE)
        write_json({**self.recipe, "captions": dict(self.captions)}, folder / names[-1])
        return names

    def list_bare_pictures(self) -> dict[str, Tensor]:
        """The pictures that a method made, each by itself at its own size, 1×C×H×W by file name.

        They are `values["image"]` where that holds RGB pictures, with `values["alpha"]` as a fourth
        channel. At most 64; none where a panel of the name "image" shows the picture already.
        """
        images = self.values.get("image")
        if "image" in self.panels or not isinstance(images, Tensor) or images.ndim < 4:
            return {}
        pictures = images.detach().flatten(0, -4).cpu().float()
        if pictures.shape[1] != 3 or not is_picture(pictures):
            return {}
        alpha = self.values.get("alpha")
        if isinstance(alpha, Tensor) and alpha.shape == images[..., 0, :, :].shape:
            opacity = alpha.detach().reshape(pictures[:, :1].shape).cpu().float()
            pictures = torch.cat([pictures, opacity], 1)
        if len(pictures) == 1:
            return {"image": pictures}
        digits = len(str(min(len(pictures), MAX_BARE_PICTURES)))
        return {
            f"image_{number:0{digits}}": picture[None]
            for number, picture in enumerate(pictures[:MAX_BARE_PICTURES], start=1)
        }

    def show(self) -> None:
        """Shows the panels with their captions: in a notebook, in a window, else in the browser.

        In a script it returns when the window is closed. Where matplotlib has no windows, a page is
        opened in the browser, or a line of the log says in which file the pictures are.
        """
        import matplotlib.pyplot as plt

        count = len(self.panels)
        figure, axes = plt.subplots(1, count, figsize=(5 * count, 5), squeeze=False)
        for axis, (name, panel) in zip(axes[0], self.panels.items(), strict=True):
            axis.imshow(panel[0].detach().permute(1, 2, 0).cpu().numpy())
            axis.set_title(name)
            caption = textwrap.shorten(self.captions.get(name, ""), MAX_SHOWN_CAPTION)
            lines = textwrap.fill(caption, CAPTION_WIDTH).replace("$", r"\$")
            axis.text(0, -0.02, lines, transform=axis.transAxes, va="top", fontsize=8)
            axis.set_axis_off()
        figure.tight_layout()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* non-interactive")
            plt.show()
        if not _shows_figures():
            plt.close(figure)
            _open_in_browser(self._repr_html_())


def is_picture(images: Tensor) -> bool:
    """Whether all values lie in [0, 1], but for rounding; NaN does not."""
    low, high = images.aminmax() if images.numel() else (torch.ones(()), torch.zeros(()))
    return bool(low >= -WRITE_TOLERANCE) and bool(high <= 1 + WRITE_TOLERANCE)


def summarize_tensor(tensor: Tensor) -> Any:
    """A small tensor as a list; a large one as its shape, minimum, maximum and mean."""
    tensor = tensor.detach().cpu()
    if tensor.numel() <= MAX_LISTED_NUMBERS:
        return tensor.tolist()
    numbers = tensor.double()
    return {
        "shape": list(tensor.shape),
        "min": numbers.min().item(),
        "max": numbers.max().item(),
        "mean": numbers.mean().item(),
    }


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes indented JSON atomically, with its keys in their order."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", path)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file atomically. It takes only contiguous tensors that share nothing."""
    from safetensors.torch import save

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replace_atomically(path) as temporary:
        # `save_file` would make the file readable by its owner only.
        temporary.write_bytes(save(copies))


def _name_movie_file(name: str) -> str:
    return name if name.endswith(VIDEO_SUFFIXES) else f"{name}.mp4"


def _outline_value(value: Any) -> str:
    """A value in a few characters: a tensor by its shape, a list by its length."""
    if isinstance(value, Tensor):
        return "×".join(map(str, value.shape)) or "scalar"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _write_html_figure(name: str, panel: Tensor, caption: str) -> str:
    """A panel as an HTML figure with its picture inside."""
    source = make_preview_uri(panel, PREVIEW_SIDE)
    title = html.escape(name)
    return (
        '<figure style="display: inline-block; margin: 0.5em; vertical-align: top">'
        f'<img src="{source}" alt="{title}" style="max-width: 100%">'
        f'<figcaption style="max-width: {PREVIEW_SIDE}px"><b>{title}</b> '
        f"{html.escape(caption)}</figcaption></figure>"
    )


def _shows_figures() -> bool:
    """Whether matplotlib's backend, which is chosen by now, has windows or draws in a notebook."""
    import matplotlib
    from matplotlib.backends.registry import BackendFilter, backend_registry

    backend = matplotlib.get_backend().lower()
    return backend not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)


def _open_in_browser(content: str) -> None:
    """Opens HTML as a page of its own in a temporary folder, or says that it lies there."""
    page = Path(tempfile.mkdtemp(prefix="sightline-")) / "result.html"
    write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>Sightline</title>{content}', page)
    has_screen = sys.platform in ("win32", "darwin") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if not (has_screen and webbrowser.open(page.as_uri())):
        logger.warning("no window can be opened here; the pictures are in %s", page)
