"""Occlusion against a double loop, in closed form on a linear network, and against captum."""

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

import sightline as sl
from sightline.methods.attribution.occlusion import average_drops_per_pixel

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LABELS = ("ant", "bee", "cat", "dog")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def loaded(net: nn.Module) -> sl.Model:
    return sl.load(net, mean=MEAN, std=STD, labels=LABELS, size=16, device="cpu")


def pictures(count: int = 2, height: int = 16, width: int = 19) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def starts_along(length: int, window: int, stride: int) -> list[int]:
    """Multiples of the stride while a window fits, and the edge if none has come so far."""
    starts = [start for start in range(length - window + 1) if start % stride == 0]
    last_pixel = max(start + window - 1 for start in starts)
    return starts if last_pixel == length - 1 else [*starts, length - window]


def literal(
    net: nn.Module, image: Tensor, label: int, *, window: int, stride: int, fill: float
) -> np.ndarray:
    """Cover, look, compare: one window at a time, normalized here."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def score(picture: Tensor) -> float:
        with torch.no_grad():
            return float(net((picture[None] - mean) / std)[0, label])

    rows = []
    for top in starts_along(image.shape[1], window, stride):
        row = []
        for left in starts_along(image.shape[2], window, stride):
            covered = image.clone()
            for y in range(top, top + window):
                for x in range(left, left + window):
                    covered[:, y, x] = fill
            row.append(score(image) - score(covered))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("window", "stride", "fill"),
    [
        (4, 4, 0.5),
        (5, 3, 0.0),
        (1, 7, 1.0),
        (16, 8, 0.5),
        (16, 1, 0.2),
        (3, 16, 0.5),
        (7, 100, 0.5),
    ],
)
def test_it_is_the_double_loop(window: int, stride: int, fill: float) -> None:
    net = network()
    found = sl.occlusion(
        loaded(net), pictures(), label=2, window=window, stride=stride, fill=fill
    ).values["drop"]
    expected = [
        literal(net, image, 2, window=window, stride=stride, fill=fill) for image in pictures()
    ]
    assert found.shape == (2, *expected[0].shape)
    assert np.allclose(found.numpy(), np.stack(expected), atol=2e-6)


def test_on_a_linear_network_it_is_the_weights_times_what_was_covered() -> None:
    torch.manual_seed(2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 19, 4))
    weight = linear[1].weight.detach().double().view(4, 3, 16, 19) / torch.tensor(
        STD
    ).double().view(3, 1, 1)
    found = sl.occlusion(
        loaded_as(linear, 16, 19), pictures(), label="dog", window=6, stride=5, fill=0.25
    ).values["drop"]
    for i, image in enumerate(pictures().double()):
        share = weight[3] * (image - 0.25)
        for r, top in enumerate((0, 5, 10)):
            for c, left in enumerate((0, 5, 10, 13)):  # 10 + 6 < 19: a last one at the edge
                assert found[i, r, c].item() == pytest.approx(
                    float(share[:, top : top + 6, left : left + 6].sum()), abs=1e-4
                )


def loaded_as(net: nn.Module, height: int, width: int) -> sl.Model:
    """A network that takes one size only, which is not square."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(
                x, (0, max(0, width - x.shape[3]), 0, max(0, height - x.shape[2]))
            )
            return self.net(padded[:, :, :height, :width])

    return loaded(Cut())


def test_captum_agrees_where_every_window_fits() -> None:
    """captum too gives each pixel the mean over the windows that cover it."""
    model = loaded(network())
    image = pictures(1, 16, 20)
    window, stride = 8, 4
    expected = Occlusion(model.logits).attribute(
        image,
        target=1,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        baselines=0.5,
        perturbations_per_eval=3,
    )
    values = sl.occlusion(model, image, label=1, window=window, stride=stride).values
    assert torch.allclose(values["attribution"], expected[:, 0], atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(5, 3), (4, 4), (3, 5), (7, 1)])
def test_a_pixel_has_the_mean_drop_of_the_windows_that_cover_it(window: int, stride: int) -> None:
    values = sl.occlusion(
        loaded(network()), pictures(), label=2, window=window, stride=stride
    ).values
    drop = values["drop"]
    tops = starts_along(16, window, stride)
    lefts = starts_along(19, window, stride)
    corners = [(top, left) for top in tops for left in lefts]
    assert drop.shape == (2, len(tops), len(lefts))
    for i in range(len(drop)):
        drops = drop[i].flatten().tolist()
        for y, x in np.ndindex(16, 19):
            covering = [
                value
                for value, (row, column) in zip(drops, corners, strict=True)
                if row <= y < row + window and column <= x < column + window
            ]
            mean = sum(covering) / len(covering) if covering else 0.0
            assert values["attribution"][i, y, x].item() == pytest.approx(mean, abs=1e-5)


