"""The names of networks, read from source, beside what the libraries themselves list."""

import subprocess
import sys

import pytest
import timm
import torchvision

from sightline.models.zoo.names import is_network_name, list_network_names


def test_names_are_those_that_the_libraries_list() -> None:
    names = list_network_names()
    assert names["sightline"] == ["sightnet", "sightnet_plain"]
    models = torchvision.models
    sources = (models, models.detection, models.segmentation)
    listed = [name for source in sources for name in models.list_models(module=source)]
    assert names["torchvision"] == sorted(listed)
    assert names["timm"] == timm.list_models()


def test_listing_names_imports_no_library() -> None:
    script = (
        "import sys\n"
        "from sightline.models.zoo.names import list_network_names\n"
        "list_network_names()\n"
        "print({'torch', 'torchvision', 'timm', 'numpy', 'PIL'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout == "set()\n"


@pytest.mark.parametrize(
    "text",
    ["sightnet", "vgg16", "mobilenetv2_100", "resnet50.a1_in1k", "my.nets:build", "hf:./vit-tiny"],
)
def test_names_of_networks(text: str) -> None:
    assert is_network_name(text)


@pytest.mark.parametrize(
    "text", ["rocket", "resnet50.jpg", "vgg16/cat.png", "golf ball", "church", "channel('vgg16')"]
)
def test_other_words_name_no_network(text: str) -> None:
    assert not is_network_name(text)
