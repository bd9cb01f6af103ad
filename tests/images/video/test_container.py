"""Only ordinary files are opened, and only containers; a playlist would open other files."""

import io
from pathlib import Path

import pytest
from video_files import make_frames

import sightline as sl
from sightline.images.video.container import is_animation, open_container, open_video_file
from sightline.images.video.writing import write_video


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"GIF89a" + bytes(20), True),
        (b"GIF87a", True),
        (b"RIFF\x10\x00\x00\x00WEBPVP8X", True),
        (b"RIFF\x10\x00\x00\x00AVI LIST", False),
        (b"GIF", False),
        (b"", False),
    ],
)
def test_animations_are_told_by_their_first_bytes(content: bytes, expected: bool) -> None:
    file = io.BytesIO(content)
    assert is_animation(file) is expected
    assert file.tell() == 0


def test_folders_are_no_video_files(tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match="not a video file"), open_video_file(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), open_video_file(tmp_path / "none.mp4"):
        pass


def test_an_open_file_is_closed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(make_frames(2), path)
    with open_video_file(path) as file, open_container(file) as container:
        assert container.streams.video[0].frames == 2
    assert file.closed


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_video(make_frames(2), tmp_path / "whole.mp4")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n", encoding="utf-8")
    with (
        open_video_file(playlist) as file,
        pytest.raises((OSError, ValueError)),
        open_container(file),
    ):
        pass
