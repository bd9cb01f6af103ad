"""The texture method: pictures of the size asked for by every method, and how good they are."""

import math
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.methods.texture.makers import TEXTURE_MAKERS
from sightline.methods.texture.texture import NEURAL_METHODS, choose_texture_window

METHODS = ("quilting", "efros_leung", "wei_levoy", "patchmatch")


@pytest.fixture(scope="module")
def grain() -> Tensor:
    return torch.rand(1, 3, 30, 34, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_gives_pictures_of_the_size_and_number_asked_for(
    method: str, tiny: sl.Model, grain: Tensor
) -> None:
    options = {"method": method, "side": 37, "window": 7}
    result = sl.texture(tiny, grain, count=2, **options)  # type: ignore[arg-type]
    values = result.values
    assert result.tensors["image"].shape == (2, 3, 37, 37)
    assert len(values["copy_rate"]) == len(values["seam"]) == 2  # type: ignore[arg-type]
    assert 0 < values["diversity"][0] < 1.3  # type: ignore[index]
    alone = sl.texture(tiny, grain, seed=1, **options)  # type: ignore[arg-type]
    assert torch.equal(alone.tensors["image"][0], result.tensors["image"][1]), (
        "the second is the next seed's"
    )
    assert "diversity" not in alone.values


def test_each_exemplar_of_a_batch_for_itself(tiny: sl.Model, grain: Tensor) -> None:
    both = sl.texture(tiny, torch.cat([grain, 1 - grain]), side=40, count=2)
    alone = sl.texture(tiny, 1 - grain, side=40, count=2)
    assert torch.equal(both.tensors["image"][2:], alone.tensors["image"])
    for name in ("copy_rate", "seam", "seam_rank", "held_out", "other_network"):
        assert both.values[name][2:] == pytest.approx(alone.values[name])  # type: ignore[index]
    assert both.values["diversity"][1:] == pytest.approx(alone.values["diversity"])  # type: ignore[index]


def test_by_default_twice_as_large_as_the_short_side(tiny: sl.Model, grain: Tensor) -> None:
    result = sl.texture(tiny, grain)
    assert result.tensors["image"].shape == (1, 3, 60, 60)


@pytest.mark.parametrize(
    ("method", "default", "even"),
    [("quilting", 7, 6), ("efros_leung", 13, 7), ("wei_levoy", 9, 7), ("patchmatch", 7, 7)],
)
def test_windows_of_each_method(method: str, default: int, even: int, grain: Tensor) -> None:
    """A quarter of the short side for blocks; neighborhoods have a pixel in their middle."""
    assert choose_texture_window(None, method, grain) == default
    assert choose_texture_window(6, method, grain) == even
    small = grain[..., :16, :]
    assert choose_texture_window(None, "efros_leung", small) == 9, "half of the short side, odd"


@pytest.mark.parametrize("method", [*METHODS, "gatys", "sliced"])
def test_tiles_when_asked_to(method: str, tiny: sl.Model) -> None:
    columns = (torch.arange(48) * 2 * torch.pi / 12).sin() / 2 + 0.5
    rows = (torch.arange(48) * 2 * torch.pi / 16).sin() / 2 + 0.5
    exemplar = (rows[:, None] * columns).expand(1, 3, 48, 48).contiguous()
    result = sl.texture(tiny, exemplar, method=method, side=48, steps=40, tileable=True)  # type: ignore[arg-type]
    assert result.values["seam"][0] < 1.6  # type: ignore[index]


def test_remakes_a_picture(tiny: sl.Model, grain: Tensor) -> None:
    target = torch.zeros(1, 3, 32, 40)
    target[..., 20:] = 1
    shaded = grain * torch.linspace(0, 1, 34)
    result = sl.texture(tiny, shaded, guide=target, window=8)
    picture = result.tensors["image"]
    assert picture.shape == target.shape
    assert picture[..., 22:].mean() > picture[..., :18].mean() + 0.05
    assert "the picture to follow" in result.captions["texture"]

    by_name = sl.texture(tiny, shaded, guide="grass", window=20, callback=lambda step: True)
    assert by_name.tensors["image"].shape[-2:] == sl.sample("grass").shape[-2:]


def test_the_panel_shows_all_at_the_same_scale(tiny: sl.Model, grain: Tensor) -> None:
    """Exemplar, guide and picture side by side, with white below what is lower."""
    target = torch.zeros(1, 3, 50, 40)
    result = sl.texture(tiny, grain, guide=target, window=8)
    panel = result.panels["texture"]
    gap = 6
    assert panel.shape[-2:] == (50, 34 + gap + 40 + gap + 40)
    torch.testing.assert_close(panel[..., :30, :34], grain)
    assert (panel[..., 30:, :34] == 1).all()
    torch.testing.assert_close(panel[..., 40 : 40 + 40], target)
    torch.testing.assert_close(panel[..., -40:], result.tensors["image"])


def test_a_flat_exemplar_stays_flat(tiny: sl.Model) -> None:
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 32, 28).clone()
    for method in (*METHODS, "gatys"):
        result = sl.texture(tiny, flat, method=method, side=36, steps=10)  # type: ignore[arg-type]
        picture = result.tensors["image"]
        expected = flat[..., :1, :1].expand_as(picture)
        # Its gradient is rounding alone, and how far the first steps follow that differs between
        # processors: 0.034 in single pixels on one.
        tolerance = 0.05 if method == "gatys" else 1e-4
        torch.testing.assert_close(picture, expected, atol=tolerance, rtol=0)


