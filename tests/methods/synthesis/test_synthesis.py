"""Synthesis climbs: above every one of many random pictures, from both starts, for every kind of
objective.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.data.scan.run import scan
from sightline.data.store.reader import Scan
from sightline.generators.architectures.decoder import load_code_generator
from sightline.images.transforms import make_center_bias
from sightline.methods.synthesis.facets import (
    center_unit_images,
    find_unit_facets,
    match_own_facets,
)
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.registry.progress import Step

LABELS = ("ant", "bee", "cat", "dog")
OBJECTIVES = {
    "dog": lambda: sl.logit("dog"),
    "channel('conv2', 3)": lambda: sl.channel("conv2", 3),
    "neuron('conv2', 5)": lambda: sl.neuron("conv2", 5),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.head = nn.Linear(8, 4)
        for module in (self.conv1, self.conv2, self.head):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=24, device="cpu")


def scores(model: sl.Model, objective: sl.Objective, image: Tensor) -> Tensor:
    with torch.no_grad():
        return objective.bind(model)(
            image, model.run(image, [model.layer(name) for name in objective.layers])
        )


def random_pictures(side: int) -> Tensor:
    """Noise of every size, from single pixels to plain colours."""
    generator = torch.Generator().manual_seed(5)
    parts = [
        nn.functional.interpolate(torch.rand(60, 3, s, s, generator=generator), size=(side, side))
        for s in (1, 2, 4, 8, 24)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("start", ["fourier", "gray"])
@pytest.mark.parametrize("text", OBJECTIVES)
def test_it_climbs_far_above_the_start(model: sl.Model, start: str, text: str) -> None:
    objective = OBJECTIVES[text]()
    clip = {"gray": 0.1}.get(start)
    values = sl.synthesis(
        model,
        objective,
        start=start,
        steps=40,
        lr={"fourier": 0.3, "gray": 0.05}[start],
        clip=clip,
        seed=1,
    ).values
    image = values["image"]
    assert image.shape == (1, 3, 24, 24)
    assert 0 <= image.min() <= image.max() <= 1
    assert values["scores"].shape == (40,)
    noise = scores(model, objective, random_pictures(24))
    gray = scores(model, objective, torch.full((1, 3, 24, 24), 0.5))
    reached = float(scores(model, objective, image))
    assert reached == pytest.approx(values["score"], abs=1e-5)
    assert reached > float(noise.max()), "no random picture comes near"
    assert reached - float(gray) > 2 * float(noise.std())
    assert values["scores"][-10:].mean() > values["scores"][0] + 1.5 * noise.std()


@pytest.mark.parametrize("start", ["fourier", "gray"])
def test_a_formula_is_as_good_as_an_objective(model: sl.Model, start: str) -> None:
    def made(objective: sl.Objective | str) -> Tensor:
        return sl.synthesis(model, objective, start=start, steps=3).values["image"]

    assert torch.equal(made("bee"), made(sl.logit("bee")))
    assert torch.equal(made("logit('bee') - 0.5 * tv()"), made(sl.logit("bee") - 0.5 * sl.tv()))
    assert torch.equal(
        made("2 * (logit(1) - 0.5 * channel('conv1', 2))"),
        made(2 * (sl.logit(1) - 0.5 * sl.channel("conv1", 2))),
    )
    for evil in ("zebra", "channel('conv2', 8)", "chanel('conv2', 1)", "__import__('os')"):
        with pytest.raises(sl.SightlineError):
            made(evil)


@pytest.mark.parametrize("start", ["fourier", "gray"])
def test_the_seed_decides(model: sl.Model, start: str) -> None:
    torch.manual_seed(1)
    first = sl.synthesis(model, "bee", start=start, steps=4, seed=7).values
    torch.manual_seed(2)
    again = sl.synthesis(model, "bee", start=start, steps=4, seed=7).values
    other = sl.synthesis(model, "bee", start=start, steps=4, seed=8).values
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["scores"], again["scores"])
    assert not torch.allclose(first["image"], other["image"], atol=1e-3)


@pytest.mark.parametrize("start", ["fourier", "gray"])
def test_a_callback_stops_it_and_the_picture_is_kept(model: sl.Model, start: str) -> None:
    seen: list[Step] = []

    def stop_at_3(step: Step) -> bool:
        seen.append(step)
        return step.index == 3

    values = sl.synthesis(model, "bee", start=start, steps=50, callback=stop_at_3).values
    short = sl.synthesis(model, "bee", start=start, steps=3).values
    assert [(s.index, s.total) for s in seen] == [(1, 50), (2, 50), (3, 50)]
    assert torch.equal(values["image"], short["image"])
    assert torch.equal(values["scores"], short["scores"])
    assert all(0 <= s.image.min() <= s.image.max() <= 1 for s in seen)


@pytest.mark.parametrize(
    ("knob", "value"), [("decay", 0.1), ("blur", 1.0), ("clip", 0.2), ("decay", 0.0)]
)
def test_regularizers_of_pixels_are_refused_for_a_spectrum(
    model: sl.Model, knob: str, value: float
) -> None:
    with pytest.raises(sl.SightlineError, match=knob) as caught:
        sl.synthesis(model, "bee", start="fourier", steps=1, **{knob: value})
    assert "start='gray'" in str(caught.value)
    sl.synthesis(model, "bee", start="gray", steps=1, **{knob: value})


def test_regularizers_do_what_they_say(model: sl.Model) -> None:
    def made(**knobs: float) -> Tensor:
        knobs = {"decay": 0.0, "blur": 0.0, "clip": 0.0, **knobs}
        return sl.synthesis(model, "bee", start="gray", steps=12, seed=3, **knobs).values["image"]

    def roughness(image: Tensor) -> float:
        return float(
            (image[..., 1:] - image[..., :-1]).abs().mean()
            + (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
        )

    free = made()
    assert (made(decay=0.3) - 0.5).abs().mean() < 0.7 * (free - 0.5).abs().mean()
    assert roughness(made(blur=1.5)) < 0.7 * roughness(free)
    assert ((made(clip=0.8) - 0.5).abs().amax(1) < 1e-6).float().mean() > 0.4
    assert ((free - 0.5).abs().amax(1) < 1e-6).float().mean() < 0.05


@pytest.mark.parametrize("start", ["fourier", "gray"])
def test_other_sizes(model: sl.Model, start: str) -> None:
    for side in (17, 33):
        assert sl.synthesis(model, "bee", start=start, size=side, steps=2).values[
            "image"
        ].shape == (1, 3, side, side)
    with pytest.raises(sl.SightlineError, match="size is 8; it must lie between 16"):
        sl.synthesis(model, "bee", start=start, size=8)
    with pytest.raises(sl.SightlineError, match="steps is 0"):
        sl.synthesis(model, "bee", start=start, steps=0)


# Several units, presets, photographs


def test_units_of_a_sheet_are_as_if_alone(model: sl.Model) -> None:
    for start in ("fourier", "gray"):
        together = sl.synthesis(
            model, layer="conv2", units="1-3,6", start=start, steps=6, seed=2
        ).values
        assert together["image"].shape == (4, 3, 24, 24)
        for number, unit in enumerate((1, 2, 3, 6)):
            alone = sl.synthesis(
                model, sl.channel("conv2", unit), start=start, steps=6, seed=2
            ).values
            torch.testing.assert_close(
                together["image"][number], alone["image"][0], rtol=0, atol=2e-3
            )
            assert float(together["score"][number]) == pytest.approx(alone["score"], abs=0.02)
            assert float(together["natural"][number]) == pytest.approx(
                float(alone["natural"][0]), abs=1e-4
            )
            assert together["rank"][number] == alone["rank"][0]
    assert sl.synthesis(model, steps=1).values["image"].shape[0] == len(LABELS), (
        "without objective: the classes"
    )


def test_classes_by_their_names(model: sl.Model) -> None:
    named = sl.synthesis(model, sl.logit(("dog", "bee")), steps=2)
    assert torch.equal(
        named.values["image"], sl.synthesis(model, sl.logit((3, 1)), steps=2).values["image"]
    )
    assert "dog, bee" in named.captions["synthesis"]


@pytest.mark.parametrize("preset", ["smooth", "lecture", "maco"])
def test_several_pictures_of_one_unit_begin_elsewhere(model: sl.Model, preset: str) -> None:
    pictures = sl.synthesis(
        model, layer="conv2", units="3,3,3", preset=preset, steps=3, seed=1
    ).values["image"]
    assert len(pictures) == 3
    assert all((pictures[i] - pictures[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_diversity_keeps_them_apart(model: sl.Model) -> None:
    def likeness(text: str) -> float:
        pictures = sl.synthesis(model, text, steps=40, lr=0.3, seed=1).values["image"]
        return float(scores(model, sl.diversity("conv1"), pictures).mean())

    assert (
        likeness("logit(('bee', 'bee', 'bee')) - 20 * diversity('conv1')")
        < likeness("logit((1, 1, 1))") - 0.05
    )


@pytest.mark.parametrize(
    ("units", "match"),
    [("9", "units 0 to 7"), ("3-1", "units 0 to 7"), ("a", "write numbers and ranges")],
)
def test_units_that_are_none(model: sl.Model, units: str, match: str) -> None:
    with pytest.raises(sl.SightlineError, match=match):
        sl.synthesis(model, layer="conv2", units=units, steps=1)
    with pytest.raises(sl.SightlineError, match="leave out one"):
        sl.synthesis(model, "bee", layer="conv2", steps=1)


@pytest.mark.parametrize(
    "preset",
    [
        "smooth",
        "lecture",
        "yosinski",
        "yosinski-small",
        "yosinski-decay",
        "yosinski-idle",
        "olah",
        "maco",
    ],
)
def test_every_preset_climbs_and_repeats(model: sl.Model, preset: str) -> None:
    values = sl.synthesis(model, "bee", preset=preset, steps=12, seed=1).values
    if preset != "yosinski-idle":  # clipping nine pixels in ten costs some at first
        assert values["scores"][-1] > values["scores"][0]
    assert torch.equal(
        values["image"], sl.synthesis(model, "bee", preset=preset, steps=12, seed=1).values["image"]
    )


def test_accentuation_starts_from_the_photograph(model: sl.Model) -> None:
    photo = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    made = sl.synthesis(model, "bee", photo=photo, steps=1, lr=0.0).values["image"]
    assert torch.allclose(made, photo, atol=1e-3)
    for knobs, match in (
        ({"preset": "accentuation"}, "needs a photo="),
        ({"preset": "maco", "photo": photo}, "leave out photo"),
    ):
        with pytest.raises(sl.SightlineError, match=match):
            sl.synthesis(model, "bee", steps=1, **knobs)
    with pytest.raises(sl.SightlineError, match="does not go with it"):
        sl.synthesis(model, "bee", preset="olah", start="gray", steps=1)


def test_a_dead_unit_is_said_so() -> None:
    network = Net()
    with torch.no_grad():
        network.conv2.weight[1] = 0
    model = sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=24, device="cpu")
    with pytest.raises(sl.SightlineError, match="dead unit"):
        sl.synthesis(model, sl.channel("conv2", 1), steps=3)
    assert (
        "of 1: a dead unit, left as it started"
        in sl.synthesis(model, layer="conv2", units="0-2", steps=3).captions["synthesis"]
    )


def test_a_judge_places_the_classes(model: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other network knows the same classes in another order; its places are counted by hand."""
    torch.manual_seed(5)
    other = sl.load(
        Net(),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        labels=("dog", "cat", "bee", "ant"),
        size=24,
        device="cpu",
    )
    monkeypatch.setattr("sightline.methods.synthesis.evidence.load_other_network", lambda *_: other)
    result = sl.synthesis(model, steps=4, judge="other")
    scores_of = other.logits(result.values["image"]).tolist()
    own = [row[other.labels.index(label)] for row, label in zip(scores_of, LABELS, strict=True)]
    assert result.values["transfer"].tolist() == [
        1 + sum(x > mine for x in row) for row, mine in zip(scores_of, own, strict=True)
    ]
    assert "had no part in it" in result.captions["synthesis"]
    assert "transfer" not in sl.synthesis(model, "bee", steps=1).values


