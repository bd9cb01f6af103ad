"""The tests of maps, tested: derived again slowly, with captum, scipy and scikit-image as referees, and on maps whose worth is known."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from helpers import LABELS, small_network, smooth
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import sightline as sl
from sightline.images.plotting import maps as render
from sightline.images.transforms import blur_image
from sightline.methods import load_methods
from sightline.methods.evaluation import faithfulness as faithful
from sightline.methods.evaluation import randomization as randomize
from sightline.methods.evaluation import verdict
from sightline.methods.evaluation.attribution_map import list_attribution_methods
from sightline.methods.evaluation.faithfulness import Attribution, ClassScorer
from sightline.methods.evaluation.summary import find_run_attribution_method, summarize_trust
from sightline.registry.method import METHODS

FEW: dict[str, Any] = {"steps": 6, "samples": 12, "stages": 3}
SIDE = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evidence(map_: Tensor) -> Attribution:
    return Attribution(map_, map_[None], is_gradient=False)


def linear() -> tuple[sl.Model, Tensor]:
    """A model whose first score is a weighted sum of the pixels and whose second is 0, and the weights 3×16×16."""
    head = nn.Linear(3 * SIDE * SIDE, 2)
    weights = torch.randn(3, SIDE, SIDE, generator=seeded(1)) * 0.05
    with torch.no_grad():
        head.weight.copy_(torch.stack([weights.flatten(), torch.zeros(weights.numel())]))
        head.bias.zero_()
    model = sl.load(
        nn.Sequential(nn.Flatten(), head),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        labels=("some", "none"),
        size=SIDE,
    )
    return model, weights


@pytest.fixture
def planted(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[sl.Model, Tensor], Tensor]], None]:
    """Puts a map N×H×W of one's own making in gradcam's place."""
    load_methods()

    def plant(make: Callable[[sl.Model, Tensor], Tensor]) -> None:
        def run(model: sl.Model, image: Tensor, *, label: int) -> sl.Result:
            return sl.Result({}, {"map": make(model, image)})

        monkeypatch.setitem(METHODS, "gradcam", replace(METHODS["gradcam"], function=run))

    return plant


# ── deletion and insertion ──


@pytest.mark.parametrize("steps", [1, 5, 16])
def test_curves_are_those_made_pixel_by_pixel(tiny: sl.Model, photo: Tensor, steps: int) -> None:
    map_ = torch.rand(32, 32, generator=seeded(3))  # no two values are equal
    found = faithful.measure_deletion_insertion(
        ClassScorer(tiny, 2, 7),
        photo[0],
        evidence(map_),
        [evidence(-map_)],
        steps=steps,
        generator=seeded(),
    )
    order = np.argsort(-map_.numpy().ravel())
    starts = {
        "deletion": (photo, torch.full_like(photo, 0.5)),
        "insertion": (blur_image(photo, 1.6), photo),
    }
    for name, (start, end) in starts.items():
        for key, places in ((name, order), (f"{name}_chance", order[::-1])):
            wanted = []
            for k in range(steps + 1):
                picture = start.clone()
                for place in places[: round(k * 32 * 32 / steps)]:
                    picture[0, :, place // 32, place % 32] = end[0, :, place // 32, place % 32]
                wanted.append(float(tiny.probabilities(picture)[0, 2]))
            np.testing.assert_allclose(found[key], wanted, atol=1e-6)
            np.testing.assert_allclose(
                found[f"{name}_auc{key.removeprefix(name)}"],
                np.trapezoid(wanted, dx=1 / steps),
                atol=1e-6,
            )


def test_equal_values_come_in_random_order() -> None:
    map_ = torch.zeros(20, 20)
    map_[3:6, 4:8] = 2.0
    places = faithful.rank_pixels(map_, seeded())
    assert sorted(places.flatten().tolist()) == list(range(400))
    assert sorted(places[3:6, 4:8].flatten().tolist()) == list(range(12))
    rest = places[10:].double().mean()
    assert abs(rest - 205.5) < 15, "the lower half is not put last"
    assert not torch.equal(places, faithful.rank_pixels(map_, seeded(1)))


def test_no_map_beats_the_perfect_one_on_a_linear_model() -> None:
    model, weights = linear()
    image = smooth(side=SIDE)
    perfect = (weights * (image[0] - 0.5)).sum(0)
    others = [evidence(torch.rand(SIDE, SIDE, generator=seeded(i))) for i in range(20)] + [
        evidence(-perfect)
    ]
    areas = []
    for one in (evidence(perfect), *others):
        found = faithful.measure_deletion_insertion(
            ClassScorer(model, 0, 64), image[0], one, [one], steps=16, generator=seeded()
        )
        areas.append(float(found["deletion_auc"]))
    assert all(areas[0] < area for area in areas[1:-1])
    assert areas[-1] == max(areas)


def test_deletion_of_planted_evidence_is_that_of_the_closed_form() -> None:
    patch = torch.zeros(SIDE, SIDE)
    patch[5:9, 2:6] = 1  # 16 pixels, as many as a step removes
    head = nn.Linear(3 * SIDE * SIDE, 2)
    with torch.no_grad():
        head.weight.copy_(
            torch.stack([0.1 * patch.expand(3, -1, -1).flatten(), torch.zeros(3 * SIDE * SIDE)])
        )
        head.bias.copy_(torch.tensor([-0.1 * 3 * 16 / 2, 0.0]))  # a gray patch says nothing
    model = sl.load(
        nn.Sequential(nn.Flatten(), head),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        labels=("there", "not"),
        size=SIDE,
    )
    image = torch.where(patch.bool(), 1.0, smooth(side=SIDE)[0])

    def deletion(map_: Tensor) -> float:
        one = evidence(map_)
        return float(
            faithful.measure_deletion_insertion(
                ClassScorer(model, 0, 64), image, one, [one], steps=16, generator=seeded()
            )["deletion_auc"]
        )

    clean, half, gone = (1 / (1 + np.exp(-score)) for score in (2.4, 1.2, 0.0))
    perfect, wrong, late = deletion(patch), deletion(-patch), deletion(patch + 2 * patch.flip(0, 1))
    assert perfect == pytest.approx(((clean + gone) / 2 + 15 * gone) / 16)
    assert wrong == pytest.approx((15 * clean + (clean + gone) / 2) / 16)
    assert late == pytest.approx((clean + (clean + gone) / 2 + 14 * gone) / 16), (
        "one step after the perfect map"
    )
    split = deletion(
        patch * (torch.arange(SIDE) < 4)
        + patch.flip(0, 1) * (torch.arange(SIDE) >= 12)
        + 0.5 * patch
    )
    assert split == pytest.approx(((clean + half) / 2 + (half + gone) / 2 + 14 * gone) / 16)
    assert perfect < split < late < wrong


# ── subsets ──


def test_perfect_map_of_a_linear_model_explains_everything(planted: Callable[..., None]) -> None:
    model, weights = linear()
    planted(lambda _, image: (weights * (image - 0.5)).sum(1))
    for knobs in ({"method": "gradcam"}, {"method": "saliency"}):  # what pixels count, and slopes
        result = sl.trust(model, smooth(side=SIDE), label=0, **knobs, **FEW)
        assert result.tensors["sensitivity"].shape == (1, 3)
        torch.testing.assert_close(
            result.tensors["sensitivity"], torch.ones(1, 3, dtype=torch.float64), atol=1e-5, rtol=0
        )
        assert result.tensors["sensitivity_chance"].abs().max() < 0.5
        assert float(result.tensors["unexplained"]) < 1e-6
        assert float(result.tensors["infidelity"]) < 1e-6
        assert float(result.tensors["unexplained_chance"]) > 0.3


def test_sensitivity_is_that_of_loops(tiny: sl.Model, photo: Tensor) -> None:
    map_ = torch.randn(32, 32, generator=seeded(5))
    asked = ClassScorer(tiny, 1, 5)
    found = faithful.measure_sensitivity_infidelity(
        asked, photo[0], evidence(map_), [evidence(map_)], samples=9, generator=seeded(4)
    )
    draws, wanted = seeded(4), []
    for n in (26, 77, 128):
        chosen = torch.rand(9, 256, generator=draws).argsort(1) < n
        sums, falls = [], []
        for row in chosen.tolist():
            picture, total = photo.clone(), 0.0
            for square in (number for number, taken in enumerate(row) if taken):
                y, x = square // 16 * 2, square % 16 * 2
                picture[0, :, y : y + 2, x : x + 2] = 0.5
                total += float(map_[y : y + 2, x : x + 2].double().sum())
            sums.append(total)
            falls.append(float(tiny.logits(photo)[0, 1] - tiny.logits(picture)[0, 1]))
        wanted.append(np.corrcoef(sums, falls)[0, 1])
    np.testing.assert_allclose(found["sensitivity"], wanted, atol=1e-4)
    np.testing.assert_allclose(found["sensitivity_chance"], wanted, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (16, 16), (33, 20), (40, 70)])
def test_subsets_are_whole_squares(height: int, width: int) -> None:
    side = faithful.compute_square_side(height, width)
    for n in faithful.compute_subset_sizes(height, width):
        for mask in faithful.sample_square_subsets(height, width, n, 3, seeded()):
            padded = nn.functional.pad(mask[None].double(), (0, -width % side, 0, -height % side))
            shares = nn.functional.max_pool2d(padded, side)
            assert int(shares.sum()) == n
            assert torch.equal(
                shares.repeat_interleave(side, 1).repeat_interleave(side, 2)[0, :height, :width]
                > 0,
                mask,
            )
    for mask in faithful.sample_random_squares(height, width, 20, seeded()):
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert rows == columns
        assert rows * columns == mask.sum()
        assert 1 <= rows <= round(min(height, width) / 2)


def test_infidelity_is_captums(tiny: sl.Model, photo: Tensor) -> None:
    masks = faithful.sample_random_squares(32, 32, 25, seeded())
    map_ = torch.rand(32, 32, generator=seeded(2))
    drop, expected = (
        faithful.measure_score_drops(ClassScorer(tiny, 3, 8), photo[0], masks),
        faithful.sum_over_masks(map_, masks),
    )
    if (drop * expected).mean() < 0:
        map_, expected = -map_, -expected

    def perturbed(inputs: Tensor) -> tuple[Tensor, Tensor]:
        taken = masks[:, None].expand(-1, 3, -1, -1)
        return taken.float(), torch.where(taken, torch.full_like(inputs, 0.5), inputs)

    attribution = torch.stack([map_, torch.zeros_like(map_), torch.zeros_like(map_)])[None]
    wanted = captum_infidelity(
        lambda x: tiny.logits(x)[:, 3].unsqueeze(1),
        perturbed,
        photo,
        attribution,
        target=0,
        n_perturb_samples=25,
        normalize=True,
    )
    torch.testing.assert_close(
        faithful.compute_infidelity(expected, drop).float(),
        wanted[0].detach(),
        atol=1e-6,
        rtol=1e-4,
    )
    torch.testing.assert_close(faithful.compute_infidelity(-expected, drop), drop.square().mean())
    torch.testing.assert_close(
        faithful.compute_infidelity(torch.zeros(25).double(), drop), drop.square().mean()
    )


def test_correlation_of_what_does_not_vary_is_zero() -> None:
    assert faithful.compute_pearson_correlation(torch.full((9,), 0.1), torch.arange(9.0)) == 0
    assert faithful.compute_pearson_correlation(torch.zeros(9), torch.arange(9.0)) == 0
    assert faithful.compute_pearson_correlation(
        torch.arange(9.0) * 1e-20, torch.arange(9.0)
    ) == pytest.approx(1)


# ── likeness ──


@pytest.mark.parametrize("digits", [1, 6])
def test_rank_correlation_is_scipys(digits: int) -> None:
    one, other = (torch.randn(15, 12, generator=seeded(i)).round(decimals=digits) for i in (1, 2))
    other = other + one
    wanted = spearmanr(one.abs().flatten(), other.abs().flatten()).statistic
    assert float(randomize.compute_rank_correlation(one, other)) == pytest.approx(wanted)
    assert float(randomize.compute_rank_correlation(one, -one)) == pytest.approx(1)
    assert randomize.compute_rank_correlation(one, torch.ones(15, 12)) == 0


def test_structural_similarity_is_that_of_the_pictures() -> None:
    one, other = (
        torch.randn(20, 24, generator=seeded(1)),
        torch.randn(20, 24, generator=seeded(2)) ** 3,
    )
    pictures = [
        np.clip(m / np.sort(m.ravel())[round(0.99 * m.size) - 1], 0, 1)
        for m in (one.abs().numpy(), other.abs().numpy())
    ]
    wanted = structural_similarity(*pictures, data_range=1.0)
    assert float(randomize.compute_structural_similarity(one, other)) == pytest.approx(
        wanted, abs=1e-5
    )
    assert float(randomize.compute_structural_similarity(one, -3 * one)) == pytest.approx(1)
    assert float(randomize.compute_structural_similarity(one, torch.full((20, 24), torch.nan))) < 1


# ── randomized networks ──


def normed() -> nn.Module:
    """Convolutions with batch norm, and an attention whose output weights are used without a call."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, stride=2), bn1=nn.BatchNorm2d(6), relu=nn.ReLU(), conv2=nn.Conv2d(6, 8, 3), bn2=nn.BatchNorm2d(8),
        gap=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(8, 4),
    )  # fmt: skip
    network = nn.Sequential(layers)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=seeded(value.numel())) + 0.1)
    return network


