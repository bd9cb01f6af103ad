"""Movies come back frame by frame; what is no movie is refused in one line; files are whole."""

import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image
from torch import Tensor

import sightline as sl
from sightline.images import video
from sightline.registry.result import Result

HEIGHT, WIDTH = 34, 48


def make_frames(count: int = 5, height: int = HEIGHT, width: int = WIDTH) -> list[Tensor]:
    """Smooth pictures that grow brighter from frame to frame, so that their order is seen."""
    picture = torch.nn.functional.interpolate(smooth(seed=3), size=(height, width), mode="bilinear")
    return [0.3 * picture + 0.6 * number / count for number in range(count)]


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.02), (".gif", 0.02), (".MP4", 0.02)])
def test_frames_come_back(suffix: str, tolerance: float, tmp_path: Path) -> None:
    video.write_video(iter(make_frames()), tmp_path / f"a{suffix}", fps=10)
    frames = list(video.read_video(tmp_path / f"a{suffix}"))
    assert len(frames) == 5
    for frame, expected in zip(frames, make_frames(), strict=True):
        assert frame.shape == expected.shape
        assert (frame - expected).abs().mean() < tolerance


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_repeat_for_ever_at_their_rate(suffix: str, tmp_path: Path) -> None:
    video.write_video(make_frames(), tmp_path / f"a{suffix}", fps=10)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        for number, expected in enumerate(make_frames()):
            picture.seek(number)
            picture.load()
            pixels = torch.tensor(list(picture.convert("RGB").tobytes())).view(HEIGHT, WIDTH, 3)
            assert (pixels.permute(2, 0, 1) / 255 - expected[0]).abs().mean() < 0.03
            assert picture.info["duration"] == 100


def test_an_mp4_has_its_rate_and_an_odd_edge_is_doubled(tmp_path: Path) -> None:
    odd = make_frames(3, 33, 47)
    video.write_video(torch.cat(odd), tmp_path / "a.mp4", fps=12)
    frames = list(video.read_video(tmp_path / "a.mp4"))
    assert frames[0].shape == (1, 3, 34, 48)
    assert (frames[1][..., :33, :47] - odd[1]).abs().mean() < 0.02
    assert (frames[1][..., 33:, :47] - odd[1][..., 32:, :]).abs().mean() < 0.04
    assert (frames[1][..., :33, 47:] - odd[1][..., 46:]).abs().mean() < 0.04
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == 12


def test_the_doubled_edge_is_the_last(tmp_path: Path) -> None:
    frame = torch.zeros(1, 3, 33, 47)
    frame[..., 12:, 20:] = 1
    video.write_video([frame], tmp_path / "a.mp4")
    (decoded,) = video.read_video(tmp_path / "a.mp4")
    brightness = decoded[0].mean(0)
    assert brightness[:12].max() < 0.2
    assert brightness[:, :20].max() < 0.2
    assert brightness[12:, 20:].min() > 0.8


@pytest.mark.parametrize(
    ("quarter_turns", "matrix"), [(1, (0, -1, 1, 0)), (-1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1))]
)
def test_a_turned_camera_is_turned_back(
    quarter_turns: int, matrix: tuple[int, ...], tmp_path: Path
) -> None:
    """The matrix of the track header holds how a player turns the frames (ISO 14496-12, 8.3.2).

    Players turn clockwise for (0, 1, -1, 0).
    """
    path = tmp_path / "a.mp4"
    video.write_video(make_frames(), path)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content)
    first = next(video.read_video(path))
    assert (first - make_frames()[0].rot90(quarter_turns, (2, 3))).abs().mean() < 0.02


def test_reading_and_writing_hold_one_frame_at_a_time(tmp_path: Path) -> None:
    numbers: list[int] = []

    def yield_frames() -> Iterator[Tensor]:
        for number, frame in enumerate(make_frames()):
            numbers.append(number)
            yield frame

    video.write_video(yield_frames(), tmp_path / "a.mp4")
    assert numbers == [0, 1, 2, 3, 4]
    reading = video.read_video(tmp_path / "a.mp4")
    assert next(reading).shape == (1, 3, HEIGHT, WIDTH)
    reading.close()


@pytest.mark.parametrize(
    ("frames", "path", "message"),
    [
        ([], "a.mp4", "at least one frame"),
        (make_frames(1), "a.avi", r"a.avi: movies are written as .mp4, .gif, .webp, not as '.avi'"),
        (
            [make_frames()[0], smooth()],
            "a.gif",
            r"frame 1 is \(1, 3, 32, 32\); every frame .* \(3, 34, 48\)",
        ),
        ([make_frames()[0], make_frames()[1] + 2], "a.mp4", "frame 1 is"),
        ([torch.cat(make_frames())], "a.webp", "one image"),
    ],
)
def test_what_is_no_movie_is_not_written(
    frames: list[Tensor], path: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        video.write_video(frames, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match="fps is 0; it must be at least 1"):
        video.write_video(make_frames(), tmp_path / "a.mp4", fps=0)
    video.write_video(make_frames(), tmp_path / "a.mp4", fps=1)


def test_a_broken_run_keeps_the_previous_movie(tmp_path: Path) -> None:
    video.write_video(make_frames(), tmp_path / "a.mp4")
    previous = (tmp_path / "a.mp4").read_bytes()

    def fail_after_one() -> Iterator[Tensor]:
        yield make_frames()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write_video(fail_after_one(), tmp_path / "a.mp4")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", previous)]


def write_sound(path: Path) -> None:
    """A file with a sound track and no pictures."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])


def write_empty_container(path: Path) -> None:
    """A file with a video track and no frames."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = 64
        stream.height = 48
        container.start_encoding()


def test_what_has_no_frames_is_refused_in_one_line(tmp_path: Path) -> None:
    video.write_video(make_frames(), tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 20, encoding="utf-8")
    playlist = "#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist, encoding="utf-8")
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    write_sound(tmp_path / "sound.mp4")
    write_empty_container(tmp_path / "none.mkv")
    for name, message in (
        ("none.mkv", "a video without frames"),
        ("empty.mp4", "not a whole video"),
        ("text.mp4", "not a whole video"),
        ("list.m3u8", "not a whole video"),
        ("half.mp4", "whole video|broken after"),
        ("sound.mp4", "only sound"),
        ("whol.mp4", "did you mean whole.mp4?"),
        ("", "not a video file"),
    ):
        with pytest.raises(sl.SightlineError, match=message) as error:
            list(video.read_video(tmp_path / name))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith((tmp_path / name).name)


def test_a_result_carries_movies(tmp_path: Path) -> None:
    movie = torch.cat(make_frames())
    movies = {"zoom": movie, "run.gif": movie, "still.webp": movie[:1]}
    result = Result({"one": smooth()}, {}, {"one": "One."}, movies=movies)
    written = [path.name for path in result.save(tmp_path)]
    assert written == ["one.png", "zoom.mp4", "run.gif", "still.webp", "values.json", "recipe.json"]
    for name in ("zoom.mp4", "run.gif"):
        assert len(list(video.read_video(tmp_path / name))) == 5
    with pytest.raises(TypeError):
        result.movies["other"] = movie  # type: ignore[index]
