"""Networks from an architecture and a file: the head has the file's classes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.zoo.libraries.construction import (
    build_network_with_weights,
    construct_network,
    count_classes,
    find_fine_tuned_classes,
    keep_fitting_labels,
    make_download_error,
)


def make_network(classes: int | None, channels: int = 6) -> nn.Module:
    """A convolution and a head; the architecture's own number of classes is 10."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes or 10),
    )


def write_weights(folder: Path, network: nn.Module) -> str:
    path = folder / "weights.pt"
    torch.save(network.state_dict(), path)
    return str(path)


def test_random_weights_are_the_same_each_time() -> None:
    first = build_network_with_weights("net", make_network, "random").state_dict()
    torch.rand(7)
    second = build_network_with_weights("net", make_network, "random").state_dict()
    assert all(first[name].equal(second[name]) for name in first)
    assert count_classes(build_network_with_weights("net", make_network, "random")) == 10


@pytest.mark.parametrize("classes", [10, 4, 1])
def test_the_file_tells_the_number_of_classes(classes: int, tmp_path: Path) -> None:
    trained = make_network(classes)
    network = build_network_with_weights("net", make_network, write_weights(tmp_path, trained))
    assert count_classes(network) == classes
    image = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(image), trained(image))


def test_another_way_to_find_the_classes(tmp_path: Path) -> None:
    trained = make_network(4)

    def find_classes(network: nn.Module, state_dict: Mapping[str, Tensor]) -> int | None:
        assert count_classes(network) == 10
        return len(state_dict["3.bias"])

    weights = write_weights(tmp_path, trained)
    network = build_network_with_weights("net", make_network, weights, find_classes)
    assert count_classes(network) == 4


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, make_network(4, channels=5))
    with pytest.raises(SightlineError, match=r"weights\.pt"):
        build_network_with_weights("net", make_network, weights)


@pytest.mark.parametrize(
    ("make_trained", "classes"),
    [
        (lambda: make_network(4), 4),
        (lambda: make_network(10), None),  # nothing to change
        (lambda: make_network(4, channels=5), None),  # differs in more than the head
        (lambda: nn.Linear(3, 3), None),  # shares no weights
    ],
    ids=["other", "same", "narrower", "foreign"],
)
def test_only_a_head_of_another_size_is_fine_tuned(
    make_trained: Callable[[], nn.Module], classes: int | None
) -> None:
    assert find_fine_tuned_classes(make_network(None), make_trained().state_dict()) == classes


def test_labels_are_kept_where_they_fit() -> None:
    labels = [str(number) for number in range(10)]
    assert keep_fitting_labels(labels, make_network(None)) == labels
    assert keep_fitting_labels(labels, make_network(4)) == ()
    assert count_classes(nn.Flatten()) == 0


def test_a_constructor_that_refuses() -> None:
    def refuse() -> nn.Module:
        raise TypeError("got an unexpected keyword\nand more")

    with pytest.raises(
        SightlineError, match=r"^net can't be built with depth=3 \(TypeError: got an unexpected"
    ) as error:
        construct_network("net", refuse, {"depth": 3})
    assert "\n" not in str(error.value)
    # Without options the library itself is at fault, and its traceback helps.
    with pytest.raises(TypeError):
        construct_network("net", refuse, {})
    assert isinstance(construct_network("net", nn.Identity, {"depth": 3}), nn.Identity)


def test_a_failed_download_names_the_way_out() -> None:
    message = str(make_download_error("net", OSError("no route\nto the host")))
    assert "weights of net can't be downloaded (no route); give a file with weights=FILE" in message
