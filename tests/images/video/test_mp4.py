"""An MP4 has the rate that it was given, and even sides."""

from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from video_files import copy_video, make_frames

from sightline.images.video.reading import read_video, read_video_properties
from sightline.images.video.writing import write_video

RATES = [Fraction(1, 2), Fraction(24000, 1001), Fraction(15), Fraction(30000, 1001), Fraction(60)]


def test_an_mp4_has_its_rate_and_an_odd_edge_is_doubled(tmp_path: Path) -> None:
    odd = make_frames(3, 33, 47)
    write_video(torch.cat(odd), tmp_path / "a.mp4", fps=12)
    frames = list(read_video(tmp_path / "a.mp4"))
    assert frames[0].shape == (1, 3, 34, 48)
    assert (frames[1][..., :33, :47] - odd[1]).abs().mean() < 0.02
    assert (frames[1][..., 33:, :47] - odd[1][..., 32:, :]).abs().mean() < 0.04
    assert (frames[1][..., :33, 47:] - odd[1][..., 46:]).abs().mean() < 0.04
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == 12


def test_the_doubled_edge_is_the_last(tmp_path: Path) -> None:
    frame = torch.zeros(1, 3, 33, 47)
    frame[..., 12:, 20:] = 1
    write_video([frame], tmp_path / "a.mp4")
    (decoded,) = read_video(tmp_path / "a.mp4")
    brightness = decoded[0].mean(0)
    assert brightness[:12].max() < 0.2
    assert brightness[:, :20].max() < 0.2
    assert brightness[12:, 20:].min() > 0.8


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_read_and_kept(rate: Fraction, tmp_path: Path) -> None:
    write_video(make_frames(), tmp_path / "a.mp4", fps=rate)
    assert copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4").frame_rate == rate
    assert read_video_properties(tmp_path / "b.mp4").frame_rate == rate
    assert len(list(read_video(tmp_path / "b.mp4"))) == 5
