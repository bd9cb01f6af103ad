"""Two networks are asked the same, each as if it were alone."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, small_network, smooth
from safetensors.torch import save_file
from torch import Tensor

import sightline as sl
from sightline.methods.evaluation import contrast as contrast_module
from sightline.methods.evaluation.contrast import (
    find_counterpart,
    load_counterpart,
    shuffle_weights,
)

SHORT = {"ascent_size": 32, "steps": 3}


@pytest.fixture
def images() -> Tensor:
    """Two images that are neither square nor symmetric: 2×3×32×40."""
    return torch.cat([smooth(side=40, seed=seed)[..., :32, :] for seed in (3, 4)])


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    """A file with the embedded network's weights, those of each class given to the next.

    Attacks succeed sooner than on random weights.
    """
    weights = sl.load().network.state_dict()
    moved = {name: weights[name].roll(1, 0) for name in ("fc.weight", "fc.bias")}
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in (weights | moved).items()}, path)
    return path


def test_each_network_answers_as_if_alone(tiny: sl.Model, images: Tensor) -> None:
    values = sl.contrast(tiny, images, label="cat", towards="elk", eps=1.5, **SHORT).values
    shuffled = shuffle_weights(tiny, 0)
    for index, model in enumerate((tiny, shuffled)):
        ascent = sl.synthesis(model, sl.logit("cat"), size=32, steps=3).values["image"]
        assert torch.equal(values["ascent"][index], ascent[0])

        pixels = images.clone().requires_grad_()
        network = model.network
        logits = network((pixels - 0.5) / 0.25)
        (gradient,) = torch.autograd.grad(logits[:, LABELS.index("cat")].sum(), pixels)
        expected = gradient.abs().amax(1)
        torch.testing.assert_close(values["saliency"][index], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(values["predicted"][index], logits.argmax(1))

        attacked = values["attacked"][index]
        assert (attacked - images).flatten(1).norm(dim=1).max() <= 1.5 * 1.001
        with torch.no_grad():
            probability = network((attacked - 0.5) / 0.25).softmax(1)[:, LABELS.index("elk")]
        torch.testing.assert_close(values["probability"][index], probability, rtol=1e-3, atol=1e-5)
        smallest = sl.adversarial(model, images, attack="deepfool").values
        assert torch.equal(values["smallest"][index], smallest["l2"])
        assert torch.equal(values["found"][index], smallest["success"])
        assert (probability > logits.softmax(1)[:, LABELS.index("elk")]).all()


def test_without_the_smallest_change(tiny: sl.Model, images: Tensor) -> None:
    asked = sl.contrast(tiny, images, towards="elk", **SHORT)
    brief = sl.contrast(tiny, images, towards="elk", smallest=False, **SHORT)
    assert set(asked.values) - set(brief.values) == {"smallest", "found"}
    assert torch.equal(asked.values["attacked"], brief.values["attacked"])
    assert "DeepFool" in asked.captions["attack"]
    assert brief.captions["attack"].endswith("on one scale.")


def test_shuffled_weights_are_the_same_numbers(tiny: sl.Model) -> None:
    before = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    shuffled = shuffle_weights(tiny, 5).network.state_dict()
    for name, value in tiny.network.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(shuffled[name].flatten().sort().values, value.flatten().sort().values)
    assert not torch.equal(shuffled["conv1.weight"], before["conv1.weight"])


def test_the_target_is_unlikely_for_both_networks(tiny: sl.Model, images: Tensor) -> None:
    values = sl.contrast(tiny, images, **SHORT).values
    models = (tiny, shuffle_weights(tiny, 0))
    probabilities = torch.stack([model.logits(images[:1]).softmax(1)[0] for model in models])
    assert values["target"] == int(probabilities.amax(0).argmin())
    assert values["label"] == int(probabilities[0].argmax())


def test_embedded_networks_have_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sl.load("sightnet_plain")
    for digest, expected in (("other weights", "sightnet"), (model.recipe["sha256"], None)):
        monkeypatch.setattr(contrast_module, "hash_file", lambda _, digest=digest: digest)
        assert find_counterpart(model) == expected


def test_other_weights_have_no_trained_counterpart(other_file: Path) -> None:
    model = sl.load(weights=other_file)
    name, _ = load_counterpart(model, "auto", 0)
    assert name == "sightnet, shuffled"


def test_a_named_network_with_weights(other_file: Path) -> None:
    model = sl.load("sightnet_plain")
    image = smooth(side=32, seed=2)
    values = sl.contrast(model, image, other=f"sightnet={other_file}", **SHORT).values
    assert values["names"] == ["sightnet_plain", "sightnet"]
    with torch.no_grad():
        expected = sl.load(weights=other_file).logits(image).argmax(1)
        assert expected != sl.load().logits(image).argmax(1)
    assert torch.equal(values["predicted"][1], expected)


def test_networks_of_other_classes_are_refused(tiny: sl.Model, images: Tensor) -> None:
    with pytest.raises(sl.SightlineError, match="sightnet has other classes than Sequential"):
        sl.contrast(tiny, images, other="sightnet", **SHORT)


def test_captions_name_both_and_the_classes(images: Tensor) -> None:
    model = sl.load(small_network(), labels=LABELS, size=32)
    result = sl.contrast(model, images, label="bee", towards="ant", **SHORT)
    assert list(result.panels) == ["ascent", "saliency", "attack"]
    assert "bee" in result.captions["ascent"]
    assert "towards ant" in result.captions["attack"]
    assert "Sequential, shuffled: " in result.captions["attack"]
