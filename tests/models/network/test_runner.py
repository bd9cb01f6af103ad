"""What a network is given: sizes, channels, layouts, further inputs, one image at a time."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.methods.attribution.occlusion import occlusion
from sightline.methods.attribution.saliency import saliency
from sightline.models.model import Model
from sightline.models.network.inputs import make_network_inputs
from sightline.models.network.runner import find_image_dtype

IMAGE = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def make_classifier(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    convolution = nn.Conv2d(channels, 6, 3)
    return nn.Sequential(
        convolution, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


# ── channels, sizes, layouts ──


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_any_number_of_bands(channels: int) -> None:
    network = make_classifier(channels)
    mean = torch.linspace(0.2, 0.6, channels)
    model = Model(network, mean=mean.tolist(), std=[0.3] * channels, size=(20, 28))
    image = torch.rand(2, channels, 20, 28, generator=torch.Generator().manual_seed(2))
    leaf = image.clone().requires_grad_()
    scores = network((leaf - mean.view(1, -1, 1, 1)) / 0.3)[:, 1]
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    values = saliency(model, image, label=1).values
    torch.testing.assert_close(values["per_channel"], gradient, atol=1e-6, rtol=1e-5)
    assert values["attribution"].shape == (2, 20, 28)
    assert occlusion(model, image, window=8, stride=8).panels["occlusion"].shape[1] == 3
    with pytest.raises(SightlineError, match=rf"an image is N×{channels}×H×W .*\(3, 3, 20, 28\)"):
        saliency(model, IMAGE)


def test_bands_that_pictures_show() -> None:
    image = torch.rand(1, 5, 4, 6)
    statistics = {"mean": [0.5] * 5, "std": [0.2] * 5, "size": 20}
    shown = Model(make_classifier(5), **statistics, bands=(4, 2, 0)).to_picture(image)
    assert torch.equal(shown, image[:, [4, 2, 0]])
    assert torch.equal(Model(make_classifier(5), **statistics).to_picture(image), image[:, :3])
    two = Model(make_classifier(2), mean=[0.5] * 2, std=[0.2] * 2, size=20)
    assert torch.equal(two.to_picture(image[:, :2]), image[:, [0, 1, 1]])
    for bands in ((0, 1), (0, 1, 5), "rgb", (0, 1.5, 2)):
        with pytest.raises(SightlineError, match="give three numbers from 0 to 4"):
            Model(make_classifier(5), **statistics, bands=bands)


def test_a_network_of_one_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 18 * 26, 4)).eval()
    model = Model(network, size=(20, 28))
    assert model.blank().shape == (1, 3, 20, 28)
    tall = torch.linspace(0, 1, 100).view(1, 1, 100, 1).expand(1, 3, 100, 50)
    fitted = model.fit(tall)
    assert fitted.shape == (1, 3, 20, 28)
    # 50 columns become 28, so 35.7 of 100 rows are seen: those from 32 to 68.
    assert fitted[0, 0, 0, 0].item() == pytest.approx(0.33, abs=0.02)
    assert fitted[0, 0, -1, 0].item() == pytest.approx(0.67, abs=0.02)
    assert "20×28 px" in repr(model)
    with pytest.raises(SightlineError, match=r"10×12 pixels .*; it was made for 20×28"):
        model.logits(IMAGE[:, :, :10, :12])


def test_the_nearest_size_is_named() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 8, stride=8)

        def forward(self, image: Tensor) -> Tensor:
            if image.shape[2] % 8 or image.shape[3] % 8:
                raise AssertionError("sides must be multiples of the patch")
            return self.convolution(image).mean((2, 3))

    model = Model(Patches(), size=32)
    with pytest.raises(
        SightlineError, match=r"20×28 pixels \(sides must .* and takes (16|24)×(24|32)"
    ):
        model.logits(IMAGE)


@pytest.mark.parametrize("size", [0, -4, 1.5, "big", (32,), (20, 28, 3), True, (20, 0), 10**6])
def test_impossible_sizes(size: Any) -> None:
    with pytest.raises(SightlineError, match="give a side in pixels from 1 to 16,384"):
        Model(make_classifier(), size=size)


@pytest.mark.parametrize(
    ("preprocess", "prepare"),
    [
        ("bgr", lambda x: x.flip(1)),
        ("0..255 bgr", lambda x: x.flip(1) * 255),
        (("nhwc",), lambda x: x.permute(0, 2, 3, 1)),
        (lambda x: 2 * x - 1, lambda x: 2 * x - 1),
        (lambda x: {"pixels": x}, lambda x: {"pixels": x}),
        (lambda x: [x, x], lambda x: [x, x]),
    ],
)
def test_layouts(preprocess: Any, prepare: Callable[[Tensor], Any]) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = make_classifier()

        def forward(self, given: Any) -> Tensor:
            image = given["pixels"] if isinstance(given, dict) else given
            image = image[1] if isinstance(image, list) else image
            return self.classifier(image if image.shape[1] == 3 else image.permute(0, 3, 1, 2))

    network = Reader().eval()
    model = Model(network, size=(20, 28), preprocess=preprocess)
    torch.testing.assert_close(model.logits(IMAGE), network(prepare(IMAGE)))
    leaf = IMAGE.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(prepare(leaf))[:, 2].sum(), leaf)
    values = saliency(model, IMAGE, label=2).values
    torch.testing.assert_close(values["per_channel"], gradient, atol=1e-5, rtol=1e-5)


def test_layouts_that_do_not_exist() -> None:
    with pytest.raises(SightlineError, match="no layout in preprocess named 'gbr'; did you mean b"):
        Model(make_classifier(), size=20, preprocess="gbr")
    model = Model(make_classifier(), size=20, preprocess=lambda x: x.pixels)
    with pytest.raises(SightlineError, match=r"preprocess fails on an image \(\d, 3, 20, 2[08]\)"):
        model.logits(IMAGE)


def test_whole_numbers_have_no_gradient() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = make_classifier()

        def forward(self, image: Tensor) -> Tensor:
            return self.classifier(image.float() / 255)

    model = Model(Casting().eval(), size=(20, 28), preprocess="0..255 uint8")
    assert occlusion(model, IMAGE, window=8, stride=8).tensors["drop"].abs().max() > 0
    with pytest.raises(SightlineError, match="no gradient with respect to the image"):
        saliency(model, IMAGE)


# ── further inputs ──


class Aged(nn.Module):
    """An image and an age, used as a column, as a vector, or as a number."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.classifier = make_classifier()

    def forward(self, image: Tensor, age: Any) -> Tensor:
        scores = self.classifier(image)
        if self.use == "column":
            return torch.cat([scores, age * scores[:, :1]], 1)
        if self.use == "vector":
            return scores * age[:, None]
        return scores * float(age)