def test_a_judge_that_can_not_judge(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="asked about classes"):
        sl.synthesis(model, layer="conv2", units="1", steps=1, judge="sightnet")
    with pytest.raises(sl.SightlineError, match="ant"):
        sl.synthesis(model, "ant", steps=1, judge="sightnet")
    with pytest.raises(sl.SightlineError, match="the other network is ''"):
        sl.synthesis(model, "bee", steps=1, judge="")


def test_patience_ends_a_run_that_gains_nothing(model: sl.Model) -> None:
    still = sl.synthesis(
        model,
        "bee",
        steps=60,
        lr=0.0,
        start="gray",
        preset="yosinski",
        decay=0.0,
        blur=0.0,
        patience=5,
    )
    assert len(still.values["scores"]) == 10
    assert "no image gained any more" in still.captions["synthesis"]
    assert len(sl.synthesis(model, "bee", steps=20, lr=0.0).values["scores"]) == 20


def test_a_movie_of_the_run(model: sl.Model) -> None:
    assert sl.synthesis(model, "bee", steps=5, movie="gif").movies["run.gif"].shape == (
        6,
        3,
        24,
        24,
    )
    assert not sl.synthesis(model, "bee", steps=2).movies
    long_movie = sl.synthesis(model, "bee", steps=90, size=16, movie="webp").movies["run.webp"]
    assert len(long_movie) == 46  # every second step, and the image at the end


