import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mmssl.data.source import BadSample
from mmssl.modalities.video import decoding
from mmssl.modalities.video.decoding import open_video
from tests.modalities.video.made import decoded, pixels, video

KINDS = [
    ("a.mp4", "libx264", {"bf": "2"}),
    ("a.mkv", "libx264", {"bf": "2", "g": "100"}),
    ("a.avi", "mpeg4", {}),
    ("b.avi", "libx264", {"bf": "2"}),  # reordered frames in a container that has no presentation times
    ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),  # the header has no number of frames
    ("b.webm", "libvpx-vp9", {}),
    ("a.mov", "mjpeg", {}),
    ("a.mpg", "mpeg2video", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[kind[0] for kind in KINDS])
def test_any_frame_is_the_one_that_decoding_from_the_start_gives(tmp_path, name, codec, options):
    path = video(tmp_path / name, codec=codec, **options)
    wanted, clip = decoded(path), open_video(path)
    assert clip.count == len(wanted) == 40 and clip.fps == 25
    assert torch.equal(clip.whole(), wanted)
    rng = np.random.default_rng(0)
    for size in (1, 3, 8):
        for _ in range(4):
            places = rng.integers(0, 40, size).tolist()  # unordered, some several times
            assert torch.equal(clip.frames(places), wanted[places])
    blob = path.read_bytes()
    assert torch.equal(open_video(blob).frames([33, 5]), wanted[[33, 5]])


def test_frames_of_irregular_times(tmp_path):
    """A rate says nothing about the place of a frame here."""
    path = tmp_path / "vfr.mp4"
    times = np.cumsum(np.random.default_rng(0).integers(1, 20, 30))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=100)
        stream.width, stream.height, stream.pix_fmt, stream.options = 48, 32, "yuv420p", {"g": "6", "bf": "2"}
        for time, frame in zip(times, pixels(30), strict=True):
            made = av.VideoFrame.from_ndarray(frame)
            made.pts = int(time)
            out.mux(stream.encode(made))
        out.mux(stream.encode())
    wanted, clip = decoded(path), open_video(path)
    assert clip.count == 30 and torch.equal(clip.frames([7, 29, 13, 0]), wanted[[7, 29, 13, 0]])


def test_what_lies_between_is_not_decoded(tmp_path, monkeypatch):
    path = video(tmp_path / "a.mp4", bf="0", sc_threshold="0")
    clip = open_video(path)
    seen = []
    show = decoding._show

    def counted(container, *rest):
        class Container:
            seek = container.seek

            @staticmethod
            def decode(stream):
                for frame in container.decode(stream):
                    seen.append(frame.pts)
                    yield frame

        return show(Container, *rest)

    monkeypatch.setattr(decoding, "_show", counted)
    clip.frames([2, 34])  # keyframes are 0, 8, 16, 24, 32
    assert len(seen) == 3 + 3


def test_frames_are_made_smaller_as_they_are_decoded(tmp_path):
    path = video(tmp_path / "a.mp4", pixels(6, 64, 100))
    small = open_video(path, 32).whole()
    assert small.shape == (6, 3, 32, 50)
    reference = F.resize(decoded(path), [32], antialias=True)
    assert (small.float() - reference.float()).abs().mean() < 3  # another resampling, the same picture
    assert torch.equal(open_video(path, 64).whole(), decoded(path))


def test_what_is_no_video_is_a_value_error(tmp_path):
    cases = {"empty.mp4": b"", "text.mp4": b"this is no video" * 40}
    whole = video(tmp_path / "whole.mp4").read_bytes()
    cases["head.mp4"] = whole[:200]
    for name, blob in cases.items():
        (tmp_path / name).write_bytes(blob)
        for file in (tmp_path / name, blob):
            with pytest.raises(ValueError, match="not a readable video"):
                open_video(file)
    with pytest.raises(ValueError, match="not a readable video"):
        open_video(tmp_path / "absent.mp4")


def test_sound_alone_and_no_frames(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="no video stream"):
        open_video(tmp_path / "sound.mkv")
    with av.open(str(tmp_path / "none.mkv"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        out.start_encoding()
    with pytest.raises(ValueError, match=r"holds no frames|not a readable video"):
        open_video(tmp_path / "none.mkv")


def test_a_damaged_middle_is_a_bad_sample_and_the_rest_is_not(tmp_path):
    path = video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8))
    wanted, blob = decoded(path), bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size, packet.pts) for packet in packets]
        order = sorted(pts for _, _, pts in places)
    pos, size, pts = next(
        place for place, packet in zip(places, packets, strict=True) if packet.is_keyframe and place[2]
    )
    blob[pos : pos + size] = bytes(size)
    path.write_bytes(blob)
    clip, key = open_video(path), order.index(pts)
    assert clip.count == 40
    assert torch.equal(clip.frames([0, 1]), wanted[:2])
    with pytest.raises(BadSample, match=r"cannot be decoded|damaged"):
        clip.frames([key, key + 1])


def test_a_file_cut_off_behind_its_header(tmp_path):
    path = video(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8))
    blob = path.read_bytes()
    path.write_bytes(blob[: len(blob) * 2 // 3])
    clip = open_video(path)
    assert 10 < clip.count < 40  # only what is really there
    assert clip.frames(range(clip.count - 3)).shape == (clip.count - 3, 3, 32, 48)
