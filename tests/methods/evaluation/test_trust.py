"""The trust test as a whole: on attributions whose worth is known, and image by image."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.images.plotting.charts import LinePlot, draw_line_plots
from sightline.images.transforms import blur_image
from sightline.methods import load_methods
from sightline.methods.evaluation.attribution_method import list_attribution_methods
from sightline.methods.evaluation.randomization import compute_rank_correlation
from sightline.methods.evaluation.trust import describe_stage

SHORT: dict[str, Any] = {"steps": 6, "samples": 12, "stages": 3}


def edges(_model: sl.Model, image: Tensor) -> Tensor:
    """An attribution that ignores the network."""
    return (image - blur_image(image, 2)).abs().sum(1)


def head_weights(model: sl.Model, image: Tensor) -> Tensor:
    """An attribution that shows the last layer's weights and ignores the image."""
    weights = torch.as_tensor(model.module("fc").weight).detach()
    return nn.functional.interpolate(weights[None, None], size=image.shape[-2:])[:, 0]


# ── attributions whose worth is known ──


def test_an_attribution_that_ignores_the_network_is_found_out(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(edges)
    result = sl.trust(tiny, wide_photo, method="gradcam", stages=99)
    for name in ("cascade_rank", "cascade_ssim", "layer_rank", "layer_ssim"):
        torch.testing.assert_close(result.tensors[name], torch.ones(1, 4, dtype=torch.float64))
    assert result.values["layers"] == ["fc", "conv3", "conv2", "conv1"]
    verdicts: Any = result.values["verdict"]
    assert "barely changes when the network is randomized" in verdicts[0][4]
    assert "do not read it as evidence about the class" in result.captions["maps"]


def test_an_attribution_made_of_the_weights_is_lost(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(head_weights)
    result = sl.trust(tiny, wide_photo, method="gradcam", stages=99)
    assert result.tensors["cascade_rank"].abs().max() < 0.5
    lower_layers = result.tensors["layer_rank"][0, 1:]
    torch.testing.assert_close(lower_layers, torch.ones(3, dtype=torch.float64))
    assert "is lost when the network is randomized" in result.captions["maps"]


def test_a_constant_attribution_has_nothing_to_test(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: torch.zeros_like(image[:, 0]))
    result = sl.trust(tiny, wide_photo, method="gradcam", **SHORT)
    assert "there is nothing in it to test" in result.captions["curves"]
    assert "evidence" not in result.captions["maps"]
    assert "3 of these 3 are empty" in result.captions["maps"]
    assert result.tensors["empty"].tolist() == [3]


def test_the_perfect_attribution_of_a_linear_model_explains_everything(
    replace_gradcam: Callable[..., None],
) -> None:
    head = nn.Linear(3 * 16 * 16, 2)
    weights = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.05
    with torch.no_grad():
        head.weight.copy_(torch.stack([weights.flatten(), torch.zeros(weights.numel())]))
        head.bias.zero_()
    model = sl.load(nn.Sequential(nn.Flatten(), head), mean=(0, 0, 0), std=(1, 1, 1), size=16)
    replace_gradcam(lambda _model, image: (weights * (image - 0.5)).sum(1))
    for method in ("gradcam", "saliency"):  # contributions of the pixels, and gradients
        tensors = sl.trust(model, smooth(side=16), label=0, method=method, **SHORT).tensors
        expected = torch.ones(1, 3, dtype=torch.float64)
        torch.testing.assert_close(tensors["sensitivity"], expected, atol=1e-5, rtol=0)
        assert float(tensors["unexplained"]) < 1e-6
        assert float(tensors["unexplained_chance"]) > 0.3


# ── values ──


def test_values_have_the_shapes_that_are_promised(tiny: sl.Model, wide_photo: Tensor) -> None:
    result = sl.trust(tiny, torch.cat([wide_photo, 1 - wide_photo]), **SHORT)
    shapes = {name: tuple(tensor.shape) for name, tensor in result.tensors.items()}
    curve, stages = (2, 7), (2, 3)
    assert shapes == {
        "map": (2, 32, 44),
        "deletion": curve,
        "deletion_chance": curve,
        "insertion": curve,
        "insertion_chance": curve,
        "deletion_auc": (2,),
        "deletion_auc_chance": (2,),
        "insertion_auc": (2,),
        "insertion_auc_chance": (2,),
        "sensitivity": (2, 3),
        "infidelity": (2,),
        "unexplained": (2,),
        "sensitivity_chance": (2, 3),
        "infidelity_chance": (2,),
        "unexplained_chance": (2,),
        "rank_chance": (2,),
        "ssim_chance": (2,),
        "cascade_rank": stages,
        "cascade_ssim": stages,
        "layer_rank": stages,
        "layer_ssim": stages,
        "stability_rank": (2,),
        "stability_ssim": (2,),
        "empty": (2,),
        "label": (2,),
    }
    assert result.values["sensitivity_n"] == [35, 106, 176]
    assert result.values["patch"] == 2
    assert result.values["layers"] == ["fc", "conv3 … conv2", "conv1"]
    assert len(result.values["verdict"]) == 2  # type: ignore[arg-type]


def test_the_first_stage_is_the_same_in_both_orders(tiny: sl.Model, wide_photo: Tensor) -> None:
    tensors = sl.trust(tiny, wide_photo, **SHORT).tensors
    assert tensors["cascade_rank"][0, 0] == tensors["layer_rank"][0, 0]
    assert not torch.equal(tensors["cascade_rank"][0, 1:], tensors["layer_rank"][0, 1:])


def test_the_map_is_the_methods_attribution(tiny: sl.Model, wide_photo: Tensor) -> None:
    for kind in ("gradient", "integrated"):
        tested = sl.trust(tiny, wide_photo, kind=kind, **SHORT).tensors["map"]
        expected = sl.saliency(tiny, wide_photo, kind=kind).tensors["attribution"]
        torch.testing.assert_close(tested, expected)


def test_stability_is_of_seeds_where_they_count(tiny: sl.Model, wide_photo: Tensor) -> None:
    assert sl.trust(tiny, wide_photo, **SHORT).values["stability_of"] == ["noise"]
    result = sl.trust(tiny, wide_photo, kind="smoothgrad", seed=4, **SHORT)
    assert result.values["stability_of"] == ["seed"]
    first, second = (
        sl.saliency(tiny, wide_photo, kind="smoothgrad", seed=seed).tensors["attribution"][0]
        for seed in (4, 5)
    )
    expected = compute_rank_correlation(first, second)
    torch.testing.assert_close(result.tensors["stability_rank"][0], expected)


def test_a_batch_is_its_images_one_by_one(tiny: sl.Model, wide_photo: Tensor) -> None:
    images = [wide_photo, wide_photo.flip(2).sqrt()]
    together = sl.trust(tiny, torch.cat(images), **SHORT)
    single = [sl.trust(tiny, image, **SHORT) for image in images]
    for name, value in together.tensors.items():
        expected = torch.cat([result.tensors[name] for result in single])
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3)
    verdicts: Any = [result.values["verdict"] for result in single]
    assert together.values["verdict"] == [verdict[0] for verdict in verdicts]
    assert torch.equal(together.panels["maps"], single[0].panels["maps"])


def test_the_batch_size_changes_nothing(tiny: sl.Model, wide_photo: Tensor) -> None:
    small, large = (sl.trust(tiny, wide_photo, batch=batch, **SHORT).tensors for batch in (1, 64))
    for name, value in small.items():
        torch.testing.assert_close(value, large[name], atol=1e-4, rtol=1e-3)


def test_costly_methods_have_fewer_stages(wide_photo: Tensor) -> None:
    convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = sl.load(network, size=32)
    for method, stages in (("saliency", 7), ("occlusion", 5)):
        tensors = sl.trust(model, wide_photo, method=method, steps=2, samples=4).tensors
        assert tensors["cascade_rank"].shape == (1, stages)


# ── words and figures ──


def test_the_help_names_every_method_with_an_attribution() -> None:
    doc = load_methods()["trust"].parameters["method"].doc
    named = [name for name in list_attribution_methods() if f'"{name}"' in doc]
    assert named == list_attribution_methods()


def test_a_stage_is_named_by_its_ends() -> None:
    assert describe_stage(["fc"]) == "fc"
    assert describe_stage(["fc", "conv2", "conv1"]) == "fc … conv1"
    assert describe_stage([""]) == "the network's own weights"


@pytest.mark.parametrize("count", [1, 3])
def test_lines_are_a_picture_beside_each_other(count: int) -> None:
    lines = {"one": ([0, 1], [0.2, -0.4]), "two": ([0, 1], [1.0, 1.0])}
    chart = draw_line_plots([LinePlot("a", "b", lines)] * count)
    assert chart.shape == (1, 3, 360, 480 * count)
    assert 0 <= chart.min() < 0.5 < chart.max() <= 1


# ── what is refused ──


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "gradcamm"},
            "no attribution method named 'gradcamm'; did you mean gradcam?",
        ),
        (
            {"method": "predictions"},
            "no attribution method named 'predictions'; "
            "choose from saliency, occlusion, rise, gradcam, cam",
        ),
        ({"method": "gradcam", "kind": "cam"}, "kind is 'cam'; gradcam has no kinds"),
        ({"kind": "integratd"}, "no kind named 'integratd'; did you mean integrated?"),
        ({"method": "guided", "kind": "gradcam"}, "no rule named 'gradcam'"),
        ({"method": "attention"}, "no attention between image tokens"),
    ],
)
def test_refuses_in_one_line(
    tiny: sl.Model, wide_photo: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sl.SightlineError) as error:
        sl.trust(tiny, wide_photo, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_what_is_too_small_or_has_no_weights(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="is 6×9 pixels; trust needs at least 7×7"):
        sl.trust(tiny, torch.rand(1, 3, 6, 9))
    bare = sl.load(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=32)
    with pytest.raises(sl.SightlineError, match="has no weights to randomize"):
        sl.trust(bare, smooth())
