"""Layouts of windows and tokens against explicit loops over positions, and evidence for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.feature_maps import count_layer_units, reshape_to_feature_maps
from sightline.models.layers.layouts import FeatureLayout, WindowGrid, is_map_of_image
from sightline.models.model import Model

ROWS, COLUMNS = 8, 12


def number_positions(count: int = 2, channels: int = 3) -> Tensor:
    """N×C×8×12 whose values all differ."""
    shape = (count, channels, ROWS, COLUMNS)
    return torch.arange(count * channels * ROWS * COLUMNS).view(shape) * 1.0


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
@pytest.mark.parametrize("is_strided", [False, True])
def test_windows_are_joined(is_strided: bool, shift: tuple[int, int]) -> None:
    """Every token of every window is taken from the maps one by one."""
    maps = number_positions()
    grid = WindowGrid((2, 6), (4, 2), is_strided, shift)
    windows = torch.zeros(2, 12, 8, 3)
    for window in range(12):
        for token in range(8):
            if is_strided:
                row = token // 2 * 2 + window // 6
                column = token % 2 * 6 + window % 6
            else:
                row = window // 6 * 4 + token // 2
                column = window % 6 * 2 + token % 2
            source = ((row + shift[0]) % ROWS, (column + shift[1]) % COLUMNS)
            windows[:, window, token] = maps[:, :, source[0], source[1]]
    joined = windows.flatten(0, 1)
    for order, feature in (
        ("MTC", joined),
        ("NKTC", windows),
        ("MHWC", joined.unflatten(1, (4, 2))),
        ("MCHW", joined.unflatten(1, (4, 2)).permute(0, 3, 1, 2)),
    ):
        layout = FeatureLayout(order, ROWS, COLUMNS, windows=grid)
        assert torch.equal(layout.arrange_as_maps(feature), maps), order


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width", "expected"),
    [
        (7, 9, 224, 288, True),
        (8, 8, 299, 299, True),  # convolutions without padding
        (7, 7, 224, 288, False),
        (64, 20, 224, 288, False),
        (448, 576, 224, 288, True),
    ],
)
def test_which_maps_are_of_the_image(
    rows: int, columns: int, height: int, width: int, expected: bool
) -> None:
    assert is_map_of_image(rows, columns, height, width) == expected


class Arranged(nn.Module):
    """4×4 patches of a square image, 16 channels each, so that no shape tells the axes apart."""

    def __init__(self, arrange: Callable[[Tensor], Tensor], restore: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.layer = nn.Identity()
        self.head = nn.Linear(16, 5)
        self.arrange = arrange
        self.restore = restore

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patches(x)
        arranged = self.layer(self.arrange(maps))
        return self.head(self.restore(arranged, maps).mean((2, 3)))


def cut_windows(maps: Tensor, shift: int) -> Tensor:
    """(N·4)×4×C: four windows of 2×2 positions of the rolled maps."""
    rolled = maps.roll((-shift, -shift), (2, 3))
    cells = rolled.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(-1, 4, maps.shape[1])


ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "N×C×H×W": lambda maps: maps * 1,
    "N×H×W×C": lambda maps: maps.permute(0, 2, 3, 1),
    "N×T×C": lambda maps: maps.flatten(2).transpose(1, 2),
    "N×C×T": lambda maps: maps.flatten(2),
    "T×N×C": lambda maps: maps.flatten(2).permute(2, 0, 1),
    "with prefix": lambda maps: torch.cat(
        [torch.zeros(len(maps), 3, 16), maps.flatten(2).transpose(1, 2)], 1
    ),
    "heads": lambda maps: maps.flatten(2).unflatten(1, (2, 8)).transpose(2, 3),
    "windows": lambda maps: cut_windows(maps, 0),
    "shifted windows": lambda maps: cut_windows(maps, 1),
    "rows": lambda maps: maps.permute(0, 2, 3, 1).flatten(0, 1),
    "columns": lambda maps: maps.permute(0, 3, 2, 1).flatten(0, 1),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_evidence_tells_the_axes_of_a_square_image_apart(arrangement: str) -> None:
    network = Arranged(ARRANGEMENTS[arrangement], lambda _arranged, maps: maps)
    model = Model(network.eval(), size=32)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for count in (16, 3, 1):
        with torch.no_grad():
            outputs = model.run(images[:count], ["layer", "patches"])
        maps = reshape_to_feature_maps(
            outputs["layer"], 32, 32, batch=count, model=model, layer="layer"
        )
        assert torch.equal(maps, outputs["patches"])
    assert count_layer_units(model, "layer") == 16


def test_what_has_no_position_is_refused_in_one_line() -> None:
    """Groups of seven tokens fill no grid of a square image."""
    network = Arranged(ARRANGEMENTS["windows"], lambda _arranged, maps: maps)
    model = Model(network.eval(), size=32)
    with pytest.raises(SightlineError, match="its output is") as caught:
        reshape_to_feature_maps(torch.zeros(12, 7, 16), 32, 32, batch=3, model=model, layer="layer")
    assert "\n" not in str(caught.value)


def test_another_number_of_tokens_is_refused_in_one_line() -> None:
    layout = FeatureLayout("NTC", 2, 3, extra_tokens=1)
    assert layout.arrange_as_maps(torch.rand(2, 7, 5)).shape == (2, 5, 2, 3)
    with pytest.raises(SightlineError, match="gives 3 tokens where it gave 6 before"):
        layout.arrange_as_maps(torch.rand(2, 4, 5))