# ── beside natural images; facets, centre, transparency ──


@pytest.fixture(scope="module")
def store(model: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures, half of them reddish and half bluish, scanned at two layers and logits."""
    folder, generator = tmp_path_factory.mktemp("natural"), torch.Generator().manual_seed(3)
    for number in range(16):
        coarse = torch.rand(1, 3, 6, 6, generator=generator) * 0.4
        coarse[:, 2 * (number % 2)] += 0.6
        sl.write(nn.functional.interpolate(coarse, size=(24, 24)), folder / f"{number:02}.png")
    path = tmp_path_factory.mktemp("stores") / "natural.scan"
    scan(model, folder, store=path, layers=("conv1", "conv2", "logits"), vectors=("penultimate",))
    return path


def test_the_ratio_is_the_peak_over_the_best_of_the_scan(model: sl.Model, store: Path) -> None:
    result = sl.synthesis(model, layer="conv2", units="1,3", steps=6, store=store)
    seen = torch.cat([Scan.open(store).image(number) for number in range(16)])
    with torch.no_grad():
        made, natural = (
            model.features(picture, "conv2")["conv2"].flatten(2).amax(2)
            for picture in (result.values["image"], seen)
        )
    expected = torch.stack([made[0, 1] / natural[:, 1].max(), made[1, 3] / natural[:, 3].max()])
    torch.testing.assert_close(result.values["ratio"], expected, rtol=1e-4, atol=1e-4)
    assert "16 natural images" in result.captions["natural"]
    assert result.panels["natural"].shape[2] > result.panels["synthesis"].shape[2]


def test_a_class_that_the_scan_did_not_follow_is_asked_again(
    model: sl.Model, store: Path, tmp_path: Path
) -> None:
    folder = Path(Scan.open(store).paths[0]).parent
    scan(model, folder, store=tmp_path / "conv.scan", layers=("conv2",))
    ratios = [
        sl.synthesis(model, "bee", steps=2, store=path).values["ratio"]
        for path in (store, tmp_path / "conv.scan")
    ]
    torch.testing.assert_close(ratios[0], ratios[1])


def test_many_pictures_share_squares_with_their_patches(model: sl.Model, store: Path) -> None:
    result = sl.synthesis(model, layer="conv2", units="0-7,0", steps=1, store=store)
    assert "upper left of its four" in result.captions["natural"]


def test_a_store_that_can_not_stand_beside(model: sl.Model, store: Path) -> None:
    with pytest.raises(sl.SightlineError, match="about neither"):
        sl.synthesis(model, "energy('conv2')", steps=1, store=store)
    with pytest.raises(sl.SightlineError, match="head:in"):
        sl.synthesis(model, layer="head:in", units="0", steps=1, store=store)
    torch.manual_seed(9)
    with pytest.raises(sl.SightlineError, match="made with"):
        sl.synthesis(sl.load(Net(), labels=LABELS, size=24), "bee", steps=1, store=store)


def test_facets_are_the_groups_that_there_are(model: sl.Model, store: Path) -> None:
    """Reddish and bluish pictures are told apart by the first layer's means, so two facets are
    these halves, and their starts the means.
    """
    nature = NaturalExemplars.from_store(model, store, sl.logit((0, 0)), ("logits", (0, 0)))
    found = find_unit_facets(model, nature, (24, 24), 0)
    ids = [nature.top_images[number].ids[group.indices] % 2 for number, group in enumerate(found)]
    assert sorted(int(group.image_count) for group in found) == [8, 8]
    assert all(len(set(colors.tolist())) == 1 for colors in ids)
    for number, group in enumerate(found):
        members = torch.cat(
            [nature.scan.image(int(id)) for id in nature.top_images[number].ids[group.indices]]
        )
        torch.testing.assert_close(group.start_image, members.mean(0), rtol=0, atol=1e-5)
    assert match_own_facets(model, torch.stack([group.start_image for group in found]), found).all()
    result = sl.synthesis(model, layer="logits", units="0,0", start="facets", store=store, steps=3)
    assert result.values["facet"].shape == (2,)
    assert "facet 1" not in result.captions["synthesis"]
    still = sl.synthesis(
        model, layer="logits", units="0,0", start="facets", store=store, steps=1, lr=0.0
    ).values["image"]
    torch.testing.assert_close(
        still, torch.stack([group.start_image for group in found]), rtol=0, atol=5e-3
    )


def test_what_a_unit_saw_is_moved_to_the_middle(model: sl.Model, store: Path) -> None:
    nature = NaturalExemplars.from_store(model, store, sl.channel("conv1", 2), ("conv1", (2,)))
    cases = nature.load_examples(0, torch.arange(4))
    for picture, (top, left, bottom, right), moved in zip(
        cases.images, cases.boxes, center_unit_images(nature, 0, (24, 24))[:4], strict=True
    ):
        y, x = (
            (top + bottom) / 2,
            (left + right) / 2,
        )  # the field's middle, between pixels or on one
        assert y % 1 == x % 1 == 0.5
        middle = (moved[:, 11:13, 11:13]).mean(
            (1, 2)
        )  # half a pixel off: the mean of four is that of a 3×3 tent around the middle
        tent = torch.tensor([0.25, 0.5, 0.25])
        rows, columns = ([min(max(int(at) + by, 0), 23) for by in (-1, 0, 1)] for at in (y, x))
        if 1 <= y < 23 and 1 <= x < 23:
            torch.testing.assert_close(
                middle,
                torch.einsum("cyx,y,x->c", picture[:, rows][:, :, columns], tent, tent),
                rtol=0,
                atol=1e-5,
            )


def test_facets_that_can_not_be(model: sl.Model, store: Path) -> None:
    with pytest.raises(sl.SightlineError, match="name a scan"):
        sl.synthesis(model, "bee", start="facets", steps=1)
    with pytest.raises(sl.SightlineError, match="a facet needs at least two"):
        sl.synthesis(
            model, layer="conv2", units=",".join(["1"] * 9), start="facets", store=store, steps=1
        )
    with pytest.raises(sl.SightlineError, match="does not go with it"):
        sl.synthesis(model, "bee", preset="maco", start="facets", store=store, steps=1)


def test_the_middle_moves_first(model: sl.Model) -> None:
    def moved(focus: str) -> float:
        """How much of the change lies in the middle quarter of the picture."""
        made = sl.synthesis(
            model, "bee", preset="lecture", decay=0.0, blur=0.0, clip=0.0, focus=focus, steps=6
        ).values["image"]
        change = (made - 0.5).abs().sum(1)
        return float(change[:, 6:18, 6:18].sum() / change.sum())

    assert moved("center") > moved("whole") + 0.15


def test_middle_first_is_a_gaussian_that_grows() -> None:
    bias, image = (
        make_center_bias(2, 0.25, 0.75),
        torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_(),
    )
    for deviation in (0.25, 0.75, 0.75):
        seen = bias(image)
        torch.testing.assert_close(seen, image)
        (slope,) = torch.autograd.grad(seen.sum(), image)
        away = torch.linspace(-1, 1, 9)
        expected = torch.exp(-(away[:, None] ** 2 + away**2) / (2 * deviation**2))
        torch.testing.assert_close(slope[0, 1], expected)


class Corner(nn.Module):
    """Sees the brightness of the upper left quarter only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :12, :12].mean((2, 3))


