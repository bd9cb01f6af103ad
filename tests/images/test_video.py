"""Movies come back frame by frame; what is no movie is refused in one line; files are whole."""

import struct
import warnings
from collections.abc import Iterator
from fractions import Fraction
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
from sightline.images.decode.pixels import convert_tensor_to_pillow
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


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps: float, tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match=rf"fps is {fps}; it must be above 0"):
        video.write_video(make_frames(), tmp_path / "a.mp4", fps=fps)
    assert list(tmp_path.iterdir()) == []


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


# ── rate and sound ──

RATES = [Fraction(1, 2), Fraction(24000, 1001), Fraction(15), Fraction(30000, 1001), Fraction(60)]


def write_source(
    path: Path,
    timestamps: list[Fraction],
    rate: Fraction = Fraction(25),
    codec: str = "",
    track_count: int = 1,
) -> None:
    """A video of gray frames at given seconds, with tracks of a sawtooth of one second."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1200)
        tracks = [
            container.add_stream(codec, rate=16000, layout="mono")
            for _ in range(track_count if codec else 0)
        ]
        for number, timestamp in enumerate(timestamps):
            gray = np.full((48, 64, 3), 9 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24")
            frame.time_base = Fraction(1, 1200)
            frame.pts = round(timestamp * 1200)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for track in tracks:
            wave = (np.arange(16000) % 100 * 300 - 15000).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            sound.sample_rate = 16000
            resampler = av.AudioResampler(
                track.codec_context.format, "mono", 16000, track.codec_context.frame_size or None
            )
            for part in [*resampler.resample(sound), *resampler.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode())


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


def copy_video(source: Path, target: Path) -> video.VideoProperties:
    properties = video.read_video_properties(source)
    frames = (frame.flip(3) for frame in video.read_video(source))
    video.write_video(frames, target, properties=properties, sound_from=source)
    return properties


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_read_and_kept(rate: Fraction, tmp_path: Path) -> None:
    video.write_video(make_frames(), tmp_path / "a.mp4", fps=rate)
    assert copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4").frame_rate == rate
    assert video.read_video_properties(tmp_path / "b.mp4").frame_rate == rate
    assert len(list(video.read_video(tmp_path / "b.mp4"))) == 5


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
    properties = video.read_video_properties(tmp_path / f"a{suffix}")
    assert properties == video.VideoProperties(rate)


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
    assert len(list(video.read_video(tmp_path / "b.mp4"))) == 10


def test_sound_does_not_fit_another_rate(tmp_path: Path) -> None:
    properties = video.VideoProperties(Fraction(24000, 1001), has_sound=True)
    with pytest.warns(UserWarning, match=r"a\.mp4: the sound could not be kept"):
        changed = video.set_frame_rate(properties, 12.5, "a.mp4")
    assert changed == video.VideoProperties(Fraction(25, 2))
    same = video.set_frame_rate(properties, 23.976, "a.mp4")
    assert same == properties


# ── animations ──


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
        properties = video.read_video_properties(path)
        assert properties == video.VideoProperties(
            Fraction(5000, 680), tuple(durations), loop_count=loop
        )
        with Image.open(path) as opened:
            assert (opened.n_frames, opened.info["loop"]) == (5, loop)
    frames = list(video.read_video(source))
    for frame, expected in zip(frames, make_frames(), strict=True):
        assert (frame - expected).abs().mean() < 0.02


def test_a_gif_that_is_shown_once_stays_so(tmp_path: Path) -> None:
    pictures = [convert_tensor_to_pillow(frame) for frame in make_frames()]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=70)
    assert copy_video(tmp_path / "a.gif", tmp_path / "b.gif").loop_count is None
    assert b"NETSCAPE" not in (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_rate_that_hundredths_cannot_hold_is_kept_on_average(suffix: str, tmp_path: Path) -> None:
    video.write_video(make_frames(9), tmp_path / f"a{suffix}", fps=30)
    durations = video.read_video_properties(tmp_path / f"a{suffix}").durations
    assert sum(durations) == 300
    assert set(durations) == {30, 40}


def test_an_animation_has_more_than_one_frame(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp"):
        video.write_video(make_frames(), tmp_path / f"a{suffix}")
        video.write_video(make_frames(1), tmp_path / f"b{suffix}")
        assert video.is_animation_file(tmp_path / f"a{suffix}")
        assert not video.is_animation_file(tmp_path / f"b{suffix}")
    video.write_video(make_frames(), tmp_path / "a.mp4")
    assert not video.is_animation_file(tmp_path / "a.mp4")
    assert not video.is_animation_file(tmp_path / "none.gif")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("size", [(34, 48), (33, 47)])
def test_equal_frames_stay_frames(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    first, second = make_frames(2, *size)
    properties = video.VideoProperties(Fraction(10), (40, 90, 60, 50), loop_count=3)
    frames = [first, first, second, second]
    video.write_video(frames, tmp_path / f"a{suffix}", properties=properties)
    written = video.read_video_properties(tmp_path / f"a{suffix}")
    assert (written.durations, written.loop_count) == ((40, 90, 60, 50), 3)
    for frame, expected in zip(video.read_video(tmp_path / f"a{suffix}"), frames, strict=True):
        assert (frame - expected).abs().mean() < 0.02