def test_an_equal_drop_everywhere_is_an_equal_attribution() -> None:
    """However many windows cover a pixel; where none does, the attribution is 0."""
    positions = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4, 6)]
    drops = torch.full((2, 1, 3, 4), 1.5)
    attribution = average_drops_per_pixel(drops, positions, 4, 9, 11)
    assert attribution.shape == (2, 1, 9, 11)
    assert torch.equal(attribution[..., :8, :10], torch.full((2, 1, 8, 10), 1.5))
    assert not attribution[..., 8:, :].any()
    assert not attribution[..., :, 10:].any()


@pytest.mark.parametrize("batch", [1, 3, 7, 4096])
def test_the_batch_changes_nothing(batch: int) -> None:
    model = loaded(network())
    one = sl.occlusion(model, pictures(), window=4, stride=5, batch=32).values
    other = sl.occlusion(model, pictures(), window=4, stride=5, batch=batch).values
    assert torch.allclose(one["drop"], other["drop"], atol=1e-6)
    assert torch.equal(one["label"], other["label"])


def test_each_image_has_its_own_top_label() -> None:
    net = network()
    model = loaded(net)
    images = torch.cat([pictures(), torch.zeros(1, 3, 16, 19), torch.ones(1, 3, 16, 19)])
    values = sl.occlusion(model, images, window=8, stride=4).values
    tops = model.logits(images).argmax(1)
    assert values["label"].tolist() == tops.tolist()
    assert torch.allclose(values["score"], model.logits(images).amax(1), atol=1e-6)
    for i, top in enumerate(tops.tolist()):
        assert np.allclose(
            values["drop"][i].numpy(),
            literal(net, images[i], top, window=8, stride=4, fill=0.5),
            atol=2e-6,
        )


def test_covering_with_the_same_gray_costs_nothing() -> None:
    gray = torch.full((1, 3, 16, 16), 0.3)
    result = sl.occlusion(loaded(network()), gray, window=4, stride=4, fill=0.3)
    assert result.values["drop"].abs().max() < 1e-6
    assert torch.isfinite(result.panels["occlusion"]).all()


def test_the_image_stays_as_it_is() -> None:
    image = pictures()
    before = image.clone()
    sl.occlusion(loaded(network()), image, window=4, stride=4)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("window", "shape"), [(17, (16, 19)), (17, (19, 16)), (100, (16, 16))])
def test_a_window_larger_than_the_image_is_refused(window: int, shape: tuple[int, int]) -> None:
    with pytest.raises(
        sl.SightlineError, match=f"window is {window}; it must lie between 1 and 16"
    ):
        sl.occlusion(loaded(network()), pictures(1, *shape), window=window)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("window", 0), ("stride", 0), ("fill", 1.1), ("fill", -0.1), ("batch", 0)],
)
def test_parameters_out_of_range_are_refused(parameter: str, value: float) -> None:
    with pytest.raises(sl.SightlineError, match=f"{parameter} is {value}; it must lie between"):
        sl.occlusion(loaded(network()), pictures(1), **{parameter: value})


# ── several labels ──


@pytest.mark.parametrize("incremental", [True, False])
def test_several_labels_are_each_alone(incremental: bool) -> None:
    model = loaded(network())
    labels = ("dog", "top", 0)
    several = sl.occlusion(
        model, pictures(), label=labels, window=5, stride=4, incremental=incremental
    )
    assert several.values["drop"].shape == (2, 3, 4, 5)
    assert several.values["attribution"].shape == (2, 3, 16, 19)
    for i, label in enumerate(labels):
        one = sl.occlusion(
            model, pictures(), label=label, window=5, stride=4, incremental=incremental
        )
        assert one.values["drop"].shape == (2, 4, 5)
        for name in ("attribution", "drop", "score", "label"):
            assert torch.allclose(several.values[name][:, i], one.values[name], atol=1e-6), name
    assert several.panels["occlusion"].shape == (1, 3, 2 * 16 + 6, 4 * 19 + 3 * 6)
    assert "dog" in several.captions["occlusion"]


def test_a_list_of_one_keeps_its_axis() -> None:
    assert sl.occlusion(loaded(network()), pictures(), label=["cat"], window=8).values[
        "drop"
    ].shape == (2, 1, 2, 3)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ((), "label is an empty list"),
        ((0, 9), "label is 9; .* has classes 0 to 3"),
        ((0, 1.5), "label"),
    ],
)
def test_labels_that_are_not_there_are_refused(label: tuple[object, ...], said: str) -> None:
    with pytest.raises(sl.SightlineError, match=said):
        sl.occlusion(loaded(network()), pictures(1), label=label)


# ── what covers ──