def test_what_does_nothing_for_the_score_becomes_clear() -> None:
    model = sl.load(
        Corner(), mean=(0.0,) * 3, std=(1.0,) * 3, labels=("a", "b"), size=24, device="cpu"
    )
    result = sl.synthesis(model, "a", preset="olah", focus="alpha", steps=60)
    alpha = result.values["alpha"]
    assert alpha.shape == (1, 24, 24)
    assert alpha[:, :10, :10].mean() > 0.8
    assert alpha[:, 14:, 14:].mean() < 0.2
    assert "checkerboard" in result.captions["synthesis"]
    clear = result.values["image"][0, :, 16:, 16:]
    assert (clear - 0.5).abs().mean() < 0.15, "over gray where it is clear"
    with pytest.raises(sl.SightlineError, match="goes with a spectrum"):
        sl.synthesis(model, "a", preset="lecture", focus="alpha", steps=1)


def test_pictures_with_transparency_are_as_if_alone(model: sl.Model) -> None:
    together = sl.synthesis(
        model, layer="conv2", units="1-3", focus="alpha", steps=6, seed=2
    ).values
    alone = sl.synthesis(model, layer="conv2", units="2", focus="alpha", steps=6, seed=2).values
    torch.testing.assert_close(together["image"][1:2], alone["image"], rtol=0, atol=2e-3)
    torch.testing.assert_close(together["alpha"][1:2], alone["alpha"], rtol=0, atol=2e-3)


