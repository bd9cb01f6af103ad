"""What a texture method is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.models.model import Model
from sightline.registry.progress import Callback


@dataclass(frozen=True)
class TextureRequest:
    """From which exemplar 3×h×w, how large; with windows of how many pixels, tiling or not, remade after which picture 3×H×W
    (the classical ways); by which network and layers, in how many steps at each size, with average pooling or not, with which
    weight of the spectrum, in how many GB (the neural ones); with which seed, watched by whom."""

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
        """Random numbers of this seed, from the first."""
        return torch.Generator().manual_seed(self.seed)


TextureMaker = Callable[[TextureRequest], Tensor]
