"""The parameters of one texture, as every texture method takes them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.models.model import Model
from sightline.registry.progress import Callback


@dataclass(frozen=True)
class TextureRequest:
    """One texture: an exemplar 3×h×w in [0, 1], the size (H, W) of the picture, and parameters.

    Classical methods read `window`, the side of blocks or neighborhoods in pixels, `tileable`, and
    `guide`, the picture 3×H×W of a texture transfer. Neural methods read `tileable` and the rest:
    `steps` are those at each size, `memory_gb` is the budget in GB.
    """

    exemplar: Tensor
    size: tuple[int, int]
    window: int
    tileable: bool
    guide: Tensor | None
    model: Model
    layers: tuple[str, ...]
    steps: int
    use_average_pooling: bool
    spectrum_weight: float
    memory_gb: float
    seed: int
    callback: Callback | None

    @property
    def generator(self) -> torch.Generator:
        """A new generator with this seed."""
        return torch.Generator().manual_seed(self.seed)


TextureMaker = Callable[[TextureRequest], Tensor]
