"""The maxima of the units' maps and where they lie, on maps that are not square."""

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.data.scan.maxima import PeakCapture, compute_maxima, locate_maxima
from sightline.data.scan.unit_statistics import UnitStatistics

IMAGES, UNITS, HEIGHT, WIDTH = 3, 4, 5, 7


def make_maps() -> Tensor:
    """Feature maps with ties, so that the first of several maxima has to be given."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 9, (IMAGES, UNITS, HEIGHT, WIDTH), generator=generator).float()


def test_maxima_of_rows_and_maps() -> None:
    maps = make_maps()
    row_maxima, maxima = compute_maxima(maps)
    assert row_maxima.shape == (IMAGES, HEIGHT, UNITS)
    for image in range(IMAGES):
        for unit in range(UNITS):
            rows = maps[image, unit].tolist()
            assert row_maxima[image, :, unit].tolist() == [max(row) for row in rows]
            assert float(maxima[image, unit]) == max(max(row) for row in rows)


def test_a_network_that_takes_gradients_itself() -> None:
    class Energy(nn.Module):
        """Its scores are a gradient, and it keeps a table from its first run."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 5)
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.linspace(1, 2, 5)
            with torch.enable_grad():
                code = torch.ones(len(x), 5, requires_grad=True)
                energy = (self.head(self.conv(x).mean((2, 3))) * self.table * code.square()).sum()
                return torch.autograd.grad(energy, code, create_graph=True)[0] / 2

    torch.manual_seed(0)
    model = sl.load(Energy().eval(), size=(24, 32))
    images = smooth(3, seed=3)
    statistics = UnitStatistics(units=9, k=2, sample_size=2, class_count=0, class_k=1)
    slices = {"conv": slice(0, 4), "logits": slice(4, 9)}
    capture = PeakCapture(model, slices, ["logits"], statistics)
    ids = torch.arange(3)
    statistics.begin_batch(ids, torch.full((3,), -1), ids)
    outputs = capture.measure_batch(images)
    torch.testing.assert_close(outputs["logits"], model.logits(images).detach())
    assert not outputs["logits"].requires_grad
    assert sl.saliency(model, images[:1]).values["attribution"].any()


@pytest.mark.parametrize("turned", [False, True])
def test_flat_position_is_row_times_width_plus_column(turned: bool) -> None:
    """In maps that are wider than high, and higher than wide, with the maximum in a late row."""
    maps = make_maps().mT if turned else make_maps()
    maps[1, 2, -1, -2] = 50
    row_maxima, _ = compute_maxima(maps)
    images, units = torch.cartesian_prod(torch.arange(IMAGES), torch.arange(UNITS)).T
    positions = locate_maxima(maps, row_maxima, images, units)
    # torch's argmax of a contiguous flat map gives the first maximum in the same order.
    expected = [int(maps[i, u].flatten().argmax()) for i, u in zip(images, units, strict=True)]
    assert positions.tolist() == expected
    height, width = maps.shape[2:]
    assert height != width
    assert int(positions[1 * UNITS + 2]) == (height - 1) * width + width - 2


def test_capture_is_a_plain_forward_pass(wide: sl.Model) -> None:
    images = smooth(5, seed=3)
    slices = {"conv1": slice(0, 6), "conv2": slice(6, 16), "logits": slice(16, 21)}
    statistics = UnitStatistics(units=21, k=3, sample_size=4, class_count=0, class_k=1)
    capture = PeakCapture(wide, slices, ["fc:in", "conv2"], statistics)
    ids = torch.arange(5)
    statistics.begin_batch(ids, torch.full((5,), -1), ids)
    outputs = capture.measure_batch(images)

    with torch.no_grad():
        plain = wide.features(images, ["conv1", "conv2", "fc:in", "logits"])
    torch.testing.assert_close(outputs["logits"], plain["logits"])
    torch.testing.assert_close(outputs["fc:in"], plain["fc:in"])
    torch.testing.assert_close(outputs["conv2"], plain["conv2"].mean((2, 3)))
    assert plain["conv2"].shape[2:] == (8, 10)
    for layer, units in slices.items():
        flat_maps = plain[layer].flatten(2) if plain[layer].ndim == 4 else plain[layer][..., None]
        maxima, positions = flat_maps.max(2)
        values, order = maxima.sort(0, descending=True)
        torch.testing.assert_close(statistics.top.values[units].T, values[:3])
        assert torch.equal(statistics.top.ids[units].T.long(), order[:3])
        assert torch.equal(statistics.top.peaks[units].T.long(), positions.gather(0, order[:3]))


def test_nan_never_is_a_maximum(wide: sl.Model) -> None:
    statistics = UnitStatistics(units=2, k=1, sample_size=1, class_count=0, class_k=1)
    capture = PeakCapture(wide, {"conv1": slice(0, 2)}, [], statistics)
    maps = torch.arange(2 * HEIGHT * WIDTH).float().view(1, 2, HEIGHT, WIDTH)
    maps[0, 0, HEIGHT - 1, WIDTH - 1] = torch.nan
    maps[0, 1] = torch.nan
    capture.images = torch.zeros(1, 3, 32, 32)
    statistics.begin_batch(torch.tensor([0]), torch.tensor([-1]), torch.tensor([0]))
    capture.record_tensor("conv1", maps)
    assert statistics.top.values[:, 0].tolist() == [HEIGHT * WIDTH - 2, -torch.inf]
    assert statistics.top.peaks[:, 0].tolist() == [HEIGHT * WIDTH - 2, -1]
    assert statistics.top.ids[:, 0].tolist() == [0, -1]
