"""Movies come back as they went in, frame by frame; what is no movie is refused in one line; files are whole or absent."""

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


def frames(count: int = 5, height: int = 34, width: int = 48) -> list[Tensor]:
    """Smooth pictures whose brightness grows from frame to frame, so that their order is seen."""
    picture = torch.nn.functional.interpolate(smooth(seed=3), size=(height, width), mode="bilinear")
    return [0.3 * picture + 0.6 * number / count for number in range(count)]


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.02), (".gif", 0.02), (".MP4", 0.02)])
def test_frames_come_back(suffix: str, tolerance: float, tmp_path: Path) -> None:
    video.write_video(iter(frames()), tmp_path / f"a{suffix}", fps=10)
    found = list(video.read_video(tmp_path / f"a{suffix}"))
    assert len(found) == 5
    for one, other in zip(found, frames(), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().mean() < tolerance


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_run_for_ever_at_their_rate(suffix: str, tmp_path: Path) -> None:
    video.write_video(frames(), tmp_path / f"a{suffix}", fps=10)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        for number, expected in enumerate(frames()):
            picture.seek(number)
            picture.load()
            shown = (
                torch.tensor(list(picture.convert("RGB").tobytes()))
                .view(34, 48, 3)
                .permute(2, 0, 1)
                / 255
            )
            assert (shown - expected[0]).abs().mean() < 0.03
            assert picture.info["duration"] == 100


def test_an_mp4_tells_its_rate_and_doubles_an_odd_edge(tmp_path: Path) -> None:
    odd = frames(3, 33, 47)
    video.write_video(torch.cat(odd), tmp_path / "a.mp4", fps=12)
    found = list(video.read_video(tmp_path / "a.mp4"))
    assert found[0].shape == (1, 3, 34, 48)
    assert (found[1][..., :33, :47] - odd[1]).abs().mean() < 0.02
    assert (found[1][..., 33:, :47] - odd[1][..., 32:, :]).abs().mean() < 0.04
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == 12


@pytest.mark.parametrize(
    ("turned", "matrix"), [(1, (0, -1, 1, 0)), (-1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1))]
)
def test_a_turned_camera_is_turned_back(
    turned: int, matrix: tuple[int, ...], tmp_path: Path
) -> None:
    """The track header's matrix holds how a player turns the frames (ISO 14496-12, 8.3.2); players turn clockwise for (0, 1, -1, 0)."""
    video.write_video(frames(), tmp_path / "a.mp4")
    whole = bytearray((tmp_path / "a.mp4").read_bytes())
    at = whole.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    whole[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
    (tmp_path / "a.mp4").write_bytes(whole)
    first = next(video.read_video(tmp_path / "a.mp4"))
    assert (first - frames()[0].rot90(turned, (2, 3))).abs().mean() < 0.02


def test_reading_and_writing_hold_one_frame_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def watched() -> Iterator[Tensor]:
        for number, frame in enumerate(frames()):
            alive.append(number)
            yield frame

    video.write_video(watched(), tmp_path / "a.mp4")
    assert alive == [0, 1, 2, 3, 4]
    reading = video.read_video(tmp_path / "a.mp4")
    assert next(reading).shape == (1, 3, 34, 48)
    reading.close()


@pytest.mark.parametrize(
    ("given", "path", "part"),
    [
        ([], "a.mp4", "at least one frame"),
        (frames(1), "a.avi", r"a.avi: movies are written as .mp4, .gif, .webp, not as '.avi'"),
        (
            [frames()[0], smooth()],
            "a.gif",
            r"frame 1 is \(1, 3, 32, 32\); every frame .* \(3, 34, 48\)",
        ),
        ([frames()[0], frames()[1] + 2], "a.mp4", "frame 1 is"),
        ([torch.cat(frames())], "a.webp", "one image"),
    ],
)
def test_what_is_no_movie_is_not_written(
    given: list[Tensor], path: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(sl.SightlineError, match=part):
        video.write_video(given, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_run_keeps_the_old_movie(tmp_path: Path) -> None:
    video.write_video(frames(), tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()

    def failing() -> Iterator[Tensor]:
        yield frames()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write_video(failing(), tmp_path / "a.mp4")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", before)]


def test_what_has_no_frames_is_told_in_one_line(tmp_path: Path) -> None:
    video.write_video(frames(), tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 20)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    with av.open(tmp_path / "none.mkv", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        container.start_encoding()
    for name, part in (
        ("none.mkv", "a video without frames"),
        ("empty.mp4", "not a whole video"),
        ("text.mp4", "not a whole video"),
        ("list.m3u8", "not a whole video"),
        ("half.mp4", "whole video|broken after"),
        ("sound.mp4", "only sound"),
        ("whol.mp4", "did you mean whole.mp4?"),
        ("", "not a video file"),
    ):
        with pytest.raises(sl.SightlineError, match=part) as error:
            list(video.read_video(tmp_path / name))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith((tmp_path / name).name)


def test_a_result_carries_movies(tmp_path: Path) -> None:
    movie = torch.cat(frames())
    result = Result(
        {"one": smooth()},
        {},
        {"one": "One."},
        movies={"zoom": movie, "run.gif": movie, "still.webp": movie[:1]},
    )
    written = [path.name for path in result.save(tmp_path)]
    assert written == ["one.png", "zoom.mp4", "run.gif", "still.webp", "values.json", "recipe.json"]
    assert (
        len(list(video.read_video(tmp_path / "zoom.mp4")))
        == len(list(video.read_video(tmp_path / "run.gif")))
        == 5
    )
    with pytest.raises(TypeError):
        result.movies["other"] = movie  # type: ignore[index]
