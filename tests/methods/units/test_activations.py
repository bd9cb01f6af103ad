"""Activation maps are what plain hooks see, the strongest first."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.images.plotting.maps import render_heatmap
from sightline.methods.units.activations import find_activation_limit, locate_map_cell

HEIGHT = 16
WIDTH = 20


class Net(nn.Module):
    """A network with an in-place ReLU as a module, and in-place ReLUs without one.

    The latter overwrite what a hook on the convolution before them saw.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2)
        self.conv3 = nn.Conv2d(6, 40, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = F.relu(self.conv2(x), inplace=True)
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16, device="cpu")


def make_images(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=generator)


def compute_outputs(model: sl.Model, images: Tensor) -> dict[str, Tensor]:
    """Each layer's own output, computed one after the other."""
    with torch.no_grad():
        conv1 = model.module("conv1")((images - 0.5) / 0.25).clone()
        conv2 = model.module("conv2")(conv1.relu()).clone()
        conv3 = model.module("conv3")(conv2.relu())
    return {"conv1": conv1, "relu": conv1.relu(), "conv2": conv2, "conv3": conv3}


@pytest.mark.parametrize("layer", ["conv1", "relu", "conv2", "conv3"])
def test_maps_are_the_layers_outputs_and_the_strongest_come_first(
    model: sl.Model, layer: str
) -> None:
    values = sl.activations(model, make_images(), layers=(layer,), k=4).values
    expected = compute_outputs(model, make_images())[layer]
    assert torch.allclose(values[f"{layer}_maps"], expected, atol=1e-5)
    for i in range(2):
        peaks = [float(channel.max()) for channel in expected[i]]
        shown_peaks = [peaks[channel] for channel in values[f"{layer}_order"][i].tolist()]
        assert shown_peaks == pytest.approx(sorted(peaks, reverse=True)[:4], abs=1e-5)


def test_several_layers_at_once(model: sl.Model) -> None:
    result = sl.activations(model, make_images(1), layers=("conv3", "conv1", "relu"), k=200)
    assert list(result.panels) == ["conv3", "conv1", "relu"]
    expected = compute_outputs(model, make_images(1))
    for name in result.panels:
        assert torch.allclose(result.values[f"{name}_maps"], expected[name], atol=1e-5)
        channels = sorted(result.values[f"{name}_order"][0].tolist())
        assert channels == list(range(expected[name].shape[1]))
    landmarks = sl.activations(model, make_images(1)).values
    assert torch.allclose(landmarks["first_maps"], expected["conv1"], atol=1e-5)


def test_signed_layers_are_red_and_blue_and_others_inferno(model: sl.Model) -> None:
    signed = sl.activations(model, make_images(1), layers=("conv1",))
    assert signed.values["conv1_maps"].min() < 0
    assert "red positive" in signed.captions["conv1"]
    panel = signed.panels["conv1"][0]
    assert (panel.amax(0) - panel.amin(0)).max() > 0.3
    positive = sl.activations(model, make_images(1), layers=("relu",))
    assert positive.values["relu_maps"].min() >= 0
    assert "Black is zero" in positive.captions["relu"]
    panel = positive.panels["relu"][0]
    assert (panel.amax(0) - panel.amin(0)).max() > 0.3
    assert not torch.equal(panel, signed.panels["conv1"][0])


def test_maps_are_laid_out_like_the_image_on_one_scale(model: sl.Model) -> None:
    """The second image's second strongest channel: 6 pixels for each of 16×20 positions."""
    images = make_images()
    result = sl.activations(model, images, layers=("relu",), k=3)
    maps = result.values["relu_maps"][1]
    channels = result.values["relu_order"][1]
    limit = float(find_activation_limit(maps[channels]))
    tile_height, tile_width = 6 * HEIGHT, 6 * WIDTH
    top = tile_height + 8  # below the sheet of the first image
    left = tile_width + 3
    tile = result.panels["relu"][0, :, top : top + tile_height, left : left + tile_width]
    (expected,) = render_heatmap(maps[channels[1]][None], limit)
    assert torch.equal(tile[:, 3::6, 3::6], expected)


def test_the_scale_ends_at_the_percentile_of_magnitudes() -> None:
    """So that a single spot doesn't leave the rest dark."""
    maps = torch.linspace(-0.5, 1, 2000).view(2, 25, 40)
    maps[1, 3, 4] = -1000
    limit = float(find_activation_limit(maps))
    assert limit == float(maps.abs().flatten().sort().values[round(0.998 * 2000) - 1])
    assert limit < 1.01


def test_a_dead_layer_is_black_and_not_nan() -> None:
    torch.manual_seed(0)
    network = Net()
    with torch.no_grad():
        network.conv1.bias.fill_(-1e3)
    model = sl.load(network, size=16, device="cpu")
    result = sl.activations(model, make_images(1), layers=("relu",))
    assert result.values["relu_maps"].abs().max() == 0
    assert torch.isfinite(result.panels["relu"]).all()
    assert "0% of all channels" in result.captions["relu"]


def test_the_share_of_channels_that_fire(model: sl.Model) -> None:
    images = make_images()
    peaks = compute_outputs(model, images)["conv3"].flatten(2).amax(2)
    caption = sl.activations(model, images, layers=("conv3",), k=2).captions["conv3"]
    assert "the 2 strongest of 40 channels, 5×7 positions each; " in caption
    assert f"{float((peaks > 0).float().mean()):.0%} of all channels fire somewhere" in caption