@pytest.mark.parametrize("use", ["column", "vector", "number"])
def test_a_number_is_given_as_the_network_takes_it(use: str) -> None:
    network = Aged(use).eval()
    model = Model(network, size=(20, 28), inputs={"age": 40.0})
    prepared = model.normalize(IMAGE)
    scores = network.classifier(prepared)
    expected = torch.cat([scores, 40 * scores[:, :1]], 1) if use == "column" else 40 * scores
    torch.testing.assert_close(model.logits(IMAGE), expected)
    torch.testing.assert_close(model.logits(IMAGE[:1]), expected[:1])


class Pair(nn.Module):
    """The squared distance of two images, and their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = make_classifier()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.classifier(left) - 2 * self.classifier(right)


@pytest.mark.parametrize("asked", ["left", "right"])
def test_one_of_two_images_is_asked_about(asked: str) -> None:
    network = Pair().eval()
    given = "right" if asked == "left" else "left"
    other = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(9))
    for inputs in ({given: other}, lambda count: {given: other.expand(count, -1, -1, -1)}):
        model = Model(network, size=(20, 28), inputs=inputs)
        leaf = IMAGE.clone().requires_grad_()
        arguments = {asked: model.normalize(leaf), given: other.expand(3, -1, -1, -1)}
        (gradient,) = torch.autograd.grad(network(**arguments)[:, 3].sum(), leaf)
        values = saliency(model, IMAGE, label=3).values
        torch.testing.assert_close(values["per_channel"], gradient, atol=1e-6, rtol=1e-5)
        assert occlusion(model, IMAGE, window=8, stride=8).tensors["drop"].abs().max() > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"agee": 4}, "no input named 'agee'; did you mean age"),
        ([40], "give a dict of the network's further inputs by name"),
        (lambda _count: [40], "it must return a dict of the network's further inputs"),
    ],
)
def test_further_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        make_network_inputs(Aged("number"), inputs)


def test_a_missing_input_is_named() -> None:
    model = Model(Aged("number").eval(), size=20)
    with pytest.raises(SightlineError, match=r"missing .*'age'\); .*inputs=\{'age': VALUE\}"):
        model.logits(IMAGE)


# ── batches ──


class Centered(nn.Module):
    """Subtracts what the images of a batch have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.classifier = nn.Linear(5, 4)

    def forward(self, image: Tensor) -> Tensor:
        features = self.convolution(image).tanh().mean((2, 3))
        return self.classifier(features - 0.5 * features.mean(0, keepdim=True))