def test_words_for_what_covers() -> None:
    """Each word against covered images made here.

    Gray, black, the image's mean colour, the blurred image.
    """
    model, image, window = loaded(network()), pictures(1), 6
    radius, line = 9, np.exp(-(np.arange(-9, 10) ** 2) / (2 * 3.0**2))
    line /= line.sum()
    padded = np.pad(
        image[0].double().numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="reflect"
    )
    rows = sum(weight * padded[:, i : i + 16] for i, weight in enumerate(line))
    blurred = sum(weight * rows[:, :, i : i + 19] for i, weight in enumerate(line))
    fills = {
        "gray": torch.full((3, 16, 19), 0.5),
        "zero": torch.zeros(3, 16, 19),
        "mean": image[0].mean((1, 2)).view(3, 1, 1).expand(3, 16, 19),
        "blur": torch.from_numpy(blurred).float(),
    }
    for fill, cover in fills.items():
        found = sl.occlusion(model, image, label=1, window=window, stride=5, fill=fill).values[
            "drop"
        ][0]
        tops = starts_along(16, window, 5)
        lefts = starts_along(19, window, 5)
        assert found.shape == (len(tops), len(lefts))
        for r, c in np.ndindex(*found.shape):
            covered = image[0].clone()
            place = slice(tops[r], tops[r] + window), slice(lefts[c], lefts[c] + window)
            covered[:, place[0], place[1]] = cover[:, place[0], place[1]]
            expected = model.logits(image)[0, 1] - model.logits(covered[None].clamp(0, 1))[0, 1]
            assert found[r, c].item() == pytest.approx(expected.item(), abs=1e-5), fill


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (5, 4), (7, 6), (16, 100)])
def test_no_strip_is_left_at_an_edge(window: int, stride: int) -> None:
    """A network that sees the last row and column alone has its evidence there."""

    class LastLines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            edge = x[:, :, -1].sum((1, 2)) + x[:, :, :, -1].sum((1, 2))
            return torch.stack([edge, -edge], 1)

    model = sl.load(LastLines(), size=32)
    values = sl.occlusion(
        model, torch.ones(1, 3, 37, 30), label=0, window=window, stride=stride
    ).values
    assert bool((values["attribution"][0, -1, :window] > 0).all())
    assert bool((values["attribution"][0, :window, -1] > 0).all())
    assert float(values["attribution"][0, -1, -1]) > 0


def count_images(net: nn.Module, *, incremental: bool, label: object) -> list[int]:
    """How many images the network saw in each pass of one occlusion, once it is known."""
    model = loaded(net)
    assert model.findings.head is not None
    lengths: list[int] = []
    normalize = model.normalize

    def count(image: Tensor) -> Tensor:
        lengths.append(len(image))
        return normalize(image)

    model.normalize = count  # type: ignore[method-assign]
    options = {"window": 5, "stride": 4, "batch": 6, "incremental": incremental}
    sl.occlusion(model, pictures(1), label=label, **options)
    return lengths


def test_the_clean_image_is_among_the_covered_ones() -> None:
    """4×5 windows and the image itself, in four batches of about one size; "top" costs nothing."""
    for label in (2, "top", ("top", "bee")):
        assert count_images(network(), incremental=False, label=label) == [5, 5, 5, 6]


def test_incremental_occlusion_prepares_single_images_only() -> None:
    assert set(count_images(network(), incremental=True, label="top")) == {1}


def test_an_unknown_label_is_refused_before_the_network_runs() -> None:
    model = loaded(network())
    assert model.findings.head is not None
    calls: list[object] = []
    model.network.register_forward_pre_hook(lambda *_: calls.append(0))
    for label in ("wasp", ("top", "wasp"), 4):
        with pytest.raises(sl.SightlineError, match=r"wasp|4"):
            sl.occlusion(model, pictures(1), label=label)
    assert calls == []


@pytest.mark.parametrize("incremental", [True, False])
def test_an_image_without_scores_does_not_spoil_the_next(incremental: bool) -> None:
    """NaN is refused, with the layer; an image of the same size is then followed as before."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.9).sqrt()

    model = loaded(nn.Sequential(Root(), *network()))
    bright = 0.5 + 0.5 * pictures(1)
    dark = bright.clone()
    dark[:, 2, 9, 4] = 0.0
    options = {"window": 5, "stride": 4, "label": 1, "incremental": incremental}
    with pytest.raises(sl.SightlineError, match=r"gives NaN for this image .*layer with NaN is 0"):
        sl.occlusion(model, dark, **options)
    values = sl.occlusion(model, bright, **options).values
    assert (values["incremental"] > 0) == incremental
    fresh = sl.occlusion(loaded(nn.Sequential(Root(), *network())), bright, **options).values
    assert torch.equal(values["drop"], fresh["drop"])
