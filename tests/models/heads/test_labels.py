"""Classes by number, name or part of a name."""

import pytest

from sightline.errors import SightlineError
from sightline.models.heads.labels import check_class_count, find_label_index

# Two cranes as in ImageNet, a class whose name is a number, and names within names.
LABELS = ("crane", "dog sled", "Dog", "crane", "7", "hot dog", "Tabby cat", "STRASSE")


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (5, 5),
        (0, 0),
        ("5", 5),
        ("7", 4),  # the name counts before the number
        ("Dog", 2),
        ("dog", 2),  # in any case, before the parts «dog sled» and «hot dog»
        ("HOT", 5),
        ("tabby", 6),
        ("straße", 7),
    ],
)
def test_the_class_of_a_label(label: int | str, index: int) -> None:
    assert find_label_index(LABELS, label, "net") == index


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (8, "label is 8; net has classes 0 to 7"),
        (-1, "label is -1; net has classes 0 to 7"),
        ("-1", "label is -1; net has classes 0 to 7"),
        ("99", "label is 99; net has classes 0 to 7"),
        ("crane", "net has 2 classes of that name: give the number, 0 and 3"),
        ("CRANE", "give the number, 0 and 3"),
        ("tabyb cat", "Tabby cat"),
        ("og", "og"),
    ],
)
def test_what_is_no_class_is_refused_in_one_line(label: int | str, message: str) -> None:
    with pytest.raises(SightlineError) as error:
        find_label_index(LABELS, label, "net")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_of_several_names_is_answered_with_all_of_those() -> None:
    with pytest.raises(SightlineError, match=r"choose from red fox \(1\), kit fox \(2\), of which"):
        find_label_index(("fog", "red fox", "kit fox"), "fox", "net")
    many = tuple(f"retriever {number}" for number in range(15))
    with pytest.raises(SightlineError, match=r"retriever 11 \(11\) and 3 more, of which"):
        find_label_index(many, "retriever", "net")


def test_one_class_for_each_image() -> None:
    check_class_count((1, "ant"), 2)
    with pytest.raises(SightlineError, match="label has 1 class for 2 images; give one, or one"):
        check_class_count(("ant",), 2)
    with pytest.raises(SightlineError, match="label has 2 classes for 1 image;"):
        check_class_count((0, 1), 1)