def test_a_generators_code_reaches_the_class_within_photographs_bounds() -> None:
    """Units of one batch are as when alone, the seed decides, and the picture is one that the
    generator can paint.
    """
    embedded = sl.load("sightnet_plain")  # the generator was trained on its features

    def make_both(steps: int) -> dict[str, Any]:
        return sl.synthesis(
            embedded, layer="logits", units="2,8", start="generator", size=96, steps=steps
        ).values

    scores = make_both(12)["scores"]
    assert (scores[-1] > scores[0] + 3).all()
    # Adam makes steps of one length of the smallest gradients, rounding included, and the order of
    # sums is the processor's: after twelve steps single pixels are up to 0.3 apart.
    alone = sl.synthesis(embedded, "golf ball", preset="generator", size=96, steps=2).values
    torch.testing.assert_close(alone["image"], make_both(2)["image"][1:], atol=3e-3, rtol=0)
    alone = sl.synthesis(embedded, "golf ball", preset="generator", size=96, steps=12).values
    assert torch.equal(
        alone["image"],
        sl.synthesis(embedded, "golf ball", start="generator", size=96, steps=12).values["image"],
    )
    image = sl.synthesis(embedded, "golf ball", start="generator", size=96, steps=1, lr=0.0).values[
        "image"
    ]
    torch.testing.assert_close(
        image, load_code_generator()(load_code_generator().mean), atol=1e-5, rtol=0
    )


def test_a_generators_code_serves_any_network(model: sl.Model) -> None:
    values = sl.synthesis(model, layer="conv2", units="3,3", start="generator", steps=8).values
    assert values["image"].shape == (2, 3, 24, 24)
    assert (values["scores"][-1] > values["scores"][0]).all()
    assert not torch.equal(values["image"][0], values["image"][1])
    for knobs, match in (
        ({"blur": 1.0}, "blur works on pixels, but start='generator' optimizes a code"),
        ({"preset": "lecture"}, "start='generator' does not go with it"),
        ({"preset": "maco"}, "start='generator' does not go with it"),
        ({"photo": "chelsea"}, "start='generator' does not go with it"),
    ):
        with pytest.raises(sl.SightlineError, match=match):
            sl.synthesis(model, "bee", start="generator", steps=1, **knobs)
