"""A small scan with names that try to be markup, for the tests of the explorer."""

from pathlib import Path

from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.data.store.reader import Scan

# What a folder (a class) and a file may be called; a slash is the one thing that they can't hold.
MARKUP_CLASS = "<img src=x onerror=alert(1)>\"'&"
MARKUP_FILE = "<script>alert('file')<script>\"&.png"
MARKUP_LABEL = '<script>alert("label")</script>\''
WEB_LABELS = (MARKUP_LABEL, *LABELS[1:])
IMAGE_COUNT = 14


def make_web_model() -> sl.Model:
    """A small network, one of whose classes is called like a script."""
    statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return sl.load(small_network(), labels=WEB_LABELS, size=32, **statistics)


def make_web_scan(model: sl.Model, folder: Path) -> Scan:
    """A scan of 14 pictures in two classes."""
    pictures = smooth(IMAGE_COUNT, side=40, seed=3)
    for number in range(IMAGE_COUNT):
        name = MARKUP_FILE if number == 5 else f"{number:03}.png"
        path = folder / "photos" / (MARKUP_CLASS, "bee")[number % 3 == 0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], path)
    return sl.scan(model, folder / "photos", store=folder / "web.scan", k=9)
