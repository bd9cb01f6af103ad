"""A GIF or WebP keeps its frames, their durations and how often it repeats."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from video_files import HEIGHT, WIDTH, copy_video, make_frames

import sightline as sl
from sightline.images.decode.pixels import convert_tensor_to_pillow
from sightline.images.video.properties import VideoProperties
from sightline.images.video.reading import read_video, read_video_properties
from sightline.images.video.writing import write_video


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_repeat_for_ever_at_their_rate(suffix: str, tmp_path: Path) -> None:
    write_video(make_frames(), tmp_path / f"a{suffix}", fps=10)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        for number, expected in enumerate(make_frames()):
            picture.seek(number)
            picture.load()
            pixels = torch.tensor(list(picture.convert("RGB").tobytes())).view(HEIGHT, WIDTH, 3)
            assert (pixels.permute(2, 0, 1) / 255 - expected[0]).abs().mean() < 0.03
            assert picture.info["duration"] == 100


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("loop", [0, 1, 4])
def test_animations_keep_durations_and_loop_count(suffix: str, loop: int, tmp_path: Path) -> None:
    pictures = [convert_tensor_to_pillow(frame) for frame in make_frames()]
    durations = [50, 120, 30, 80, 400]
    source = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(
        source, save_all=True, append_images=pictures[1:], duration=durations, loop=loop, **options
    )
    copy_video(source, tmp_path / f"b{suffix}")
    for path in (source, tmp_path / f"b{suffix}"):
        properties = read_video_properties(path)
        assert properties == VideoProperties(Fraction(5000, 680), tuple(durations), loop_count=loop)
        with Image.open(path) as opened:
            assert (opened.n_frames, opened.info["loop"]) == (5, loop)
    frames = list(read_video(source))
    for frame, expected in zip(frames, make_frames(), strict=True):
        assert (frame - expected).abs().mean() < 0.02


def test_a_gif_that_is_shown_once_stays_so(tmp_path: Path) -> None:
    pictures = [convert_tensor_to_pillow(frame) for frame in make_frames()]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=70)
    assert copy_video(tmp_path / "a.gif", tmp_path / "b.gif").loop_count is None
    assert b"NETSCAPE" not in (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_rate_that_hundredths_cannot_hold_is_kept_on_average(suffix: str, tmp_path: Path) -> None:
    write_video(make_frames(9), tmp_path / f"a{suffix}", fps=30)
    durations = read_video_properties(tmp_path / f"a{suffix}").durations
    assert sum(durations) == 300
    assert set(durations) == {30, 40}


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("size", [(34, 48), (33, 47)])
def test_equal_frames_stay_frames(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    first, second = make_frames(2, *size)
    properties = VideoProperties(Fraction(10), (40, 90, 60, 50), loop_count=3)
    frames = [first, first, second, second]
    write_video(frames, tmp_path / f"a{suffix}", properties=properties)
    written = read_video_properties(tmp_path / f"a{suffix}")
    assert (written.durations, written.loop_count) == ((40, 90, 60, 50), 3)
    for frame, expected in zip(read_video(tmp_path / f"a{suffix}"), frames, strict=True):
        assert (frame - expected).abs().mean() < 0.02


def test_a_gif_that_ends_early_says_so_after_its_whole_frames(tmp_path: Path) -> None:
    write_video(make_frames(), tmp_path / "whole.gif")
    content = (tmp_path / "whole.gif").read_bytes()
    third = [index for index in range(len(content)) if content[index:].startswith(b"!\xf9\x04")][3]
    cut = tmp_path / "cut.gif"
    cut.write_bytes(content[:third])
    frames: list[torch.Tensor] = []
    with pytest.raises(sl.SightlineError, match=r"^cut.gif: broken after 3 frames$"):
        frames.extend(read_video(cut))
    assert len(list(read_video(tmp_path / "whole.gif"))) == 5
    cut.write_bytes(content + b"what some programs append")
    assert len(list(read_video(cut))) == 5
