"""Movies come back frame by frame; what is no movie is refused in one line."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import copy_video, make_frames, write_source

import sightline as sl
from sightline.images.video.properties import VideoProperties
from sightline.images.video.reading import is_animation_file, read_video, read_video_properties
from sightline.images.video.writing import write_video


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
    write_video(make_frames(), path)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content)
    first = next(read_video(path))
    assert (first - make_frames()[0].rot90(quarter_turns, (2, 3))).abs().mean() < 0.02


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
    write_video(make_frames(), tmp_path / "whole.mp4")
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
            list(read_video(tmp_path / name))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith((tmp_path / name).name)


@pytest.mark.parametrize("read", [lambda path: list(read_video(path)), read_video_properties])
@pytest.mark.parametrize(
    "damage", [lambda ts: ts.replace(b"\x10\xe1\x00", b"\x10\xff\xff"), lambda ts: ts[:188]]
)
def test_a_transport_stream_without_its_tables_is_one_line(
    damage: Callable[[bytes], bytes], read: Callable[[Path], object], tmp_path: Path
) -> None:
    write_source(tmp_path / "a.ts", [Fraction(number, 25) for number in range(4)])
    content = (tmp_path / "a.ts").read_bytes()
    assert damage(content) != content
    (tmp_path / "a.ts").write_bytes(damage(content))
    with pytest.raises(sl.SightlineError, match=r"^a\.ts: [^\n]+$"):
        read(tmp_path / "a.ts")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001)])
def test_the_rate_of_any_container(suffix: str, rate: Fraction, tmp_path: Path) -> None:
    with av.open(tmp_path / f"a{suffix}", "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            gray = np.full((48, 64, 3), 9 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    properties = read_video_properties(tmp_path / f"a{suffix}")
    assert properties == VideoProperties(rate)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_a_variable_rate_the_average_is_kept(suffix: str, tmp_path: Path) -> None:
    """Fifteen frames in the first second, then five frames in two seconds."""
    fast = [Fraction(number, 15) for number in range(15)]
    slow = [1 + Fraction(2 * number, 5) for number in range(6)]
    write_source(tmp_path / f"a{suffix}", [*fast, *slow])
    properties = copy_video(tmp_path / f"a{suffix}", tmp_path / "b.mp4")
    assert float(properties.frame_rate) == pytest.approx(20 / 3, rel=0.06)
    with av.open(tmp_path / "b.mp4") as container:
        stream = container.streams.video[0]
        assert stream.frames == 21
        assert float(stream.duration * stream.time_base) == pytest.approx(3.1, abs=0.2)


def test_an_animation_has_more_than_one_frame(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp"):
        write_video(make_frames(), tmp_path / f"a{suffix}")
        write_video(make_frames(1), tmp_path / f"b{suffix}")
        assert is_animation_file(tmp_path / f"a{suffix}")
        assert not is_animation_file(tmp_path / f"b{suffix}")
    write_video(make_frames(), tmp_path / "a.mp4")
    assert not is_animation_file(tmp_path / "a.mp4")
    assert not is_animation_file(tmp_path / "none.gif")


@pytest.mark.parametrize(
    ("suffix", "codec_names"),
    [(".mp4", [b"mp4v", b"esds"]), (".avi", [b"FMP4", b"fmp4"]), (".mkv", [b"V_MPEG4/ISO/ASP"])],
)
@pytest.mark.parametrize("read", [lambda path: list(read_video(path)), read_video_properties])
def test_a_codec_that_nobody_knows_is_one_line(
    suffix: str, codec_names: list[bytes], read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / f"odd{suffix}"
    write_source(path, [Fraction(number, 25) for number in range(4)])
    content = path.read_bytes()
    for name in codec_names:
        content = content.replace(name, b"ZQ9X".ljust(len(name), b"x"))
    path.write_bytes(content)
    try:
        read(path)  # how it is shown may be read without its pictures
    except sl.SightlineError as error:
        message = str(error)
        assert message.startswith(f"odd{suffix}: ")
        assert "\n" not in message
    else:
        assert read is read_video_properties
