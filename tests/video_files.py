"""Frames and video files that the tests of videos share."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from helpers import smooth
from torch import Tensor

from sightline.images.video.properties import VideoProperties
from sightline.images.video.reading import read_video, read_video_properties
from sightline.images.video.writing import write_video

HEIGHT = 34
WIDTH = 48


def make_frames(count: int = 5, height: int = HEIGHT, width: int = WIDTH) -> list[Tensor]:
    """Smooth pictures that grow brighter from frame to frame, so that their order is seen."""
    picture = torch.nn.functional.interpolate(smooth(seed=3), size=(height, width), mode="bilinear")
    return [0.3 * picture + 0.6 * number / count for number in range(count)]


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


def copy_video(source: Path, target: Path) -> VideoProperties:
    properties = read_video_properties(source)
    frames = (frame.flip(3) for frame in read_video(source))
    write_video(frames, target, properties=properties, sound_from=source)
    return properties