def test_layers_come_from_the_top_with_their_norms() -> None:
    model = sl.load(normed(), size=32)
    groups = randomize.group_weight_layers(model)
    assert groups == [["fc"], ["conv2", "bn2"], ["conv1", "bn1"]]
    assert randomize.merge_layer_groups(groups, 2) == [["fc", "conv2", "bn2"], ["conv1", "bn1"]]
    assert randomize.merge_layer_groups(groups, 99) == groups
    assert set(randomize.collect_module_weights(model, ["bn1"])) == {
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
    }


def test_weights_used_without_a_call_are_randomized_with_their_parent() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.stem = nn.Sequential(OrderedDict(inner=nn.Conv2d(3, 3, 1)))
            self.stem.scale = nn.Parameter(torch.ones(3, 1, 1))
            self.embed, self.attention, self.head = (
                nn.Conv2d(3, 8, 8, stride=8),
                nn.MultiheadAttention(8, 2),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            tokens = (
                self.embed(self.stem(x * self.stem.scale)).flatten(2).permute(2, 0, 1) + self.token
            )
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(0))

    groups = randomize.group_weight_layers(sl.load(Mixer(), size=32))
    assert groups == [
        ["head"],
        ["attention.out_proj"],
        ["attention"],
        ["embed"],
        ["stem.inner"],
        ["stem"],
        [""],
    ]


