"""Frames are written one by one; what is no movie is refused in one line; files are whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor
from video_files import HEIGHT, WIDTH, make_frames

import sightline as sl
from sightline.images.video.reading import read_video
from sightline.images.video.writing import write_video
from sightline.registry.result import Result


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.02), (".gif", 0.02), (".MP4", 0.02)])
def test_frames_come_back(suffix: str, tolerance: float, tmp_path: Path) -> None:
    write_video(iter(make_frames()), tmp_path / f"a{suffix}", fps=10)
    frames = list(read_video(tmp_path / f"a{suffix}"))
    assert len(frames) == 5
    for frame, expected in zip(frames, make_frames(), strict=True):
        assert frame.shape == expected.shape
        assert (frame - expected).abs().mean() < tolerance


def test_reading_and_writing_hold_one_frame_at_a_time(tmp_path: Path) -> None:
    numbers: list[int] = []

    def yield_frames() -> Iterator[Tensor]:
        for number, frame in enumerate(make_frames()):
            numbers.append(number)
            yield frame

    write_video(yield_frames(), tmp_path / "a.mp4")
    assert numbers == [0, 1, 2, 3, 4]
    reading = read_video(tmp_path / "a.mp4")
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
        write_video(frames, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps: float, tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match=rf"fps is {fps}; it must be above 0"):
        write_video(make_frames(), tmp_path / "a.mp4", fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_run_keeps_the_previous_movie(tmp_path: Path) -> None:
    write_video(make_frames(), tmp_path / "a.mp4")
    previous = (tmp_path / "a.mp4").read_bytes()

    def fail_after_one() -> Iterator[Tensor]:
        yield make_frames()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(fail_after_one(), tmp_path / "a.mp4")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", previous)]


def test_a_result_carries_movies(tmp_path: Path) -> None:
    movie = torch.cat(make_frames())
    movies = {"zoom": movie, "run.gif": movie, "still.webp": movie[:1]}
    result = Result({"one": smooth()}, {}, {"one": "One."}, movies=movies)
    written = [path.name for path in result.save(tmp_path)]
    assert written == ["one.png", "zoom.mp4", "run.gif", "still.webp", "values.json", "recipe.json"]
    for name in ("zoom.mp4", "run.gif"):
        assert len(list(read_video(tmp_path / name))) == 5
    with pytest.raises(TypeError):
        result.movies["other"] = movie  # type: ignore[index]
