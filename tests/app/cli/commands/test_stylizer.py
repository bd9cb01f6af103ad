"""`sightline stylizer`: what it writes, and how it refuses."""

import json
import signal
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.app.cli.application import STYLIZER_COMMANDS
from sightline.app.cli.commands import stylizer as commands
from sightline.app.cli.main import main
from sightline.app.cli.terminal import StepProgressBar
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import (
    AnyStyleNetwork,
    FixedStyleNetwork,
    read_fixed_style_network,
    read_style_network,
    write_fixed_style_network,
)
from sightline.images.decode.pixels import convert_tensor_to_pillow
from sightline.images.io import pictures as images
from sightline.images.video.reading import read_video, read_video_properties
from sightline.images.video.writing import write_video


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a style network, a picture, a folder of pictures, and what is
    none of these.
    """
    monkeypatch.chdir(tmp_path)
    write_fixed_style_network(
        make_stylizer(0, 2, width=4, blocks=1), ["wave", "night"], Path("own.safetensors")
    )
    images.write(smooth(side=40)[..., :32], "photo.png")
    for seed in range(3):
        images.write(smooth(side=36, seed=seed), Path("photos") / f"{seed}.png")
    Path("photos/broken.jpg").write_bytes(b"no picture")
    Path("clip.mp4").write_bytes(b"no video")
    return tmp_path


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("name", STYLIZER_COMMANDS)
def test_help_and_the_summaries_announced(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stylizer", name, "--help"]) == 0
    assert capsys.readouterr().out
    assert (getattr(commands, name).__doc__ or "").split("\n")[0] == STYLIZER_COMMANDS[name]


def test_apply_to_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "stylizer",
                "apply",
                "own.safetensors",
                "photo.png",
                "--style",
                "night",
                "--out",
                "made",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "made/photo.png\n"
    own = read_fixed_style_network("own.safetensors")
    with torch.no_grad():
        expected = own.network(sl.read("photo.png"), own.make_mix("night"))
    assert (sl.read("made/photo.png") - expected).abs().max() < 0.01
    assert names("made") == ["photo.png"]


def test_apply_offline_with_what_is_shipped() -> None:
    assert (
        main(
            [
                "stylizer",
                "apply",
                "painters",
                "photo.png",
                "--style",
                "scream:1,great_wave:2",
                "--size",
                "48",
                "--quiet",
            ]
        )
        == 0
    )
    assert sl.read("out/stylizer/photo.png").shape == (1, 3, 60, 48)


def test_apply_to_a_folder_leaves_out_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "stylizer",
                "apply",
                "own.safetensors",
                "photos",
                "--out",
                "made",
                "--json",
                "--batch",
                "2",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [f"made/{i}.png" for i in range(3)]
    assert len(told["left_out"]) == 1
    assert "broken.jpg" in told["left_out"][0]
    assert names("made") == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("source", "out"), [("photos/0.png", "photos"), ("photos", "photos"), ("clip.gif", ".")]
)
def test_apply_never_overwrites_what_it_reads(
    source: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(smooth(3, side=32).split(1), "clip.gif")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(["stylizer", "apply", "own.safetensors", source, "--out", out]) == 1
    refusal = capsys.readouterr().err
    assert "would be overwritten; give another --out" in refusal
    assert refusal.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_pictures_of_one_stem_stay_apart() -> None:
    images.write(smooth(side=36, seed=7), "photos/0.jpg")
    assert main(["stylizer", "apply", "own.safetensors", "photos", "--out", "made"]) == 0
    assert names("made") == ["0.jpg.png", "0.png.png", "1.png", "2.png"]
    assert not torch.equal(sl.read("made/0.jpg.png"), sl.read("made/0.png.png"))


def test_apply_to_a_video() -> None:
    write_video((smooth(side=32, seed=seed) for seed in range(4)), "short.mp4")
    assert (
        main(["stylizer", "apply", "own.safetensors", "short.mp4", "--out", "made", "--batch", "3"])
        == 0
    )
    frames = list(read_video("made/short.mp4"))
    assert (len(frames), frames[0].shape) == (4, (1, 3, 32, 32))


def write_with_sound(path: str, rate: int) -> None:
    """Four frames and a track of silence."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = 48
        stream.height = 32
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=16000, layout="mono")
        for level in range(4):
            gray = np.full((32, 48, 3), 50 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
        silence = np.zeros((1, 1024), np.float32)
        sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux([*track.encode(sound), *track.encode()])


@pytest.mark.parametrize(
    ("fps", "rate", "track_count"), [(None, 12, 1), ("12", 12, 1), ("6", 6, 0)]
)
def test_apply_keeps_the_rate_and_the_sound_of_a_video(
    fps: str | None, rate: int, track_count: int
) -> None:
    write_with_sound("short.mp4", 12)
    options = ["--fps", fps] if fps else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        command = ["stylizer", "apply", "own.safetensors", "short.mp4", "--out", "made"]
        assert main([*command, *options]) == 0
    with av.open("made/short.mp4") as container:
        assert container.streams.video[0].average_rate == rate
        assert container.streams.video[0].frames == 4
        assert len(container.streams.audio) == track_count
    messages = [str(warning.message) for warning in caught]
    assert sum("the sound could not be kept" in message for message in messages) == 1 - track_count


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_apply_makes_an_animation_of_an_animation(suffix: str) -> None:
    frames = [smooth(side=48, seed=seed)[..., :32, :] for seed in range(3)]
    pictures = [convert_tensor_to_pillow(frame) for frame in frames]
    pictures[0].save(
        f"short{suffix}", save_all=True, append_images=pictures[1:], duration=[50, 90, 200], loop=2
    )
    assert main(["stylizer", "apply", "own.safetensors", f"short{suffix}", "--out", "made"]) == 0
    assert names("made") == [f"short{suffix}"]
    properties = read_video_properties(f"made/short{suffix}")
    assert (properties.durations, properties.loop_count) == ((50, 90, 200), 2)


def test_train_writes_a_network_that_apply_takes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning_fabric")
    images.write(smooth(side=200, seed=9), "style.png")
    Path("photos/broken.jpg").unlink()
    words = (
        "stylizer train style.png --folder photos --norm instance --width 4 --blocks 1 --size 32 "
        "--style-size 200 --steps 2 --batch 2 --out run"
    )
    assert main([*words.split(), "--weights", "random", "--accelerator", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("run/stylizer.safetensors\n")
    assert read_fixed_style_network("run/stylizer.safetensors").names == ("style",)
    assert (
        main(
            [
                *words.replace("instance", "batch").split(),
                "--weights",
                "random",
                "--accelerator",
                "cpu",
                "--quiet",
            ]
        )
        == 1
    )
    assert "was made with norm instance, not batch" in capsys.readouterr().err


def test_ctrl_c_ends_a_training_with_a_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command goes on after that step, and prints the network's path again."""
    pytest.importorskip("lightning_fabric")
    images.write(smooth(side=200, seed=9), "style.png")
    Path("photos/broken.jpg").unlink()
    words = (
        "stylizer train style.png --folder photos --norm instance --width 4 --blocks 1 --size 32 "
        "--style-size 200 --steps 3 --batch 2 --out run --weights random --accelerator cpu --quiet"
    )
    update_display = StepProgressBar.update_display
    steps: list[int] = []

    def interrupt_once(self: StepProgressBar, done: int, total: int, title: str) -> bool:
        steps.append(done)
        update_display(self, done, total, title)
        if steps == [1]:
            signal.raise_signal(signal.SIGINT)
        return self.stopped

    monkeypatch.setattr(StepProgressBar, "update_display", interrupt_once)
    handler = signal.getsignal(signal.SIGINT)
    assert main(words.split()) == 130
    stopped = capsys.readouterr()
    assert stopped.out == "run/stylizer.safetensors\n"
    assert stopped.err.endswith("stopped; the same command resumes it\n")
    assert read_fixed_style_network("run/stylizer.safetensors").metadata["step"] == 1
    assert signal.getsignal(signal.SIGINT) is handler

    for expected_steps in ([1, 2, 3], [1, 2, 3]):  # the second time nothing is left to do
        assert main(words.split()) == 0
        assert steps == expected_steps
        assert capsys.readouterr().out == "run/stylizer.safetensors\n"
    assert read_fixed_style_network("run/stylizer.safetensors").metadata["step"] == 3


def test_any_style_from_training_to_picture(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning_fabric")
    Path("photos/broken.jpg").unlink()
    for seed, name in enumerate(("wave", "night")):
        images.write(smooth(side=60, seed=9 + seed), Path("manners") / f"{name}.png")
    words = (
        "stylizer train manners --norm adaptive --folder photos --size 32 --style-size 48 --steps "
        "2 --batch 2 --out run --accelerator cpu --quiet"
    )
    assert main(words.split()) == 0
    assert capsys.readouterr().out.endswith("run/stylizer.safetensors\n")
    words = (
        "stylizer apply run/stylizer.safetensors photo.png --style "
        "manners/wave.png:1,great_wave:2 --alpha 0.7 --style-size 100 --out made"
    )
    assert main(words.split()) == 0
    own = read_style_network("run/stylizer.safetensors")
    assert isinstance(own, AnyStyleNetwork)
    mix = own.make_mix({"manners/wave.png": 1, "great_wave": 2}, 0.7, 100)
    assert (
        sl.read("made/photo.png") - restyle_images(own, sl.read("photo.png"), mix)
    ).abs().max() < 0.01
    for words, said in {
        "apply own.safetensors photo.png --alpha 0.5": (
            "alpha and style size are for networks of any style"
        ),
        "apply run/stylizer.safetensors photo.png --style wve.png": "wve.png: no such file",
        "apply run/stylizer.safetensors photo.png --style photos": (
            "photos: a folder, not an image file"
        ),
    }.items():
        assert main(["stylizer", *words.split()]) == 1
        assert said in capsys.readouterr().err


def test_export_writes_the_network_and_tells_its_inputs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/generators/test_export.py reads such files."""
    calls: list[tuple[object, Path]] = []

    def write(network: object, path: Path) -> str:
        calls.append((network, path))
        return "image and mix"

    monkeypatch.setattr(commands, "write_onnx", write)
    assert main(["stylizer", "export", "own.safetensors", "--out", "net.onnx"]) == 0
    assert "image and mix" in capsys.readouterr().out
    ((network, path),) = calls
    assert isinstance(network, FixedStyleNetwork)
    assert network.names == ("wave", "night")
    assert path == Path("net.onnx")


@pytest.mark.slow
def test_export_gives_the_same_picture(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert main(["stylizer", "export", "own.safetensors", "--out", "net.onnx"]) == 0
    assert "mix N×2 (wave, night)" in capsys.readouterr().out
    session, own = (
        runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"]),
        read_fixed_style_network("own.safetensors"),
    )
    assert session.get_modelmeta().custom_metadata_map == {"styles": "wave,night"}
    for count, height, width in ((1, 32, 32), (3, 21, 50)):
        image, mix = (
            torch.rand(count, 3, height, width),
            own.make_mix({"wave": 1, "night": 2}).repeat(count, 1),
        )
        with torch.no_grad():
            expected = own.network(image, mix)
        found = session.run(None, {"image": image.numpy(), "mix": mix.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


REFUSED = {
    "apply own.safetensors photo.png --style nigt": "no style named 'nigt'; did you mean night?",
    "apply own.safetensors photo.png --style night:-1": "0 or more",
    "apply own.safetensors phto.png": "phto.png: no such file; did you mean photo.png?",
    "apply own.safetensors nowhere.mp4": "nowhere.mp4: no such file",
    "apply own.safetensors clip.mp4": "clip.mp4: not a whole video",
    "apply own.safetensors photos --out photos": "would be overwritten",
    "apply paintres photo.png": "no style network named 'paintres'; did you mean painters?",
    "apply photo.png photo.png": "photo.png is neither a torch nor a safetensors file",
    "apply other.safetensors photo.png": "not of a style network",
    "apply own.safetensors speck.png": "too small for a style network",
    "export own.safetensors --out net.pb": "written as .onnx",
    "export other.safetensors --out net.onnx": "not of a style network",
    "train photo.png --folder nowhere": "no folder 'nowhere'",
    "train speck.png --folder photos --weights random": (
        "speck.png is 8×8 pixels at this style size"
    ),
    "train photo.png photos/0.png --folder photos --norm batch --weights random": (
        "room for one style, not 2"
    ),
    "train photo.png --folder photos --batch 3 --devices 2": (
        "batch is 3; it must be a multiple of the 2 processes"
    ),
    "train photo.png --folder photos --accelerator quantum": "can't be used here",
}


@pytest.mark.filterwarnings("ignore:1 of 4 pictures are left out")
@pytest.mark.parametrize("words", REFUSED)
def test_refuses_in_one_line_and_writes_no_picture(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, "other.safetensors")
    images.write(smooth(side=8), "speck.png")
    given = (
        words.split()
        if "--out" in words
        else [*words.split(), "--out", "made.onnx" if words.startswith("export") else "made"]
    )
    assert main(["stylizer", *given]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("sightline: ")
    assert said.err.count("\n") == 1
    assert REFUSED[words] in said.err
    assert not {path.suffix for path in Path("made").rglob("*")} & {".png", ".mp4", ".safetensors"}
    assert not list(Path().glob("*.onnx"))


def test_a_failing_video_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    write_video((smooth(side=32, seed=seed) for seed in range(8)), "short.mp4")
    whole = Path("short.mp4").read_bytes()
    Path("half.mp4").write_bytes(whole[: len(whole) // 2])
    assert main(["stylizer", "apply", "own.safetensors", "half.mp4", "--out", "made"]) == 1
    assert not Path("made").exists() or names("made") == []


def write_transparent(path: str, mode: str = "RGBA", seed: int = 0) -> np.ndarray:
    """A picture of 40×32 whose opacity rises to the right and has a hole; returns the opacity."""
    pixels = np.asarray(convert_tensor_to_pillow(smooth(side=40, seed=seed)[..., :32]))
    alpha = np.tile(np.linspace(30, 255, 32).round().astype(np.uint8), (40, 1))
    alpha[5:17, 3:11] = 0
    picture = Image.fromarray(pixels)
    picture.putalpha(Image.fromarray(alpha))
    Path(path).parent.mkdir(exist_ok=True)
    picture.convert(mode).save(path, lossless=True)
    return alpha


@pytest.mark.parametrize("name", ["cut.png", "cut.webp", "gray.png"])
def test_apply_keeps_transparency(name: str) -> None:
    alpha = write_transparent(name, "LA" if name == "gray.png" else "RGBA")
    assert main(["stylizer", "apply", "own.safetensors", name, "--out", "made"]) == 0
    own = read_fixed_style_network("own.safetensors")
    with torch.no_grad():
        expected = own.network(sl.read(name), own.make_mix("wave"))
    with Image.open(f"made/{Path(name).stem}.png") as made:
        assert made.mode == "RGBA"
        pixels = np.asarray(made)
    assert np.array_equal(pixels[..., 3], alpha)
    color = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1) / 255
    assert (color - expected[0]).abs().max() < 0.01


def test_apply_keeps_transparency_in_folders_and_at_other_sizes() -> None:
    alphas = {seed: write_transparent(f"cut/{seed}.png", seed=seed) for seed in (1, 2)}
    images.write(smooth(side=40)[..., :32], "cut/opaque.png")
    command = ["stylizer", "apply", "own.safetensors", "cut", "--out", "made", "--quiet"]
    assert main(command) == 0
    for seed, alpha in alphas.items():
        with Image.open(f"made/{seed}.png") as made:
            assert np.array_equal(np.asarray(made)[..., 3], alpha)
    with Image.open("made/opaque.png") as made:
        assert made.mode == "RGB"
    assert main([*command[:-3], "--size", "64", "--out", "large"]) == 0
    with Image.open("large/1.png") as made:
        assert (made.size, made.mode) == ((64, 80), "RGBA")
        assert np.asarray(made)[20, 14, 3] == 0
        assert np.asarray(made)[70, 63, 3] > 250


def test_apply_takes_no_bands(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("bands.npy", np.zeros((5, 40, 32), np.uint8))
    assert main(["stylizer", "apply", "own.safetensors", "bands.npy"]) == 1
    assert "bands.npy is (1, 5, 40, 32)" in capsys.readouterr().err
