"""Instance norm against batch statistics in the shipped style network: against torch's own norms, and what the numbers mean."""

import json

import pytest
import torch
from helpers import ROOT, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.generators.architectures.style import ConditionalInstanceNorm, make_stylizer
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.methods.style.norms import RECORDED_EXPERIMENT
from sightline.optim.perceptual.layers import choose_perceptual_layers
from sightline.optim.perceptual.losses import compute_gram, compute_gram_loss


def test_together_it_is_torchs_batch_norm_in_training() -> None:
    norm, other = ConditionalInstanceNorm(5), nn.BatchNorm2d(5).train()
    with torch.no_grad():
        for own, theirs in ((norm.weight, other.weight), (norm.bias, other.bias)):
            theirs.copy_(own[0].uniform_(0.5, 2))
    x = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 2 + 1
    norm.use_batch_statistics = True
    torch.testing.assert_close(norm(x, torch.ones(3, 1)), other(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(norm(x, torch.ones(3, 1)), other(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_of_one_is_alike_with_either() -> None:
    network, image = make_stylizer(0, 1, width=4, blocks=1).eval(), smooth(side=32)
    expected = network(image, torch.ones(1, 1))
    network.set_batch_statistics()
    torch.testing.assert_close(network(image, torch.ones(1, 1)), expected)
    both = torch.cat([image, 0.5 * image])
    together = network(both, torch.ones(2, 1))
    network.set_batch_statistics(False)
    assert (network(both, torch.ones(2, 1)) - together).abs().max() > 0.01
    torch.testing.assert_close(network(both, torch.ones(2, 1))[:1], expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_takes_contrast_away_and_batch_statistics_do_not() -> None:
    model = sl.load()
    values = sl.norms(model, model.fit(sl.sample("chelsea"), 96), contrast=0.25).values
    each, together = values["apart"][0]
    assert each < 0.4 * together
    assert values["style"][0, 1, 1] > 1.2 * values["style"][0, 0, 1], (
        "the pale one is farther from the painting with batch statistics"
    )


def test_values_are_what_they_say(tiny: sl.Model) -> None:
    photo = smooth(2, 40, seed=3)
    values = sl.norms(tiny, photo, style="scream", contrast=0.5).values
    assert values["instance"].shape == values["batch"].shape == (2, 2, 3, 40, 40)
    network = read_fixed_style_network("painters")
    mean = photo[:1].mean()
    both = torch.cat([photo[:1], mean + 0.5 * (photo[:1] - mean)])
    with torch.no_grad():
        torch.testing.assert_close(
            values["instance"][0],
            network.network(both, network.make_mix("scream").expand(2, -1)),
            rtol=1e-3,
            atol=1e-4,
        )
    torch.testing.assert_close(
        values["apart"][1, 1], (values["batch"][1, 0] - values["batch"][1, 1]).abs().mean()
    )
    assert sl.norms(tiny, photo, contrast=1.0).values["apart"].max() < 1e-4
    painting = sl.read(RECORDED_EXPERIMENT.parent / "paintings" / "scream.jpg")
    painting = torch.nn.functional.interpolate(
        painting,
        (round(painting.shape[2] * 40 / painting.shape[3]), 40),
        mode="bilinear",
        antialias=True,
    )
    painting = painting[:, :, (painting.shape[2] - 40) // 2 :][:, :, :40]

    def loss(picture: Tensor) -> Tensor:
        parts = [
            compute_gram_loss(
                *(compute_gram(tiny.features(one, name)[name]) for one in (picture, painting))
            )
            for name in choose_perceptual_layers(tiny).style
        ]
        return torch.stack(parts).mean()

    torch.testing.assert_close(
        values["style"][1, 1, 0],
        loss(values["batch"][1, :1]) / loss(photo[1:]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_record_is_the_documents() -> None:
    """The table in docs/instance_norm.md and the file say the same."""
    document = (ROOT / "docs" / "instance_norm.md").read_text(encoding="utf-8")
    for condition, found in json.loads(RECORDED_EXPERIMENT.read_text()).items():
        row = " | ".join(
            ", ".join(f"{loss:.2f}" for loss in found[norm]) for norm in ("instance", "batch")
        )
        assert f"| {condition.removeprefix('photographs ')} | {row} |" in document


def test_refusals(tiny: sl.Model, photo: Tensor) -> None:
    for knobs, said in (
        ({"style": "screm"}, "did you mean scream"),
        ({"contrast": 1.5}, "contrast is 1.5"),
        ({"size": 8}, "size is 8"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            sl.norms(tiny, photo, **knobs)
