"""Several pictures by one method: their exemplars, seeds and steps."""

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.texture.makers import synthesize_pictures
from sightline.methods.texture.request import TextureRequest
from sightline.registry.progress import Step


@pytest.fixture
def request_of_seed_5(tiny: sl.Model) -> TextureRequest:
    return TextureRequest(
        exemplar=torch.zeros(3, 4, 6),
        size=(5, 7),
        window=3,
        tileable=False,
        guide=None,
        model=tiny,
        layers=(),
        steps=1,
        use_average_pooling=True,
        spectrum_weight=0.0,
        memory_gb=1.0,
        seed=5,
        callback=None,
    )


def make_marked(request: TextureRequest) -> Tensor:
    """A picture of the exemplar's first value and the seed, which reports two steps."""
    picture = torch.full((3, *request.size), float(request.exemplar[0, 0, 0]))
    picture[0] = request.seed / 100
    for index in (1, 2):
        if request.callback and request.callback(Step(index, 2, torch.zeros(1), picture[None])):
            break
    return picture


def test_the_pictures_of_an_exemplar_have_consecutive_seeds(
    request_of_seed_5: TextureRequest,
) -> None:
    exemplars = torch.tensor([0.2, 0.4]).view(2, 1, 1, 1).expand(2, 3, 4, 6)
    pictures = synthesize_pictures(make_marked, request_of_seed_5, exemplars, 3)
    assert pictures.shape == (6, 3, 5, 7)
    torch.testing.assert_close(pictures[:, 1, 0, 0], torch.tensor([0.2] * 3 + [0.4] * 3))
    seeds = (pictures[:, 0, 0, 0] * 100).round().tolist()
    assert seeds == [5, 6, 7, 5, 6, 7]


def test_pictures_are_brought_into_range(request_of_seed_5: TextureRequest) -> None:
    pictures = synthesize_pictures(
        lambda request: torch.linspace(-1, 2, 105).view(3, 5, 7),
        request_of_seed_5,
        torch.zeros(1, 3, 4, 6),
        1,
    )
    assert (pictures.min(), pictures.max()) == (0, 1)


def test_the_callback_counts_the_steps_of_all_pictures(request_of_seed_5: TextureRequest) -> None:
    steps: list[tuple[int, int]] = []

    def stop_at_5(step: Step) -> bool:
        steps.append((step.index, step.total))
        return step.index == 5

    fields = {**vars(request_of_seed_5), "callback": stop_at_5}
    exemplars = torch.zeros(2, 3, 4, 6)
    pictures = synthesize_pictures(make_marked, TextureRequest(**fields), exemplars, 2)
    assert steps == [(index, 8) for index in range(1, 6)]
    assert len(pictures) == 3, "the picture that was stopped is kept"


def test_a_request_begins_its_random_numbers_anew(request_of_seed_5: TextureRequest) -> None:
    numbers = [torch.rand(3, generator=request_of_seed_5.generator) for _ in range(2)]
    assert torch.equal(numbers[0], numbers[1])
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(numbers[0], expected)