def test_stops_in_the_middle_of_several(tiny: sl.Model, grain: Tensor) -> None:
    indices: list[int] = []

    def stop_in_the_second(step: sl.Step) -> bool:
        indices.append(step.index)
        return step.index > step.total / 3

    result = sl.texture(tiny, grain, side=60, count=3, window=7, callback=stop_in_the_second)
    assert len(result.tensors["image"]) == 2
    assert indices == sorted(indices)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 2}, "window is 2"),
        ({"window": 25}, "window is 25; it must lie between 6 and 20"),
        ({"window": 25, "method": "patchmatch"}, "window is 25; it must lie between 3 and 20"),
        ({"guide": "nowhere.png"}, "nowhere.png"),
        (
            {"guide": "grass", "method": "patchmatch"},
            "only method='quilting' follows a guide, not 'patchmatch'",
        ),
        ({"guide": torch.rand(1, 3, 1, 2)}, "the guide is 1×2 pixels; it needs 16×16 or more"),
        ({"guide": "grass", "side": 40}, "the guide sets the size"),
        ({"side": 8}, "side is 8"),
        ({"method": "gatys", "window": 9}, "window is for the classical methods"),
        ({"method": "gatys", "layers": ("relu9",)}, "no layer named 'relu9'"),
        (
            {"method": "patchmatch", "side": 4000},
            r"4000×4000 pixels from 30×34 by method='patchmatch' with windows of 7 need about "
            r"47.0 GB, more than memory=4; raise memory",
        ),
        (
            {"method": "wei_levoy", "side": 8000, "memory": 0.01},
            "need about .* GB, more than memory=0.01",
        ),
        (
            {"method": "gatys", "side": 2500, "tileable": True},
            "pixels need about .* GB, more than memory=4; .* made in one piece: raise memory",
        ),
        (
            {"method": "gatys", "side": 4000, "memory": 0.01},
            "in tiles of 128 pixels about .* GB; raise memory or lower the size",
        ),
        ({"method": "sliced", "side": 4000}, "the sliced loss sorts the whole picture"),
    ],
)
def test_refuses_in_one_line(
    options: dict[str, object], words: str, tiny: sl.Model, grain: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match=words) as error:
        sl.texture(tiny, grain, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_refuses_an_exemplar_that_is_too_small(tiny: sl.Model) -> None:
    with pytest.raises(
        sl.SightlineError, match="the exemplar is 8×30 pixels; a texture needs 16×16 or more"
    ):
        sl.texture(tiny, torch.rand(1, 3, 8, 30))


# ── networks of one size ──


class OneSize(nn.Module):
    """A vision transformer's beginning: positions are added to a grid of 6×6 patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 6, 6, 6))
        self.mix = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        maps = torch.relu(self.patch(image) + self.positions)
        return self.head(torch.relu(self.mix(maps)).mean((2, 3)))


@pytest.mark.parametrize("method", ["gatys", "sliced"])
@pytest.mark.parametrize("exemplar_side", [24, 31])
def test_a_network_of_one_size_makes_that_size(method: Any, exemplar_side: int) -> None:
    model = sl.load(OneSize(), size=24)
    exemplar = smooth(side=exemplar_side)
    layers = tuple(name for name in model.layers if "relu" in name)
    options: dict[str, Any] = {"method": method, "steps": 2, "layers": layers}
    result = sl.texture(model, exemplar, **options)
    assert result.values["image"].shape == (1, 3, 24, 24)
    assert all(math.isfinite(error) for error in result.values["held_out"])
    with pytest.raises(sl.SightlineError, match="can't take an image") as caught:
        sl.texture(model, exemplar, side=40, **options)
    assert "\n" not in str(caught.value)


def test_classical_textures_keep_their_default_size() -> None:
    model = sl.load(OneSize(), size=24)
    result = sl.texture(model, smooth(side=24), method="quilting")
    assert result.values["image"].shape == (1, 3, 48, 48)


@pytest.mark.parametrize("method", TEXTURE_MAKERS)
@pytest.mark.parametrize("bands", [2, 5])
def test_textures_of_any_number_of_bands(method: Any, bands: int) -> None:
    torch.manual_seed(bands)
    layers = (nn.Conv2d(bands, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(6, 3))
    model = sl.load(network, mean=(0.4,) * bands, std=(0.3,) * bands, size=24)
    exemplars = torch.rand(1, bands, 26, 30)
    neural = {"steps": 2} if method in NEURAL_METHODS else {}
    picture = sl.texture(model, exemplars, method=method, side=22, **neural).values["image"]
    assert picture.shape == (1, bands, 22, 22)
    if not neural and method != "patchmatch":  # every pixel is one of the exemplar's
        colors = exemplars.flatten(2)[0].T
        distances = torch.cdist(
            picture.flatten(2)[0].T, colors, compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert distances.amin(1).max() < 1e-5


def test_a_guide_needs_a_picture() -> None:
    network = nn.Sequential(nn.Conv2d(5, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = sl.load(network, mean=(0.4,) * 5, std=(0.3,) * 5, size=24)
    with pytest.raises(sl.SightlineError, match="luminance, which 5 bands do not have"):
        sl.texture(model, torch.rand(1, 5, 24, 24), guide=torch.rand(1, 3, 24, 24))
