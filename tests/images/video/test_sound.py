"""Sound is copied packet by packet, in time with its pictures, or named in a warning."""

import warnings
from fractions import Fraction
from pathlib import Path

import av
import pytest
from video_files import copy_video, write_source

from sightline.images.video.reading import read_video


def read_sound(path: Path) -> list[list[bytes]]:
    """The compressed packets of each audio track."""
    with av.open(path) as container:
        packets: dict[int, list[bytes]] = {stream.index: [] for stream in container.streams.audio}
        for packet in container.demux(*container.streams.audio) if packets else ():
            if packet.size:
                packets[packet.stream.index].append(bytes(packet))
        return list(packets.values())


def start_of_sound(path: Path) -> float:
    """How many seconds the first packet of sound is after the first of pictures."""
    starts: dict[str, float] = {}
    with av.open(path) as container:
        for packet in container.demux():
            if packet.pts is not None:
                starts.setdefault(packet.stream.type, float(packet.pts * packet.time_base))
    return starts["audio"] - starts["video"]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "aac"), (".mkv", "aac"), (".ts", "aac"), (".mkv", "libopus"), (".avi", "libmp3lame")],
)
def test_sound_is_copied_without_loss(suffix: str, codec: str, tmp_path: Path) -> None:
    timestamps = [Fraction(number, 25) for number in range(25)]
    source = tmp_path / f"a{suffix}"
    write_source(source, timestamps, codec=codec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy_video(source, tmp_path / "b.mp4").has_sound
    (copied,) = read_sound(tmp_path / "b.mp4")
    (original,) = read_sound(source)
    if suffix == ".ts":  # each packet has a header of its own there (ADTS, 7 bytes)
        original = [packet[7:] for packet in original]
    assert copied == original
    assert abs(start_of_sound(tmp_path / "b.mp4") - start_of_sound(source)) < 0.002


def test_all_tracks_are_copied(tmp_path: Path) -> None:
    timestamps = [Fraction(number, 25) for number in range(10)]
    write_source(tmp_path / "a.mkv", timestamps, codec="aac", track_count=2)
    copy_video(tmp_path / "a.mkv", tmp_path / "b.mp4")
    assert read_sound(tmp_path / "b.mp4") == read_sound(tmp_path / "a.mkv")
    assert len(read_sound(tmp_path / "b.mp4")) == 2


def test_sound_of_an_unknown_codec_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    write_source(source, [Fraction(number, 25) for number in range(10)], codec="aac")
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_ZQ9"))
    with pytest.warns(UserWarning, match="can't hold an unknown codec"):
        copy_video(source, tmp_path / "b.mp4")
    assert read_sound(tmp_path / "b.mp4") == []


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "adpcm_ms"), (".avi", "adpcm_ima_wav")])
def test_sound_that_an_mp4_cannot_hold_is_named_in_one_line(
    suffix: str, codec: str, tmp_path: Path
) -> None:
    timestamps = [Fraction(number, 25) for number in range(10)]
    write_source(tmp_path / f"a{suffix}", timestamps, codec=codec)
    with pytest.warns(UserWarning, match=codec) as caught:
        copy_video(tmp_path / f"a{suffix}", tmp_path / "b.mp4")
    messages = [str(warning.message) for warning in caught]
    assert messages == [f"a{suffix}: the sound could not be kept (an MP4 can't hold {codec})"]
    assert read_sound(tmp_path / "b.mp4") == []
    assert len(list(read_video(tmp_path / "b.mp4"))) == 10
