"""Instance norm against batch statistics in the shipped network: torch's norms, and the values."""

import json

import pytest
import torch
from helpers import ROOT, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.generators.architectures.style import ConditionalInstanceNorm, make_stylizer
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.images.io.library import PAINTINGS_FOLDER
from sightline.methods.style.norms import RECORDED_EXPERIMENT, describe_recorded_losses
from sightline.optim.perceptual.layers import choose_perceptual_layers

HEIGHT, WIDTH = 40, 48


def test_batch_statistics_are_torchs_batch_norm_in_training() -> None:
    norm = ConditionalInstanceNorm(5)
    reference = nn.BatchNorm2d(5).train()
    with torch.no_grad():
        reference.weight.copy_(norm.weight[0].uniform_(0.5, 2))
        reference.bias.copy_(norm.bias[0].uniform_(0.5, 2))
    x = 2 * torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)) + 1
    norm.use_batch_statistics = True
    mix = torch.ones(3, 1)
    torch.testing.assert_close(norm(x, mix), reference(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(norm(x, mix), reference(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_of_one_is_alike_with_either() -> None:
    network = make_stylizer(0, 1, width=4, blocks=1).eval()
    image = smooth(side=WIDTH)[..., :HEIGHT, :]
    pair = torch.cat([image, 0.5 * image])
    expected = network(image, torch.ones(1, 1))
    network.set_batch_statistics()
    torch.testing.assert_close(network(image, torch.ones(1, 1)), expected)
    with_batch_statistics = network(pair, torch.ones(2, 1))
    network.set_batch_statistics(False)
    with_instance_norm = network(pair, torch.ones(2, 1))
    assert (with_instance_norm - with_batch_statistics).abs().max() > 0.01
    torch.testing.assert_close(with_instance_norm[:1], expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_removes_contrast_and_batch_statistics_do_not() -> None:
    model = sl.load("sightnet_plain")
    values = sl.norms(model, model.fit(sl.sample("chelsea"), 96), contrast=0.25).tensors
    instance_difference, batch_difference = values["apart"][0]
    assert instance_difference < 0.4 * batch_difference
    pale_losses = values["style"][0, :, 1]
    assert pale_losses[1] > 1.2 * pale_losses[0], "farther from the painting with batch statistics"


def test_values_are_what_they_say(tiny: sl.Model) -> None:
    photos = smooth(2, WIDTH, seed=3)[..., :HEIGHT, :]
    result = sl.norms(tiny, photos, style="scream", contrast=0.5)
    values = result.tensors
    shape = (2, 2, 3, HEIGHT, WIDTH)
    assert values["instance"].shape == values["batch"].shape == shape

    network = read_fixed_style_network("painters")
    mix = network.make_mix("scream").expand(2, -1)
    mean = photos[1:].mean()
    pair = torch.cat([photos[1:], mean + 0.5 * (photos[1:] - mean)])
    with torch.no_grad():
        instance_norm = network.network(pair, mix)
        network.network.set_batch_statistics()
        batch_norm = network.network(pair, mix)
    torch.testing.assert_close(values["instance"][1], instance_norm, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values["batch"][1], batch_norm, rtol=1e-3, atol=1e-4)

    for column, name in enumerate(("instance", "batch")):
        difference = (values[name][1, 0] - values[name][1, 1]).abs().mean()
        torch.testing.assert_close(values["apart"][1, column], difference)
    differences = values["apart"].mean(0)
    assert f"by {float(differences[1]):.3f} with batch statistics" in result.captions["norms"]
    assert sl.norms(tiny, photos, contrast=1.0).tensors["apart"].max() < 1e-4

    photo_loss = compute_style_loss(tiny, photos[1:])
    for row, name in enumerate(("instance", "batch")):
        for copy in range(2):
            share = compute_style_loss(tiny, values[name][1, copy][None]) / photo_loss
            assert float(values["style"][1, row, copy]) == pytest.approx(share, rel=2e-3)


def compute_style_loss(model: sl.Model, picture: Tensor) -> float:
    """E to the middle of The Scream, mean over layers (Gatys 2016, eq. 4)."""
    painting = sl.read(PAINTINGS_FOLDER / "scream.jpg")
    rows = round(painting.shape[2] * WIDTH / painting.shape[3])
    resized = nn.functional.interpolate(painting, (rows, WIDTH), mode="bilinear", antialias=True)
    top = (rows - HEIGHT) // 2
    cropped = resized[:, :, top : top + HEIGHT]
    errors: list[float] = []
    for layer in choose_perceptual_layers(model).style:
        grams: list[Tensor] = []
        for image in (picture, cropped):
            features = model.features(image, layer)[layer][0].flatten(1)
            grams.append(features @ features.T / features.shape[1])
        errors.append(float((grams[0] - grams[1]).square().mean() / 4))
    return sum(errors) / len(errors)


def test_a_large_photograph_is_reduced(tiny: sl.Model) -> None:
    photo = smooth(side=80)[..., :60, :]
    assert sl.norms(tiny, photo, max_side=33).tensors["instance"].shape == (1, 2, 3, 33, 44)
    assert sl.norms(tiny, photo, max_side=61).tensors["instance"].shape == (1, 2, 3, 60, 80)


# ── the recorded experiment ──


def test_the_record_is_the_documents() -> None:
    """The table in docs/instance_norm.md and the file hold the same losses."""
    document = (ROOT / "docs" / "instance_norm.md").read_text(encoding="utf-8")
    record = json.loads(RECORDED_EXPERIMENT.read_text(encoding="utf-8"))
    for condition, losses in record.items():
        cells = [
            ", ".join(f"{loss:.2f}" for loss in losses[norm]) for norm in ("instance", "batch")
        ]
        row = f"| {condition.removeprefix('photographs ')} | {cells[0]} | {cells[1]} |"
        assert row in document


def test_the_caption_counts_pairs_and_compares_sums() -> None:
    recorded = {"dark": {"instance": [1.0, 2.0, 1.0], "batch": [2.0, 1.0, 5.0]}}
    caption = describe_recorded_losses(recorded)
    assert "dark: 2.00 times the loss with batch norm" in caption
    assert "instance norm lower in 2 of 3 pairs" in caption


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"style": "screm"}, "did you mean scream"),
        ({"contrast": 1.5}, "contrast is 1.5"),
        ({"max_side": 8}, "max_side is 8"),
    ],
)
def test_refusals(
    parameters: dict[str, object], message: str, tiny: sl.Model, photo: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        sl.norms(tiny, photo, **parameters)


def test_shares_are_finite_where_products_of_features_overflow() -> None:
    """Of a linear layer the shares don't depend on the size of its weights."""
    shares: list[Tensor] = []
    for scale in (1.0, 1e15):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        weight = scale * smooth(6, 9, seed=4)[:, :, :3, :3]
        network.load_state_dict({"0.weight": weight, "0.bias": torch.zeros(6)})
        model = sl.load(network, size=WIDTH)
        shares.append(sl.norms(model, smooth(1, WIDTH, seed=3)).tensors["style"])
    assert shares[1].isfinite().all()
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-3, atol=0)
