"""What a method gives back: pictures, numbers, and the recipe that makes them again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from sightline.images.files import replace_atomically
from sightline.images.io import write
from sightline.images.video import VIDEO_SUFFIXES, write_video

ResultValue = Tensor | float | int | str | bool | None | list[Any] | dict[str, Any]


def freeze_mapping(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A read-only copy of the top level."""
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Result:
    """`panels`: pictures by name, 1×3×H×W in [0, 1]. `captions`: what each panel or page shows and its scale. `values`: unscaled
    numbers and tensors by name. `recipe`: method, knobs, model, image and versions, JSON-able. `pages`: what can be browsed,
    by name, each the text of a self-contained HTML page.
    `movies`: frames N×3×H×W in [0, 1] by name; a name may say its kind (zoom.gif, zoom.webp), else it is an MP4."""

    panels: Mapping[str, Tensor]
    values: Mapping[str, ResultValue]
    captions: Mapping[str, str] = field(default_factory=dict[str, str])
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pages: Mapping[str, str] = field(default_factory=dict[str, str])
    movies: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        for name in ("panels", "values", "captions", "recipe", "pages", "movies"):
            object.__setattr__(self, name, freeze_mapping(getattr(self, name)))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The values that are tensors."""
        return {name: value for name, value in self.values.items() if isinstance(value, Tensor)}

    @property
    def numbers(self) -> dict[str, Any]:
        """All values as JSON: a tensor of up to 16 numbers as a list, a larger one as its shape and range."""
        return {
            name: summarize_tensor(value) if isinstance(value, Tensor) else value
            for name, value in self.values.items()
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `NAME.png` per panel, `NAME.html` per page, each movie, `values.json`, `values.safetensors` and `recipe.json`;
        each file whole or not at all.

        Returns the files. Raises SightlineError when the folder can't be written.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        written: list[Path] = []
        for name, panel in self.panels.items():
            write(panel, record_written_path(folder / f"{name}.png", written))
        for name, page in self.pages.items():
            write_text(page, record_written_path(folder / f"{name}.html", written))
        for name, frames in self.movies.items():
            write_video(
                frames,
                record_written_path(
                    folder / (name if name.endswith(VIDEO_SUFFIXES) else f"{name}.mp4"), written
                ),
            )
        write_json(self.numbers, record_written_path(folder / "values.json", written))
        if self.tensors:
            with replace_atomically(
                record_written_path(folder / "values.safetensors", written)
            ) as temporary:
                save_file(
                    {
                        name: tensor.detach().cpu().contiguous().clone()
                        for name, tensor in self.tensors.items()
                    },
                    temporary,
                )
        write_json(
            {**self.recipe, "captions": dict(self.captions)},
            record_written_path(folder / "recipe.json", written),
        )
        return written

    def show(self) -> None:
        """Draws the panels side by side with matplotlib, in a notebook or a window."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(self.panels), figsize=(4 * len(self.panels), 4), squeeze=False
        )
        for axis, (name, panel) in zip(axes[0], self.panels.items(), strict=True):
            axis.imshow(panel[0].detach().permute(1, 2, 0).cpu().numpy())
            axis.set_title(name)
            axis.set_axis_off()
        figure.tight_layout()
        plt.show()


def record_written_path(path: Path, written: list[Path]) -> Path:
    """Notes a file that is about to be written."""
    written.append(path)
    return path


def summarize_tensor(tensor: Tensor) -> Any:
    """A small tensor as a list, a large one as shape, least, largest and mean value."""
    tensor = tensor.detach().cpu()
    if tensor.numel() <= 16:
        return tensor.tolist()
    numbers = tensor.double()
    return {
        "shape": list(tensor.shape),
        "min": numbers.min().item(),
        "max": numbers.max().item(),
        "mean": numbers.mean().item(),
    }


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes JSON atomically, readable and with sorted order left as given."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", path)


def write_text(content: str, path: Path) -> None:
    """Writes UTF-8 text atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
