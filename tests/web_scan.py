"""Small scans for the tests of the explorer: with names that try to be markup, and two of the same
images.
"""

from pathlib import Path

import torch
from helpers import LABELS, small_network, smooth
from torch import nn

import sightline as sl
from sightline.data.store.reader import Scan
from sightline.models.model import Model

# What a folder (a class) and a file may be called; a slash is the one thing that they can't hold.
MARKUP_CLASS = "<img src=x onerror=alert(1)>\"'&"
MARKUP_FILE = "<script>alert('file')<script>\"&.png"
MARKUP_LABEL = '<script>alert("label")</script>\''
WEB_LABELS = (MARKUP_LABEL, *LABELS[1:])
IMAGE_COUNT = 14
COMPARED_IMAGES = 60  # as many as groups of mistakes ask for


def make_web_model() -> sl.Model:
    """A small network, one of whose classes is called like a script."""
    return sl.load(small_network(), labels=WEB_LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def make_web_scan(model: sl.Model, folder: Path) -> Scan:
    """A scan of 14 pictures in two classes."""
    pictures = smooth(IMAGE_COUNT, side=40, seed=3)
    for number in range(IMAGE_COUNT):
        name = MARKUP_FILE if number == 5 else f"{number:03}.png"
        path = folder / "photos" / (MARKUP_CLASS, "bee")[number % 3 == 0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], path)
    return sl.scan(model, folder / "photos", store=folder / "web.scan", k=9)


def make_two_scans(folder: Path) -> tuple[Scan, Scan, sl.Model]:
    """Scans of 60 images in two classes by two networks, which differ in the last layer.

    Also returns the second network.
    """
    pictures = smooth(COMPARED_IMAGES, side=36, seed=21)
    for number in range(COMPARED_IMAGES):
        path = folder / "images" / ("bee", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], path)
    new_network = small_network()
    torch.manual_seed(3)
    with torch.no_grad():
        new_network.get_submodule("fc").weight += 0.5 * torch.randn(5, 16)  # type: ignore[operator]
    old_model, new_model = (
        Model(network.eval(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3, name=name)
        for name, network in (("an_earlier_network_100", small_network()), ("new", new_network))
    )
    old, new = (
        sl.scan(model, folder / "images", store=folder / f"{name}.scan", layers=["conv2", "conv3"])
        for name, model in (("old", old_model), ("new", new_model))
    )
    return old, new, new_model


def make_wide_scan(folder: Path) -> tuple[Scan, Model]:
    """A scan by a network that takes images of 24×40 pixels only, and the network."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 12 * 20, 5),
    )
    model = Model(network.eval(), labels=LABELS, size=(24, 40), name="wide")
    pictures = smooth(9, side=50, seed=8)
    for number, picture in enumerate(pictures):
        sl.write(
            picture[:, : 30 + number],
            folder / "wide" / ("bee", "dog")[number % 2] / f"{number}.png",
        )
    scan = sl.scan(model, folder / "wide", store=folder / "wide.scan", layers=["0", "2"], k=9)
    return scan, model