def test_a_layer_without_positions_is_refused(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match=r"no (places|positions)"):
        sl.activations(model, make_images(1), layers=("head",))
    with pytest.raises(sl.SightlineError, match="no layer named 'conv9'"):
        sl.activations(model, make_images(1), layers=("conv9",))


# ── one unit and what it sees ──


@pytest.mark.parametrize(("layer", "unit"), [("conv1", 2), ("conv2", 5), ("conv3", 7)])
def test_a_unit_is_shown_at_its_strongest_position_with_what_it_sees(
    model: sl.Model, layer: str, unit: int
) -> None:
    result = sl.activations(model, make_images(), layers=(layer,), unit=unit)
    maps = compute_outputs(model, make_images())[layer][:, unit]
    assert list(result.panels) == [layer, f"{layer}_unit"]
    field = sl.receptive_field(model, layer, HEIGHT, WIDTH)
    values = result.values
    for i in range(2):
        row, column = int(values["row"][i]), int(values["column"][i])
        assert maps[i, row, column] == maps[i].max()
        assert values["activation"][i].item() == pytest.approx(float(maps[i].max()), abs=1e-5)
        assert tuple(values["box"][i].tolist()) == field.box(row, column, HEIGHT, WIDTH)
    text = (
        f"Unit {unit} of {layer} is strongest at row {int(values['row'][0])}, "
        f"column {int(values['column'][0])} of its {maps.shape[1]}×{maps.shape[2]} positions"
    )
    assert text in result.captions[f"{layer}_unit"]


def test_the_outline_is_drawn_around_what_the_unit_sees(model: sl.Model) -> None:
    images = 0.1 + 0.3 * make_images()
    result = sl.activations(model, images, layers=("conv2",), unit=1)
    for i, top in enumerate((0, HEIGHT + 8)):
        shown = result.panels["conv2_unit"][..., top : top + HEIGHT, :WIDTH]
        changed = ((shown - images[i]).abs().amax(1)[0] > 0.3).nonzero()
        outline = [*changed.amin(0).tolist(), *(changed.amax(0) + 1).tolist()]
        assert outline == result.values["box"][i].tolist()


@pytest.mark.parametrize(("map_size", "image_size"), [((7, 9), (16, 20)), ((4, 5), (16, 20))])
def test_a_cell_has_the_pixels_of_its_position_and_two_around(
    map_size: tuple[int, int], image_size: tuple[int, int]
) -> None:
    """Against nearest-neighbour enlarging of a map with a single one."""
    for row, column in ((0, 0), (2, 3), (map_size[0] - 1, map_size[1] - 1)):
        single = torch.zeros(1, 1, *map_size)
        single[0, 0, row, column] = 1
        pixels = F.interpolate(single, size=image_size, mode="nearest")[0, 0].nonzero()
        top, left, bottom, right = locate_map_cell(row, column, map_size, image_size)
        rows, columns = pixels.unbind(1)
        assert 0 <= rows.min() - (top + 2) <= 1
        assert 0 <= columns.min() - (left + 2) <= 1
        assert 0 <= (bottom - 2) - (rows.max() + 1) <= 1
        assert 0 <= (right - 2) - (columns.max() + 1) <= 1


def test_a_unit_leaves_the_sheets_as_they_are(model: sl.Model) -> None:
    plain = sl.activations(model, make_images(), layers=("relu",))
    with_unit = sl.activations(model, make_images(), layers=("relu",), unit=0)
    assert torch.equal(plain.panels["relu"], with_unit.panels["relu"])
    assert plain.captions["relu"] == with_unit.captions["relu"]
    assert plain.values.keys() == {"relu_maps", "relu_order"}


def test_a_unit_that_does_not_exist_or_of_several_layers_is_refused(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="unit is 5; conv1 has units 0 to 4"):
        sl.activations(model, make_images(1), layers=("conv1",), unit=5)
    message = "unit= needs exactly one layer; layers= names 2: conv1, relu"
    with pytest.raises(sl.SightlineError, match=message):
        sl.activations(model, make_images(1), layers=("conv1", "relu"), unit=1)


def test_default_layers_are_those_that_there_are() -> None:
    """A network without gradients has no known last convolution."""

    class WithoutGradient(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model = sl.load(WithoutGradient(), size=16)
    assert "last_conv" not in model.landmarks
    assert list(sl.activations(model, make_images()).panels) == ["first", "middle"]
    with pytest.raises(sl.SightlineError, match="last_conv"):
        sl.activations(model, make_images(), layers=("first", "last_conv"))


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_shown_by_three_bands(channels: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    model = sl.load(network, mean=[0.5] * channels, std=[0.25] * channels, size=16)
    image = torch.rand(2, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    result = sl.activations(model, image, layers=("0",), unit=3)
    expected = network[0]((image - 0.5) / 0.25).detach()
    torch.testing.assert_close(result.values["0_maps"], expected)
    bands = [min(band, channels - 1) for band in range(3)]
    # The outline at the strongest position leaves the far corner as it is.
    row = int(result.values["row"][0])
    column = int(result.values["column"][0])
    corner_row = HEIGHT - 1 if row < HEIGHT // 2 else 0
    corner_column = WIDTH - 1 if column < WIDTH // 2 else 0
    corner = image[0, bands, corner_row, corner_column]
    assert torch.allclose(result.panels["0_unit"][0, :, corner_row, corner_column], corner)
    assert set(result.pages) == {"browse_0", "browse_1"}
