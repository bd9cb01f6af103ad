"""The page of a class, against counts made here."""

import numpy as np
import pytest
from web_scan import MARKUP_CLASS, MARKUP_LABEL

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import ImageGroups, read_image_groups
from sightline.app.web.pages.unit_class import (
    ClassImages,
    build_class_page,
    count_largest,
    describe_class,
    describe_confusions,
    find_class_images,
)
from sightline.app.web.site.rendering import render_page
from sightline.data.store.reader import Scan


def test_images_of_a_class(web_scan: Scan) -> None:
    images = find_class_images(web_scan, read_image_groups(web_scan), 1)
    in_folder = [id for id, path in enumerate(web_scan.paths) if path.split("/")[-2] == "bee"]
    labels, probabilities = web_scan.top5
    answered = [id for id in range(web_scan.images) if labels[id, 0] == 1]
    assert images.members is not None
    assert images.members.tolist() == in_folder
    assert images.answered.tolist() == answered
    for id in range(web_scan.images):
        place = labels[id].tolist().index(1)
        assert images.probabilities[id] == pytest.approx(float(probabilities[id, place]))


def test_a_class_that_no_folder_has(web_scan: Scan) -> None:
    images = find_class_images(web_scan, read_image_groups(web_scan), 4)
    assert images.members is None


def test_shares_of_a_class() -> None:
    images = ClassImages(
        members=np.array([0, 1, 2, 5]),
        answered=np.array([1, 2, 3]),
        answers=np.array([4, 1, 1, 1, 0, 0]),
        probabilities=np.zeros(6),
    )
    assert dict(describe_class(images)) == {
        "Images of this class": "4",
        "The network calls so": "3 images",
        "Right among them": "50 %",
        "Right when it says so": "67 %",
    }


def test_confusions_are_counted(explorer: Explorer) -> None:
    groups = ImageGroups(("bee", "ant"), np.array([0, 0, 0, 1, 1, 0]), "class", (1, -1))
    images = ClassImages(
        members=np.array([0, 1, 2, 5]),
        answered=np.array([1, 2, 3]),
        answers=np.array([4, 1, 1, 1, 0, 4]),
        probabilities=np.zeros(6),
    )
    confusions = describe_confusions(explorer, groups, images, 1)
    [taken] = confusions["taken_for"]
    assert (taken["name"], taken["share"], taken["value"]) == ("elk", 50.0, "50 % (2)")
    assert taken["address"] == explorer.link("class", index=4)
    [other] = confusions["taken_from"]
    assert (other["name"], other["value"], other["address"]) == ("ant", "33 % (1)", "")


def test_the_most_frequent_come_first() -> None:
    assert count_largest(np.array([3, 1, 3, -1, 1, 3, 0])) == [(3, 3), (1, 2), (0, 1)]
    assert count_largest(np.array([-1])) == []


def test_units_for_and_against_are_the_classifiers_weights(explorer: Explorer) -> None:
    weights = build_class_page(explorer, 2).data["weights"]
    assert weights["layer"] == "conv3"
    assert explorer.model is not None
    own = explorer.model.module("fc").weight[2]
    assert weights["rows"][0]["unit"] == int(own.argmax())
    assert weights["rows"][-1]["unit"] == int(own.argmin())
    largest = float(own.abs().max())
    for row in weights["rows"]:
        assert row["share"] == pytest.approx(100 * float(own[row["unit"]]) / largest, abs=0.06)


def test_best_images_come_first(explorer: Explorer) -> None:
    page = build_class_page(explorer, 1)
    images = find_class_images(explorer.scan, read_image_groups(explorer.scan), 1)
    assert images.members is not None
    best = max(images.members.tolist(), key=lambda id: images.probabilities[id])
    assert page.data["rows"][0]["title"] == "Best images of the class"
    assert page.data["rows"][0]["images"][0]["id"] == best


def test_labels_are_no_markup(explorer: Explorer) -> None:
    html = render_page(explorer, build_class_page(explorer, 0), "classes/0.html")
    assert MARKUP_LABEL not in html
    assert MARKUP_CLASS not in html
    assert "&lt;script&gt;" in html
    assert "Confusions are not known" in html


def test_without_a_network(explorer: Explorer) -> None:
    bare = Explorer(explorer.scan, None, pictures=explorer.pictures)
    page = build_class_page(bare, 1)
    assert page.data["weights"] is None
    assert "do not read single units" in render_page(bare, page, "classes/1.html")


def test_without_classes_of_the_dataset(web_model: sl.Model, web_scan: Scan) -> None:
    scan = sl.scan(web_model, [web_scan.paths[3], web_scan.paths[4], web_scan.paths[7]])
    explorer = Explorer(scan, web_model)
    answer = int(scan.top5[0][0, 0])
    page = build_class_page(explorer, answer)
    assert page.data["rows"][0]["title"] == "Surest images"
    assert "Confusions are not known" in render_page(explorer, page, f"classes/{answer}.html")