def make_single_image_network() -> nn.Module:
    return nn.Sequential(make_classifier(), nn.Flatten(0), nn.Unflatten(0, (1, 4)))


@pytest.mark.parametrize(
    "make_network",
    [
        Centered,
        make_single_image_network,
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8, track_running_stats=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
    ],
    ids=["centered", "single", "batch norm"],
)
def test_images_that_must_not_share_a_batch(make_network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(11)
    network = make_network().eval()
    model = Model(network, size=(20, 28))
    assert model.findings.runs_one_by_one
    assert any(note in repr(model) for note in model.findings.notes)
    alone = torch.cat([network(model.normalize(single)) for single in IMAGE.split(1)])
    torch.testing.assert_close(model.logits(IMAGE), alone)

    drops = occlusion(model, IMAGE[:1], window=10, stride=9, label=1).tensors["drop"][0]
    for row in range(drops.shape[0]):
        for column in range(drops.shape[1]):
            covered = IMAGE[:1].clone()
            top = min(9 * row, 10)
            left = min(9 * column, 18)
            covered[..., top : top + 10, left : left + 10] = 0.5
            score = network(model.normalize(covered))[0, 1]
            torch.testing.assert_close(drops[row, column], alone[0, 1] - score)


@pytest.mark.parametrize(
    ("first_dtype", "dtype", "expected"),
    [
        (torch.int64, torch.float64, torch.float64),
        (torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16),
        (torch.complex64, torch.float32, torch.float32),
        (torch.bool, None, torch.float32),
    ],
)
def test_images_are_of_the_precision_that_the_network_computes_in(
    first_dtype: torch.dtype, dtype: torch.dtype | None, expected: torch.dtype
) -> None:
    network = nn.Module()
    network.table = nn.Parameter(torch.ones(3).to(first_dtype), requires_grad=False)
    if dtype is not None:
        network.scale = nn.Parameter(torch.ones(3, dtype=dtype))
    assert find_image_dtype(network) == expected


def test_a_double_network_behind_a_table_of_whole_numbers() -> None:
    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
            self.inside = make_classifier().double()

        def forward(self, image: Tensor) -> Tensor:
            return self.inside(image[:, self.order])

    network = Reordered().eval()
    model = Model(network, size=(20, 28))
    expected = network(((IMAGE - model.mean) / model.std).double())
    torch.testing.assert_close(model.logits(IMAGE), expected)


@pytest.mark.parametrize("is_listed", [True, False])
def test_layers_are_counted_once_however_a_number_is_given(is_listed: bool) -> None:
    class Aged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_classifier()

        def forward(self, image: Tensor, age: Tensor) -> Tensor:
            return self.network(image) * age

    model = Model(Aged().eval(), size=(20, 28), inputs={"age": 2.0})
    if is_listed:
        assert [name for name in model.layers if ":" in name] == []
    assert model.features(IMAGE, "network.0")["network.0"].shape[0] == len(IMAGE)


class Remembering(nn.Module):
    """Adds what it kept of the batch before."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_classifier()
        self.kept: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.network(image)
        self.kept = scores if self.kept is None else scores + 0.5 * self.kept
        return self.kept


def test_what_is_kept_of_another_number_of_images_is_told() -> None:
    model = Model(Remembering().eval(), size=(20, 28))
    message = r"Remembering gives 2 answers to one image; it answers by what it keeps of the images"
    with pytest.raises(SightlineError, match=message):
        model.logits(IMAGE[:1])


def test_a_number_of_scores_that_depends_on_the_image_is_refused() -> None:
    class Keypoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 1, 5, stride=3)

        def forward(self, image: Tensor) -> Tensor:
            scores = self.convolution(image).flatten(1)
            return scores[:, : 5 + int(20 * image.amax().sigmoid())]

    model = Model(Keypoints(), size=(20, 28), mean=[0.0] * 3, std=[1.0] * 3)
    count = len(model.labels)
    assert model.logits(0.9 * IMAGE / IMAGE.amax() + 0.09).shape[1] == count
    with pytest.raises(SightlineError, match=rf"Keypoints gives 15 scores here and {count} else"):
        model.logits(0 * IMAGE)


def test_ordinary_networks_run_in_batches() -> None:
    assert Model(make_classifier(), size=(20, 28)).findings.notes == ()


def test_a_random_network_is_told() -> None:
    network = nn.Sequential(make_classifier(), nn.AlphaDropout(0.5))

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image + torch.randn_like(image))

    assert "gives another answer each time" in repr(Model(Noisy().eval(), size=(20, 28)))


# ── memory layout ──


class Flattening(nn.Module):
    """Flattens its maps by `view`, as many tutorials do."""

    def __init__(self, width: int = 4, *, is_strict: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.is_strict = is_strict
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 6, 1),
        )
        self.head = nn.Linear(6 * 10 * 14, 4)

    def forward(self, image: Tensor) -> Tensor:
        if self.is_strict and not image.is_contiguous():
            raise ValueError("NCHW only")
        features = self.body(image)
        return self.head(features.view(features.shape[0], -1))


def build_flattening() -> nn.Module:
    return Flattening(5, is_strict=True).eval()


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_network_that_takes_the_plain_layout_only(is_strict: bool) -> None:
    network = Flattening(is_strict=is_strict).eval()
    model = Model(network, mean=[0.4] * 3, std=[0.3] * 3, size=(20, 28))
    leaf = IMAGE.clone().requires_grad_()
    scores = network((leaf - 0.4) / 0.3)
    torch.testing.assert_close(model.logits(IMAGE), scores)
    assert model.has_plain_layout
    (gradient,) = torch.autograd.grad(scores[:, 2].sum(), leaf)
    values = saliency(model, IMAGE, label=2).values
    torch.testing.assert_close(values["per_channel"], gradient, atol=1e-6, rtol=1e-4)
    drops = occlusion(model, IMAGE[:1], window=10, stride=10, label=2).tensors["drop"][0]
    covered = IMAGE[:1].clone()
    covered[..., :10, 10:20] = 0.5
    drop = scores[0, 2] - network((covered - 0.4) / 0.3)[0, 2]
    torch.testing.assert_close(drops[0, 1], drop, atol=1e-5, rtol=1e-4)


def test_the_layers_are_listed_once_where_that_is_the_first_run() -> None:
    model = Model(Flattening().eval(), size=(20, 28))
    assert list(model.layers) == [f"body.{i}" for i in range(5)] + ["body", "head"]
    other = Model(Flattening().eval(), size=(20, 28))
    captured = other.run(IMAGE, ["body.1", "head"])
    assert captured["head"].shape == (3, 4)
    assert other.has_plain_layout


def test_weights_laid_out_otherwise_are_laid_out_anew() -> None:
    network = build_flattening().to(memory_format=torch.channels_last)
    model = Model(network, size=(20, 28))
    expected = build_flattening()(model.normalize(IMAGE).contiguous())
    torch.testing.assert_close(model.logits(IMAGE), expected)
    first = network.get_parameter("body.0.weight")
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_other_networks_keep_the_faster_layout() -> None:
    model = Model(make_classifier().to(memory_format=torch.channels_last), size=(20, 28))
    weight = next(model.network.parameters())
    for image in (IMAGE[..., :2, :2], IMAGE[:, :, :2]):  # smaller than the kernel
        with pytest.raises(SightlineError, match="can't take an image"):
            model.logits(image)
    assert not model.has_plain_layout
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert model.normalize(IMAGE).is_contiguous(memory_format=torch.channels_last)


def test_a_network_of_one_image_keeps_the_faster_layout() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_classifier()

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image).view(1, 4)

    model = Model(Single().eval(), size=(20, 28))
    torch.testing.assert_close(
        model.logits(IMAGE[:1]), model.network.network(model.normalize(IMAGE[:1]))
    )
    assert not model.has_plain_layout


# ── copies ──


def test_a_model_can_be_copied_and_sent() -> None:
    model = Model(make_classifier(), size=(20, 28))
    expected = model.logits(IMAGE)
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.logits(IMAGE), expected)
        # Who runs the same network waits for its hooks to be gone.
        assert (twin.lock is model.lock) == (twin.network is model.network)


def test_a_shallow_copy_runs_after_a_pass_of_another_thread() -> None:
    model = Model(make_classifier(), size=(20, 28))
    expected = model.features(IMAGE, ["0", "logits"])
    twin = copy.copy(model)
    results: list[dict[str, Tensor]] = []
    thread = threading.Thread(
        target=lambda: results.append(twin.features(IMAGE, ["0", "logits"])), daemon=True
    )

    def start_other_run(_name: str, _tensor: Tensor) -> None:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()

    model.run(IMAGE, ["0"], on_layer=start_other_run)
    thread.join(10)
    assert torch.equal(results[0]["logits"], expected["logits"])
    assert torch.equal(results[0]["0"], expected["0"])
