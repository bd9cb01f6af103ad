"""What was probably meant by a command that is not understood, with the corrected line."""

import shlex
from pathlib import Path

import pytest
from helpers import smooth

from sightline.app.cli.main import main
from sightline.app.corrections import find_option_value, replace_word
from sightline.images.io.pictures import write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture, a folder of pictures and a file of code."""
    monkeypatch.chdir(tmp_path)
    write(smooth(side=40)[..., :32], "dog.png")
    Path("photos").mkdir()
    write(smooth(side=40)[..., :32], "photos/cat.png")
    Path("mymodel.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    pass\n\ndef build():\n    return Net()\n",
        encoding="utf-8",
    )
    Path("nets").mkdir()
    Path("nets/other.py").write_text("def make():\n    return 3\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("salience dog.png", 'did you mean "saliency"? sightline saliency dog.png'),
        ("store inf x.scan", 'did you mean "info"? sightline store info x.scan'),
        (
            "saliency dog.png --lable cat",
            "did you mean --label? sightline saliency dog.png --label",
        ),
        (
            "saliency dog.png --class cat",
            "did you mean --label? sightline saliency dog.png --label",
        ),
        (
            "saliency dog.png --network=vgg16",
            "no option --network; did you mean --model? sightline saliency dog.png --model=vgg16",
        ),
        ("deepdream dog.png --iterations 5", "did you mean --steps? sightline deepdream dog.png"),
        (
            "saliency dog.png --gpu",
            "did you mean --device cuda? sightline saliency dog.png --device",
        ),
        ("saliency dog.png --zzzz 3", "no option --zzzz; sightline saliency --help lists"),
        ("store info x.scan --zzzz", "sightline store info --help lists"),
        (
            "adversarial dog.png golf ball",
            "needs quotes: sightline adversarial dog.png 'golf ball'",
        ),
        (
            "saliency dog.png --labels cat dog bird",
            "with commas between them: sightline saliency dog.png --labels cat,dog,bird",
        ),
        (
            "occlusion dog.png church window=32",
            "did you mean --window? sightline occlusion dog.png",
        ),
        (
            "occlusion dog.png church window 32",
            "did you mean --window? sightline occlusion dog.png",
        ),
        (
            "saliency dog.png --model mymodel:Net --output_kind regression",
            "the function of --model FILE:FUNCTION brings it beside the network: return network, "
            '{"output_kind": VALUE}',
        ),
        ("occlusion dog.png --inputs age=4", 'return network, {"inputs": VALUE}'),
        (
            "saliency dog.png --pixel 10,20,great crane",
            "--pixel takes 3 words: sightline saliency dog.png --pixel 10 20 great crane",
        ),
        (
            "saliency dog.png --pixel '3,4,crane, bird' --size 64",
            "sightline saliency dog.png --pixel 3 4 'crane, bird' --size 64",
        ),
        ("saliency dog.png --pixel 10", "--pixel requires 3"),
        ("predictions dog.png other.png", "other.png is one word too many"),
        ("filters dog.png", "dog.png is a picture, and no network"),
        (
            "saliency --model dog.png",
            "dog.png is a picture, and no network: sightline saliency dog.png --model resnet50",
        ),
        (
            "saliency dog.png --model mymodel.py:Net",
            "is written mymodel:Net: sightline saliency dog.png --model mymodel:Net",
        ),
        ("filters mymodel.py", "is written mymodel:build: sightline filters mymodel:build"),
        ("filters nets/other.py:make", "is written nets.other:make: sightline filters nets.other:"),
        ("filters mymodel.py:Nett", "mymodel.py has no Nett; did you mean Net?"),
        ("filters absent.py:Net", "and there is no file absent.py"),
        (
            "filters mymodell:Net",
            "did you mean mymodel? sightline filters mymodel:Net",
        ),
        ("saliency --model=zzz:Net", "there is no module zzz: no zzz.py in "),
        (
            "neighbors dog.png --store photos",
            "a folder of pictures, not a store: sightline scan photos --store photos.scan, then "
            "sightline neighbors dog.png --store photos.scan",
        ),
    ],
)
def test_the_word_and_the_corrected_line(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_code_in_another_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "nets" / "other.py"
    assert main(["filters", f"{file}:make"]) == 2
    said = capsys.readouterr().err
    assert f"cd {file.parent} && sightline filters other:make" in said


def test_words_are_replaced_once() -> None:
    words = ["a", "--b", "--b=3", "--b"]
    assert replace_word(words, "--b", "--c", "d") == ["a", "--c", "d", "--b=3", "--b"]
    assert replace_word(["--b=3=4"], "--b", "--c") == ["--c=3=4"]


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--m", "x"], "x"), (["--m=y=z"], "y=z"), (["--m"], None), (["m", "x"], None)],
)
def test_the_value_of_an_option(words: list[str], value: str | None) -> None:
    assert find_option_value(words, "--m") == value
