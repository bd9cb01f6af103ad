"""What the probe finds of networks that were made to behave in one way each."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.heads.recognition import HeadHints
from sightline.models.network.probe import (
    IN_TURN_NOTE,
    ONE_BY_ONE_NOTE,
    RANDOM_NOTE,
    SINGLE_IMAGE_NOTE,
    is_same_for_one_image,
    make_probe_images,
    probe_network,
)

IMAGES = make_probe_images((3, 12, 20), torch.device("cpu"))


def make_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


CLASSIFIER = make_classifier()
HINTS = HeadHints(CLASSIFIER, selector=None, kind=None, labels=(), unit="", network_name="net")


def test_images_differ_and_are_the_same_each_time() -> None:
    assert IMAGES.shape == (2, 3, 12, 20)
    assert 0 <= IMAGES.min() < IMAGES.max() <= 1
    assert (IMAGES[0] - IMAGES[1]).abs().mean() > 0.2
    state = torch.get_rng_state()
    assert make_probe_images((3, 12, 20), torch.device("cpu")).equal(IMAGES)
    assert torch.get_rng_state().equal(state)


def test_a_network_that_treats_each_image_alone() -> None:
    findings = probe_network(CLASSIFIER, IMAGES, HINTS)
    assert findings.head is not None
    assert findings.head_error is None
    assert not findings.runs_one_by_one
    assert findings.notes == ()


def test_a_network_whose_answers_depend_on_the_batch() -> None:
    def run(images: Tensor) -> Tensor:
        return CLASSIFIER(images - images.mean(0, keepdim=True) * (len(images) > 1))

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert (findings.runs_one_by_one, findings.notes) == (True, (ONE_BY_ONE_NOTE,))


def subtract_those_before(images: Tensor) -> Tensor:
    """The first image stays as it is."""
    before = images.cumsum(0) - images
    return images - 0.5 * before


@pytest.mark.parametrize(
    "mix",
    [
        subtract_those_before,
        lambda images: (images - images.mean()) / images.std(),
        lambda images: images / images.amax(),
    ],
    ids=["those before", "mean and contrast of all", "largest of all"],
)
def test_what_a_network_takes_from_the_whole_batch(mix: Callable[[Tensor], Tensor]) -> None:
    findings = probe_network(lambda images: CLASSIFIER(mix(images)), IMAGES, HINTS)
    assert findings.head is not None
    assert (findings.runs_one_by_one, findings.notes) == (True, (ONE_BY_ONE_NOTE,))


def test_answers_that_depend_on_the_memory_layout() -> None:
    def run(images: Tensor, shift: float = 1.0) -> Tensor:
        return CLASSIFIER(images) + shift

    def run_plainly(images: Tensor) -> Tensor:
        return run(images, shift=0.5)

    assert probe_network(run, IMAGES, HINTS, run_plainly).needs_plain_layout
    assert not probe_network(run, IMAGES, HINTS, run).needs_plain_layout

    def run_randomly(images: Tensor) -> Tensor:
        return run(images, shift=float(torch.rand(())))

    findings = probe_network(run_randomly, IMAGES, HINTS, partial(run_randomly))
    assert (findings.needs_plain_layout, findings.notes) == (False, (RANDOM_NOTE,))


def test_two_feature_maps_of_a_timm_network_are_no_scores() -> None:
    network = make_classifier()
    network.feature_info = ["what timm tells of its layers"]  # type: ignore[assignment]

    def run(images: Tensor) -> list[Tensor]:
        features = network[0](images)
        return [features, features[:, :2, ::2, ::2]]

    findings = probe_network(run, IMAGES, replace(HINTS, network=network))
    assert "features at 2 sizes and no scores" in str(findings.head_error)
    assert probe_network(run, IMAGES, HINTS).head is not None


def test_a_list_of_one_answer_for_each_image_is_refused() -> None:
    two_classes = nn.Sequential(CLASSIFIER, nn.Linear(5, 2))
    for network in (CLASSIFIER, two_classes):
        for wrap, advice in (
            (lambda row: row, r"torch.stack\(output\)\[:, 0\]"),
            (lambda row: {"score": row}, r"stack\(\[answer\['score'\] for answer in output\]\)"),
        ):

            def run(images: Tensor, network: Any = network, wrap: Any = wrap) -> list[Any]:
                return [wrap(row) for row in network(images)]

            findings = probe_network(run, IMAGES, HINTS)
            assert findings.head is None
            with pytest.raises(SightlineError, match=f"one answer for each image; .*{advice}"):
                raise findings.head_error or AssertionError


def test_a_network_with_dropout() -> None:
    def run(images: Tensor) -> Tensor:
        return nn.functional.dropout(CLASSIFIER(images), 0.5, training=True)

    torch.manual_seed(1)
    findings = probe_network(run, IMAGES, HINTS)
    assert (findings.runs_one_by_one, findings.notes) == (False, (RANDOM_NOTE,))


def test_features_at_several_sizes_are_no_scores() -> None:
    pool = nn.functional.avg_pool2d

    def run(images: Tensor) -> list[Tensor]:
        return [images, pool(images, 2).repeat(1, 2, 1, 1), pool(images, 4).repeat(1, 3, 1, 1)]

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is None
    with pytest.raises(SightlineError, match=r"features at 3 sizes and no scores.*output=0"):
        raise findings.head_error or AssertionError
    chosen = probe_network(run, IMAGES, replace(HINTS, selector=2))
    assert chosen.head is not None
    assert (chosen.head.kind, chosen.head.count) == ("dense", 9)
    # The same classes at several sizes, as deep supervision gives them, are scores.
    same_classes = probe_network(lambda images: [images, pool(images, 2)], IMAGES, HINTS)
    assert same_classes.head is not None


class WithoutClasses(nn.Module):
    """Says that it has no classes, as networks of timm without a head."""

    num_classes = 0


@pytest.mark.parametrize("shape", [(3, 12, 20), (12, 3)])
def test_a_network_without_classes_gives_features(shape: tuple[int, ...]) -> None:
    hints = replace(HINTS, network=WithoutClasses())

    def run(images: Tensor) -> Tensor:
        return images.abs() if len(shape) == 3 else images.mean(3).transpose(1, 2)

    findings = probe_network(run, IMAGES, hints)
    if len(shape) == 2:
        assert findings.head is None
        assert "gives features (12, 3) and no scores" in str(findings.head_error)
        return
    assert findings.head is not None
    assert (findings.head.kind, findings.head.count) == ("embedding", 3)
    scores = findings.head.read_scores(run(IMAGES), {}, IMAGES.shape)
    assert torch.equal(scores, IMAGES.mean((2, 3)))


class Remembering(nn.Module):
    """Adds something of the answer to the run before."""

    def __init__(self, container: Any) -> None:
        super().__init__()
        self.classifier = make_classifier()
        self.container = container
        self.register_buffer("before", torch.zeros(1, 5))
        self.share = 0.5

    def forward(self, images: Tensor) -> Tensor:
        scores = self.classifier(images)
        answer = scores + self.share * self.before
        if self.container is None:
            self.before.copy_(scores[-1:].detach())
        else:
            self.container["before"] = scores[-1:].detach()
            self.before = self.container["before"]
        return answer


@pytest.mark.parametrize("container", [None, {}])
def test_a_network_that_remembers_the_images_before(container: Any) -> None:
    network = Remembering(container)
    hints = replace(HINTS, network=network)

    def run(images: Tensor) -> Tensor:
        # Only a single image is answered by what was kept.
        if len(images) > 1:
            network.before = torch.zeros(1, 5)
        return network(images)

    run(IMAGES)
    network.before = torch.zeros(1, 5)
    is_first = [True]

    def run_fresh(images: Tensor) -> Tensor:
        if len(images) == 1 and is_first:
            network.before = torch.zeros(1, 5)
            is_first.clear()
        return run(images)

    assert probe_network(run_fresh, IMAGES, hints).notes == (RANDOM_NOTE,)


def test_what_a_network_keeps_without_reading_it_is_no_matter() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = make_classifier()
            self.runs: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.runs.append(images.detach())
            return self.classifier(images)

    network = Counting()
    assert probe_network(network, IMAGES, replace(HINTS, network=network)).notes == ()
    assert len(network.runs) == 3  # together, apart, and again since something was kept


def test_a_network_for_one_image() -> None:
    def run(images: Tensor) -> Tensor:
        if len(images) > 1:
            raise SightlineError("one at a time")
        return CLASSIFIER(images)

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert (findings.runs_one_by_one, findings.notes) == (True, (SINGLE_IMAGE_NOTE,))


def test_a_network_that_takes_nothing() -> None:
    def run(images: Tensor) -> Tensor:
        raise SightlineError("neither this nor that")

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is None
    assert str(findings.head_error) == "neither this nor that"


def test_a_network_that_leaves_torch() -> None:
    """numpy refuses tensors that carry gradients; the probe then runs without."""

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(CLASSIFIER(images).numpy() + 1)
        except RuntimeError as error:
            raise SightlineError(str(error)) from error

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None


def test_half_precision_is_compared_as_such() -> None:
    """What float16 rounds away is no difference; in float32 it would be one."""

    def make_run(dtype: torch.dtype) -> Any:
        def run(images: Tensor) -> Tensor:
            return (CLASSIFIER(images) * (1.01 if len(images) > 1 else 1)).to(dtype)

        return run

    assert not probe_network(make_run(torch.float16), IMAGES, HINTS).runs_one_by_one
    assert probe_network(make_run(torch.float32), IMAGES, HINTS).runs_one_by_one


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 7), "logits"), ((2, 7, 12, 20), "dense"), ((2, 7, 9), None)]
)
def test_on_the_device_meta_the_shape_tells(shape: tuple[int, ...], kind: str | None) -> None:
    findings = probe_network(lambda _: torch.empty(shape, device="meta"), IMAGES.to("meta"), HINTS)
    if kind is None:
        assert findings.head is None
        assert "no numbers" in str(findings.head_error)
    else:
        assert findings.head is not None
        assert findings.head.kind == kind


def test_same_for_one_image_within_a_share_of_its_largest_number() -> None:
    together = torch.tensor([[7, 7], [100.0, 0.05]])
    assert is_same_for_one_image(together, torch.tensor([[100.0, 0.0]]), 1e-3)
    assert not is_same_for_one_image(together, torch.tensor([[100.0, 0.0]]), 1e-4)
    assert not is_same_for_one_image(together, torch.tensor([[100.0]]), 1)
    nan = torch.full((1, 2), torch.nan)
    assert is_same_for_one_image(nan, nan, 1e-3)
    score_lists = (torch.tensor([0.5, 0.25]), torch.tensor([0.1]))
    detections = [{"boxes": torch.zeros(len(row), 4), "scores": row} for row in score_lists]
    assert is_same_for_one_image(detections, detections[1:], 1e-3)
    assert not is_same_for_one_image(detections, detections[:1], 1e-3)


def return_features_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
    maps = CLASSIFIER[:2](images)  # type: ignore[index]
    return maps, CLASSIFIER[2:](maps)  # type: ignore[index]


def return_vectors_and_logits(images: Tensor) -> list[Tensor]:
    vectors = CLASSIFIER[:4](images)  # type: ignore[index]
    return [vectors, CLASSIFIER[4](vectors)]  # type: ignore[index]


def return_lengths_features_and_logits(images: Tensor) -> tuple[Any, ...]:
    vectors, logits = return_vectors_and_logits(images)
    return vectors, torch.arange(len(images)), {"none": 0}, logits


@pytest.mark.parametrize(
    ("run", "index"),
    [
        (return_features_and_logits, 1),
        (return_vectors_and_logits, 1),
        (return_lengths_features_and_logits, 3),
    ],
)
def test_scores_stand_behind_the_features_that_they_are_made_from(run: Any, index: int) -> None:
    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert (findings.head.kind, findings.head.count) == ("logits", 5)
    assert torch.equal(findings.head.select(run(IMAGES)), CLASSIFIER(IMAGES))
    assert findings.notes == (f"the scores are value {index} of what it returns",)
    asked = replace(HINTS, selector=0)
    chosen = probe_network(run, IMAGES, asked)
    assert chosen.head is not None
    assert chosen.head.count == 4


@pytest.mark.parametrize(
    "run",
    [
        lambda images: (CLASSIFIER(images), images.mean((2, 3))),  # computed from nothing of it
        lambda images: return_features_and_logits(images)[::-1],
        lambda images: (scores := CLASSIFIER(images), scores.softmax(1)),
        lambda images: (CLASSIFIER(images), CLASSIFIER(images).argmax(1)),
        lambda images: (CLASSIFIER(images).detach(), CLASSIFIER(images)[:, :3]),
        # What is told of the scores by no weights of its own.
        lambda images: (scores := CLASSIFIER(images), scores.logsumexp(1)),
        lambda images: (scores := CLASSIFIER(images), scores.norm(dim=1, keepdim=True)),
        lambda images: (scores := CLASSIFIER(images), scores.square().mean()),
    ],
)
def test_else_the_first_value_of_a_tuple_holds_the_scores(run: Any) -> None:
    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert findings.head.count == 5
    assert findings.notes == ()


@pytest.mark.parametrize("make", [tuple, list])
def test_further_values_of_the_same_shape_are_told(make: Any) -> None:
    def run(images: Tensor) -> Any:
        scores = CLASSIFIER(images)
        return make([scores, CLASSIFIER(images.flip(3)), scores.softmax(1), CLASSIFIER(1 - images)])

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.notes == ("the scores are value 0 of 3 alike: output= picks another",)
    asked = probe_network(run, IMAGES, replace(HINTS, selector=1))
    assert asked.notes == ()


# ── layers that are run for each image in turn ──


class InTurn(nn.Module):
    """Runs its convolution for each image in a loop, and the rest for all at once, or as well."""

    def __init__(self, *, all_in_turn: bool, drops: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.all_in_turn = all_in_turn
        self.drops = drops

    def forward(self, images: Tensor) -> Tensor:
        vectors = [self.conv(image).relu().mean((2, 3)) for image in images.split(1)]
        if self.drops:
            vectors = [nn.functional.dropout(vector, 0.5) for vector in vectors]
        if self.all_in_turn:
            return torch.cat([self.fc(vector) for vector in vectors])
        return self.fc(torch.cat(vectors))


@pytest.mark.parametrize("all_in_turn", [True, False])
@pytest.mark.parametrize("drops", [True, False])
def test_layers_that_are_run_for_each_image_in_turn(all_in_turn: bool, drops: bool) -> None:
    network = InTurn(all_in_turn=all_in_turn, drops=drops)
    findings = probe_network(network, IMAGES, replace(HINTS, network=network))
    assert findings.runs_one_by_one
    notes = (IN_TURN_NOTE, RANDOM_NOTE) if drops else (IN_TURN_NOTE,)
    assert findings.notes == notes


def test_a_layer_that_is_run_twice_for_a_whole_batch_is_not_run_in_turn() -> None:
    class Twice(InTurn):
        def forward(self, images: Tensor) -> Tensor:
            first, second = self.conv(images), self.conv(images.flip(3))
            return self.fc((first + second).relu().mean((2, 3)))

    network = Twice(all_in_turn=False)
    findings = probe_network(network, IMAGES, replace(HINTS, network=network))
    assert (findings.runs_one_by_one, findings.notes) == (False, ())


# ── with and without autograd ──


def test_two_images_are_run_without_autograd_and_one_with_it() -> None:
    runs: list[tuple[int, bool]] = []

    def run(images: Tensor) -> Tensor:
        runs.append((len(images), torch.is_grad_enabled()))
        return CLASSIFIER(images)

    assert probe_network(run, IMAGES, HINTS).head is not None
    assert runs == [(2, False), (1, True)]


def test_a_network_that_answers_otherwise_under_autograd_does_not_depend_on_its_batch() -> None:
    def run(images: Tensor) -> Tensor:
        return CLASSIFIER(images) + (3.0 if torch.is_grad_enabled() else 0.0)

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert not findings.runs_one_by_one
    assert findings.notes == ()


@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_network_that_takes_a_gradient_itself_takes_several_images(is_mixed: bool) -> None:
    def run(images: Tensor) -> Tensor:
        try:
            (gradient,) = torch.autograd.grad(CLASSIFIER(images).square().sum(), images)
        except RuntimeError as error:
            raise SightlineError(str(error)) from error
        scores = CLASSIFIER(gradient)
        return scores - scores.mean(0) if is_mixed else scores

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is not None
    assert SINGLE_IMAGE_NOTE not in findings.notes
    assert findings.runs_one_by_one == is_mixed


def test_a_network_that_writes_to_its_images_is_given_the_same_ones_again() -> None:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            images.mul_(0.5)
        return CLASSIFIER(images)

    before = IMAGES.clone()
    findings = probe_network(run, IMAGES, HINTS)
    assert torch.equal(IMAGES, before)
    assert findings.head is not None
    assert findings.notes == ()


def test_the_layers_are_those_of_the_single_image() -> None:
    findings = probe_network(CLASSIFIER, IMAGES, HINTS)
    assert [(name, layer.kind, layer.shape) for name, layer in findings.layers.items()] == [
        ("0", "Conv2d", (4, 10, 18)),
        ("1", "ReLU", (4, 10, 18)),
        ("2", "AdaptiveAvgPool2d", (4, 1, 1)),
        ("3", "Flatten", (4,)),
        ("4", "Linear", (5,)),
    ]
    assert all(layer.batch == 1 for layer in findings.layers.values())

    def fail(images: Tensor) -> Tensor:
        CLASSIFIER(images)
        raise SightlineError("never ends")

    assert probe_network(fail, IMAGES, HINTS).layers == {}


def test_a_network_that_fails_when_it_is_asked_again() -> None:
    answers: list[Tensor] = []

    def run(images: Tensor) -> Tensor:
        if len(answers) > 1:
            raise SightlineError("not a third time")
        answers.append(torch.rand(len(images), 5, generator=torch.Generator().manual_seed(4)))
        return answers[-1] + len(answers)

    findings = probe_network(run, IMAGES, HINTS)
    assert findings.head is None
    assert "not a third time" in str(findings.head_error)