@pytest.mark.parametrize("make", [small_network, normed])
def test_randomized_networks_are_copies(make: Callable[[], nn.Module]) -> None:
    network = make()
    model = sl.load(network, size=32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    groups = randomize.group_weight_layers(model)
    done: list[str] = []
    answers: list[Tensor] = []
    for paths, (cascade, alone) in zip(
        groups, randomize.randomize_layer_groups(model, groups, 3), strict=True
    ):
        done += paths
        for twin, changed in ((cascade, done), (alone, paths)):
            for name, value in twin.network.state_dict().items():
                told, own = before[name], name.rpartition(".")[0] in changed
                assert value.data_ptr() != network.state_dict()[name].data_ptr()
                assert torch.equal(value.flatten().sort().values, told.flatten().sort().values)
                assert torch.equal(value, told) != (own and told.ndim > 1) or (
                    own and told.ndim < 2
                )
        answers.append(cascade.logits(smooth()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(
        torch.equal(value, before[name]) for name, value in model.network.state_dict().items()
    )
    again = [
        cascade.logits(smooth())
        for cascade, _ in randomize.randomize_layer_groups(model, groups, 3)
    ]
    assert all(torch.equal(one, other) for one, other in zip(answers, again, strict=True))
    assert not torch.equal(answers[-1], model.logits(smooth()))


def test_a_map_that_ignores_the_network_is_found_out(
    tiny: sl.Model, photo: Tensor, planted: Callable[..., None]
) -> None:
    planted(lambda _, image: (image - blur_image(image, 2)).abs().sum(1))
    result = sl.trust(tiny, photo, method="gradcam", stages=99)
    for name in ("cascade_rank", "cascade_ssim", "layer_rank", "layer_ssim"):
        torch.testing.assert_close(result.tensors[name], torch.ones(1, 4, dtype=torch.float64))
    assert result.values["layers"] == ["fc", "conv3", "conv2", "conv1"]
    assert "barely changes when the network is randomized" in result.values["verdict"][0][4]  # type: ignore[index]
    assert "do not read it as evidence about the class" in result.captions["maps"]


def test_a_map_made_of_the_weights_is_lost(
    tiny: sl.Model, photo: Tensor, planted: Callable[..., None]
) -> None:
    planted(
        lambda model, _: nn.functional.interpolate(
            model.module("fc").weight[None, None].detach(), size=(32, 32)
        )[:, 0]
    )
    result = sl.trust(tiny, photo, method="gradcam", stages=99)
    assert result.tensors["cascade_rank"].abs().max() < 0.5
    torch.testing.assert_close(
        result.tensors["layer_rank"][0, 1:], torch.ones(3, dtype=torch.float64)
    )
    assert "is lost when the network is randomized" in result.captions["maps"]


def test_a_map_that_is_the_same_everywhere_has_nothing_to_test(
    tiny: sl.Model, photo: Tensor, planted: Callable[..., None]
) -> None:
    planted(lambda _, image: torch.zeros_like(image[:, 0]))
    result = sl.trust(tiny, photo, method="gradcam", **FEW)
    assert "there is nothing in it to test" in result.captions["curves"]
    assert "evidence" not in result.captions["maps"]
    assert "3 of these 3 are empty" in result.captions["maps"]


# ── maps of methods ──


def test_the_help_names_every_source() -> None:
    doc = load_methods()["trust"].parameters["method"].doc
    named = [name for name in list_attribution_methods() if f'"{name}"' in doc]
    assert named == [
        "saliency",
        "occlusion",
        "rise",
        "gradcam",
        "cam",
        "attention",
        "segment",
        "guided",
    ]


def shown(model: sl.Model, image: Tensor) -> Iterator[tuple[dict[str, str], Tensor]]:
    """Knobs, and the map that they should give, from the methods themselves."""
    label = int(model.logits(image).argmax())
    size = image.shape[-2:]
    yield {"method": "saliency"}, sl.saliency(model, image).tensors["saliency"]
    yield (
        {"method": "saliency", "kind": "integrated"},
        sl.saliency(model, image, kind="integrated").tensors["attribution"],
    )
    yield {"method": "gradcam"}, sl.gradcam(model, image).tensors["map"]
    yield {"method": "cam", "kind": "cam"}, sl.cam(model, image, kind="cam").tensors["map"]
    yield (
        {"method": "occlusion"},
        render.upsample_maps(sl.occlusion(model, image, stride=16).tensors["drop"], size),
    )
    guided = sl.guided(model, image, layer="logits", unit=label, rule="deconvnet").tensors[
        "gradient"
    ]
    yield {"method": "guided", "kind": "deconvnet"}, guided.abs().amax(1)


def test_maps_are_those_of_the_methods(tiny: sl.Model, photo: Tensor) -> None:
    for knobs, wanted in shown(tiny, photo):
        torch.testing.assert_close(sl.trust(tiny, photo, **knobs, **FEW).tensors["map"], wanted)  # type: ignore[arg-type]


def test_stability_is_of_seeds_where_they_count(tiny: sl.Model, photo: Tensor) -> None:
    assert sl.trust(tiny, photo, **FEW).values["stability_of"] == ["noise"]
    result = sl.trust(tiny, photo, kind="smoothgrad", seed=4, **FEW)
    assert result.values["stability_of"] == ["seed"]
    one, other = (
        sl.saliency(tiny, photo, kind="smoothgrad", seed=seed).tensors["attribution"]
        for seed in (4, 5)
    )
    torch.testing.assert_close(
        result.tensors["stability_rank"][0], randomize.compute_rank_correlation(one[0], other[0])
    )


def test_a_batch_is_its_images_one_by_one(tiny: sl.Model, photo: Tensor) -> None:
    images = [photo, smooth(seed=1)]
    together = sl.trust(tiny, torch.cat(images), **FEW)
    alone = [sl.trust(tiny, image, **FEW) for image in images]
    for name, value in together.tensors.items():
        torch.testing.assert_close(
            value, torch.cat([one.tensors[name] for one in alone]), atol=1e-4, rtol=1e-3
        )
    assert together.values["verdict"] == [one.values["verdict"][0] for one in alone]  # type: ignore[index]
    assert torch.equal(together.panels["maps"][..., :32], alone[0].panels["maps"][..., :32])


def test_the_batch_size_changes_nothing(tiny: sl.Model, photo: Tensor) -> None:
    one, other = (sl.trust(tiny, photo, batch=batch, **FEW).tensors for batch in (1, 64))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=1e-3)


# ── words and pictures ──


def test_verdicts_go_by_their_limits() -> None:
    found = {
        "deletion_auc": 0.3, "deletion_auc_chance": 0.5, "insertion_auc": 0.51, "insertion_auc_chance": 0.5, "sensitivity": torch.tensor([0.5]),
        "sensitivity_chance": torch.tensor([0.0]), "unexplained": 0.99, "unexplained_chance": 0.98, "rank_chance": 0.0,
        "cascade_rank": torch.tensor([0.4, 0.3]), "stability_rank": 0.6, "stability_of": "noise", "map": torch.eye(2),
    }  # fmt: skip
    first, second, third, fourth, fifth, sixth = verdict.write_verdicts("it", found)
    assert "lowers the probability faster than" in first
    assert "no faster than" in second
    assert "tells what they count" in third
    assert "explains 1%" in fourth
    assert "no better than" in fourth
    assert "keeps part of its pattern" in fifth
    assert "partly the same" in sixth
    other = {
        **found,
        "deletion_auc": 0.7,
        "insertion_auc": 0.3,
        "unexplained": 0.5,
        "cascade_rank": torch.tensor([0.9, 0.6]),
    }
    first, second, _, fourth, fifth, _ = verdict.write_verdicts("it", other)
    dead = {**found, "cascade_rank": torch.zeros(3), "rank_chance": -0.4}
    assert "is lost" in verdict.write_verdicts("it", dead)[4]
    assert "more slowly than" in first
    assert "more slowly than" in second
    assert "does, better than" in fourth
    assert "barely changes" in fifth


@pytest.mark.parametrize("count", [1, 3])
def test_lines_are_a_picture_beside_each_other(count: int) -> None:
    plots = [
        render.LinePlot("a", "b", {"one": ([0, 1], [0.2, -0.4]), "two": ([0, 1], [1.0, 1.0])})
    ] * count
    chart = render.draw_line_plots(plots)
    assert chart.shape == (1, 3, 360, 480 * count)
    assert 0 <= chart.min() < 0.5 < chart.max() <= 1


# ── the short form beside every map ──


def test_the_short_form_says_what_the_long_one_does(tiny: sl.Model, photo: Tensor) -> None:
    index = int(tiny.logits(photo).argmax())
    short = summarize_trust(
        tiny, photo, find_run_attribution_method("saliency", {"label": "cat"}), index
    )
    long = sl.trust(tiny, photo, steps=8, stages=4).tensors
    for name in ("deletion_auc", "insertion_auc"):
        assert short.numbers[name] == pytest.approx(float(long[name]), abs=1e-5)
    assert short.numbers["randomized_rank"] == pytest.approx(
        float(long["cascade_rank"][0, :3].quantile(0.5)), abs=1e-5
    )
    assert [row[2] for row in short.rows] == [
        short.numbers[k]
        for k in ("deletion_auc", "insertion_auc", "randomized_rank", "stability_rank")
    ]


def test_the_short_form_finds_out_a_map_that_ignores_the_network(
    tiny: sl.Model, photo: Tensor, planted: Callable[..., None]
) -> None:
    planted(lambda _, image: (image - blur_image(image, 2)).abs().sum(1))
    short = summarize_trust(tiny, photo, find_run_attribution_method("gradcam", {}), 2)
    assert short.numbers["randomized_rank"] == pytest.approx(1)
    assert (
        "barely changes when the network is randomized: do not read it as evidence about the class"
        in short.sentence
    )


def test_the_short_sentence_goes_by_the_same_limits() -> None:
    found = {
        "map": torch.eye(2), "deletion_auc": 0.3, "deletion_auc_chance": 0.5, "insertion_auc": 0.6, "insertion_auc_chance": 0.5,
        "cascade_rank": torch.zeros(3), "rank_chance": 0.0, "stability_rank": 0.3, "stability_of": "seed",
    }  # fmt: skip
    good = verdict.write_short_verdict("it", found)
    assert good.startswith(
        "The map of it finds what the score depends on better than chance, and is lost"
    )
    assert good.endswith("It hardly survives another seed.")
    assert "points away" in verdict.write_short_verdict(
        "it", {**found, "deletion_auc": 0.6, "insertion_auc": 0.4}
    )
    assert "disagrees with itself" in verdict.write_short_verdict(
        "it", {**found, "insertion_auc": 0.4}
    )
    assert "no better than chance" in verdict.write_short_verdict(
        "it", {**found, "deletion_auc": 0.5, "insertion_auc": 0.5}
    )
    assert "keeps part of its pattern" in verdict.write_short_verdict(
        "it", {**found, "cascade_rank": torch.full((3,), 0.3)}
    )
    assert "nothing in it to test" in verdict.write_short_verdict(
        "it", {**found, "map": torch.ones(2, 2)}
    )


# ── what is refused ──


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"method": "gradcamm"}, "no method with a map named 'gradcamm'; did you mean gradcam?"),
        (
            {"method": "predictions"},
            "no method with a map named 'predictions'; choose from saliency, occlusion, rise, gradcam, cam",
        ),
        ({"method": "gradcam", "kind": "cam"}, "kind is 'cam'; gradcam has no kinds"),
        ({"kind": "integratd"}, "no kind named 'integratd'; did you mean integrated?"),
        ({"method": "guided", "kind": "gradcam"}, "no rule named 'gradcam'"),
        ({"method": "attention"}, "no attention between image tokens"),
    ],
)
def test_refuses_in_one_line(
    tiny: sl.Model, photo: Tensor, knobs: dict[str, Any], told: str
) -> None:
    with pytest.raises(sl.SightlineError) as error:
        sl.trust(tiny, photo, **knobs)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_what_is_too_small_or_has_no_weights(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="trust needs at least 7×7"):
        sl.trust(tiny, smooth(side=6))
    bare = sl.load(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), labels=LABELS[:3], size=32)
    with pytest.raises(sl.SightlineError, match="has no weights to randomize"):
        sl.trust(bare, smooth())
