"""`sightline.toml` and `--labels`: read, checked at the door, and refused in one line."""

from pathlib import Path

import pytest

import sightline as sl
from sightline.app.project import describe_settings, read_labels, read_project_settings


def write_settings(folder: Path, text: str) -> Path:
    (folder / "sightline.toml").write_text(text, encoding="utf-8")
    return folder


def test_without_a_file_there_are_no_settings(tmp_path: Path) -> None:
    assert read_project_settings(tmp_path) == {}


def test_everything_that_it_may_hold(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").touch()
    (tmp_path / "names.txt").touch()
    text = (
        'network = "vgg16"\nweights = "mine.pt"\nlabels = "names.txt"\n'
        "mean = [0.5, 0.25, 1e-3]\nstd = [1.0, 2.0, 3.0]\n"
    )
    values = read_project_settings(write_settings(tmp_path, text))
    assert values == {
        "model": ["vgg16"],
        "weights": [str(tmp_path / "mine.pt")],
        "labels": [str(tmp_path / "names.txt")],
        "mean": ["0.5", "0.25", "0.001"],
        "std": ["1.0", "2.0", "3.0"],
    }
    said = describe_settings(values)
    assert said.startswith("sightline.toml: model vgg16, weights ")
    assert "mean 0.5 0.25 0.001" in said


def test_labels_in_the_file_itself(tmp_path: Path) -> None:
    values = read_project_settings(write_settings(tmp_path, "labels = ['ant', 'honey bee']"))
    assert read_labels(values["labels"][0]) == ("ant", "honey bee")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wieghts = 'a.pt'", "no key 'wieghts'; did you mean weights?"),
        ("zzz = 3", "no key 'zzz'; choose from network, weights, labels, mean, std"),
        ("network = 3", "network is 3"),
        ("mean = 0.5", "mean is 0.5"),
        ("mean = ['a']", "mean"),
        ("mean = []", "mean is []"),
        ("network = 'mynets:build'", "may not run; give it as --model mynets:build"),
        ("network = 'hf:google/vit-base'", "may name only a folder of this machine"),
        ("weights = 'https://example.org/a.pt'", "no such file on this machine"),
        ("weights = 'absent.pt'", "no such file on this machine"),
        ("labels = 'absent.txt'", "no such file on this machine"),
        ("labels = ['a,b', 'c']", "a label has a comma"),
        ("labels = ['a']", "labels is ['a']"),
        ("network = ", "can't be read"),
        ("[network]\nname = 'vgg16'", "network is"),
    ],
)
def test_what_is_refused_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError) as refused:
        read_project_settings(write_settings(tmp_path, text))
    assert said in str(refused.value)
    assert str(refused.value).startswith("sightline.toml")
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_and_too_many(tmp_path: Path) -> None:
    (tmp_path / "sightline.toml").write_bytes(b"network = '\xff\xfe'")
    with pytest.raises(sl.SightlineError, match="can't be read"):
        read_project_settings(tmp_path)
    (tmp_path / "sightline.toml").write_bytes(b"#" * 200_000)
    with pytest.raises(sl.SightlineError, match="more than 100,000 bytes"):
        read_project_settings(tmp_path)


def test_a_local_folder_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    values = read_project_settings(write_settings(tmp_path, "network = 'hf:vit'"))
    assert values["model"] == [f"hf:{tmp_path / 'vit'}"]


def test_labels_of_a_file_and_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("ant\r\nbee, honey\n\ncat\n\n", encoding="utf-8")
    assert read_labels(str(file)) == ("ant", "bee, honey", "", "cat")
    assert read_labels("ant, bee,cat") == ("ant", "bee", "cat")


def test_labels_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for text, said in (
        ("nosuch.txt", "give a file with one name a line"),
        (str(tmp_path / "empty.txt"), "holds no labels"),
        (str(tmp_path / "picture.png"), "not text in UTF-8"),
        ("a\0b", "give a file"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            read_labels(text)


def test_files_with_a_mark_of_their_encoding(tmp_path: Path) -> None:
    """As some editors of Windows write them."""
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    (tmp_path / "sightline.toml").write_text('network = "vgg16"\n', encoding="utf-8-sig")
    assert read_project_settings(tmp_path) == {"model": ["vgg16"]}
    assert read_labels(str(tmp_path / "labels.txt")) == ("cat", "dog")
