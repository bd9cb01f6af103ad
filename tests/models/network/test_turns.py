"""Networks that run their layers for each image in turn, and what methods give for a batch."""

import pytest
import torch
from torch import Tensor, nn
from zoo.odd_ways import ByTurns

import sightline as sl
from sightline.models.network.turns import are_run_in_turn, watch_calls

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def load() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(ByTurns().eval(), size=32)


def test_calls_are_noted_while_they_are_watched() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with watch_calls(network) as lengths:
        network(torch.rand(2, 3, 3, 3))
        network(torch.rand(1, 3, 3, 3))
    network(torch.rand(5, 3, 3, 3))
    assert dict(lengths) == {network[0]: [2, 1], network[2]: [2, 1]}
    assert not network[0]._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_nested_tensors_count_by_their_rows() -> None:
    network = nn.Linear(3, 2)
    with watch_calls(network) as lengths:
        network(torch.nested.nested_tensor([torch.rand(4, 3), torch.rand(2, 3), torch.rand(1, 3)]))
    assert dict(lengths) == {network: [3]}


@pytest.mark.parametrize(
    ("together", "apart", "expected"),
    [
        ([1, 1], [1], True),
        ([1, 1, 1, 1], [1, 1], True),
        ([2], [1], False),
        ([1], [1], False),  # of one text for all images
        ([2, 2], [1, 1], False),
        ([1, 1], [], False),  # an expert of the other image
        ([2, 1], [1], False),
    ],
)
def test_how_often_a_layer_is_called(together: list[int], apart: list[int], expected: bool) -> None:
    layer = nn.Linear(2, 2)
    assert are_run_in_turn({layer: together}, {layer: apart}, 2) is expected


def test_features_are_of_all_images() -> None:
    model = load()
    layers = ["backbone.conv1", "penultimate", "logits"]
    together = model.features(IMAGES, layers)
    for row, image in enumerate(IMAGES.split(1)):
        alone = model.features(image, layers)
        for name in layers:
            assert len(together[name]) == 3
            torch.testing.assert_close(together[name][row : row + 1], alone[name])


@pytest.mark.parametrize("kind", ["layercam", "gradcam++"])
@pytest.mark.parametrize("label", ["top", 2, [4, 0, 1]])
def test_maps_of_a_batch_are_those_of_each_image(kind: str, label: object) -> None:
    model = load()

    def compute_maps(images: Tensor, label: object) -> tuple[Tensor, Tensor]:
        values = sl.cam(model, images, kind=kind, label=label).values
        return values["cam"], values["label"]

    maps, labels = compute_maps(IMAGES, label)
    for row, image in enumerate(IMAGES.split(1)):
        own_label = label[row] if isinstance(label, list) else label
        own_maps, own_labels = compute_maps(image, own_label)
        torch.testing.assert_close(maps[row : row + 1], own_maps)
        assert labels[row] == own_labels[0]
