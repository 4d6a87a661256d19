"""The sound of a span of frames: that of the same time, of real files, kept or not, drawn alike however it is read."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

import mmssl
from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose
from mmssl.data.derived import Of
from mmssl.data.module import Data
from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.audio.adapter import Audio
from mmssl.modalities.audio.views import Resample, SoundOf
from mmssl.modalities.audio.waves import Wave
from mmssl.modalities.video.adapter import Video
from mmssl.modalities.video.clips import Clip
from mmssl.modalities.video.decoding import open_video
from mmssl.modalities.video.sets import VideoFolder
from mmssl.modalities.video.sounds import OfPictures, Track
from mmssl.modalities.video.spans import Frames, Span, SpanView
from mmssl.modalities.video.views import ClipView
from tests.modalities.video.made import film, pixels, tones, video

SECONDS, RATE = 4, 48000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def pitch(sound, rate):
    """The strongest frequency of a piece of sound in Hz."""
    wave = sound * np.hanning(len(sound))
    return np.abs(np.fft.rfft(wave, 1 << 16)).argmax() * rate / (1 << 16)


def talking(path, seconds=SECONDS, **options):
    return film(path, pixels(25 * seconds), tones(seconds), **options)


def at(seed=0, epoch=0, place=0):
    return Draws.of(seed, torch.tensor([epoch]), torch.tensor([place])).named("view/x/0").each()[0]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("whole", [False, True], ids=["path", "bytes"])
def test_the_sound_of_frames_is_that_of_their_time(tmp_path, kind, whole):
    """Every half second has a pitch of its own; frames 30 to 37 are those of 1.2 to 1.52 seconds."""
    file = talking(tmp_path / f"a.{kind}")
    clip = open_video(file.read_bytes() if whole else file)
    for first, last in ((0, 9), (14, 22), (30, 36), (63, 73), (90, 99)):
        sound, rate = clip.heard(first, last)
        assert (
            rate == RATE and sound.shape == (1, round((last + 1 - first) / 25 * RATE)) and sound.dtype == torch.float32
        )
        wanted = tones(SECONDS)[round(first / 25 * RATE) : round((last + 1) / 25 * RATE)]
        for piece in range(0, len(wanted) - 4800, 4800):  # tenths of a second within one pitch
            mine, own = sound[0, piece : piece + 4800].numpy(), wanted[piece : piece + 4800]
            middle = (first / 25 + (piece + 2400) / RATE) % 0.5
            if 0.07 < middle < 0.43:
                assert pitch(mine, RATE) == pytest.approx(pitch(own, RATE), abs=5), (first, piece)


@pytest.mark.parametrize(("kind", "slack"), [("mp4", 0), ("mkv", 24)])
def test_the_sound_is_in_time_to_the_sample(tmp_path, kind, slack):
    """What the coder adds in front is taken away again. Matroska counts milliseconds: half of one may be lost."""
    noise = np.convolve(np.random.default_rng(0).standard_normal(SECONDS * RATE), np.hanning(24), "same")
    noise = (0.8 * noise / np.abs(noise).max()).astype(np.float32)
    clip = open_video(film(tmp_path / f"a.{kind}", pixels(100), noise))
    for first, last in ((3, 9), (14, 22), (63, 73)):
        sound, begin = clip.heard(first, last)[0][0].numpy(), round(first / 25 * RATE)
        lags = range(-2000, 2001)
        products = [float(sound @ noise[begin + lag : begin + lag + len(sound)]) for lag in lags]
        lag = lags[int(np.argmax(products))]
        assert abs(lag) <= slack, (first, lag)
        wanted = noise[begin + lag : begin + lag + len(sound)]
        assert np.corrcoef(sound, wanted)[0, 1] > 0.99  # what the coder loses


def test_a_span_is_read_the_same_way_each_time(tmp_path):
    file = talking(tmp_path / "a.mp4")
    one, other = open_video(file), open_video(file)
    whole = one.heard(0, 99)[0]
    first = one.heard(40, 60)[0]
    other.heard(3, 5)
    assert torch.equal(first, other.heard(40, 60)[0])
    begin = round(40 / 25 * RATE)
    torch.testing.assert_close(
        first[:, 480:-480], whole[:, begin : begin + first.shape[1]][:, 480:-480], atol=2e-2, rtol=0
    )


def test_frames_that_are_not_evenly_timed(tmp_path):
    """A span's sound follows the times of its frames, not their numbers: here the second half runs at half the rate."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream, track = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=RATE, layout="mono")
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for i, frame in enumerate(pixels(60)):
            shown = av.VideoFrame.from_ndarray(frame)
            shown.pts = i if i < 30 else 30 + 2 * (i - 30)
            out.mux(stream.encode(shown))
        out.mux(stream.encode())
        sound = tones(4)[None]
        for start in range(0, sound.shape[1], 1024):
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1024]), "fltp", "mono")
            piece.sample_rate, piece.pts = RATE, start
            out.mux(track.encode(piece))
        out.mux(track.encode())
    sound, rate = open_video(path).heard(40, 43)  # 30 + 20 = 50 ticks of 1/25 s: 2 to 2.32 s
    assert sound.shape[1] == round(8 / 25 * rate)
    assert pitch(sound[0, 4800:12000].numpy(), rate) == pytest.approx(400 + 200 * 4, abs=5)


def test_several_channels_are_mixed_or_kept(tmp_path):
    left, right = tones(2), np.zeros(2 * RATE, np.float32)
    clip = open_video(film(tmp_path / "a.mp4", pixels(50), np.stack([left, right])))
    span = SpanView(frames=8, stride=2, at=0.5)(clip, at())
    kept, mixed = SoundOf(channels=None)(span, at()), SoundOf()(span, at())
    assert kept.data.shape[0] == 2 and mixed.data.shape[0] == 1 and mixed.rate == RATE
    torch.testing.assert_close(mixed.data, kept.data.mean(0, keepdim=True))
    assert kept.data[0].abs().max() > 0.4 and kept.data[1].abs().max() < 0.01


def test_a_track_that_ends_early(tmp_path):
    """Silence where the track has ended; nothing at all is a bad sample."""
    clip = open_video(film(tmp_path / "a.mp4", pixels(100), tones(1)))
    sound, rate = clip.heard(20, 49)
    heard = round(0.2 * rate)
    assert sound.shape[1] == round(1.2 * rate)
    assert sound[0, :heard].abs().max() > 0.4 and sound[0, heard + 2048 :].abs().max() == 0
    with pytest.raises(BadSample, match=r"nothing from 3\.00 to 3\.20 seconds"):
        clip.heard(75, 79)


def test_a_video_without_a_track(tmp_path):
    clip = open_video(video(tmp_path / "a.mp4"))
    assert clip.sound is None and "sound" not in clip.note()
    with pytest.raises(BadSample, match=r"has no sound.*view/sound.*video/videomae.*data\.source\.sound"):
        clip.heard(0, 3)


def test_the_span_that_a_view_chooses(tmp_path):
    """As `view/clip` with the same draws, and its sound to the end of the frame that would come next."""
    clip = open_video(talking(tmp_path / "a.mp4"))
    for seed in range(8):
        span = SpanView(frames=8, stride=4)(clip, at(seed))
        assert list(span.places) == ClipView(frames=8, stride=4).places(100, 25.0, at(seed))
        assert span.last == span.places[-1] + 4 == span.places[0] + 32
        assert torch.equal(Frames()(span, at()), ClipView(frames=8, stride=4)(clip, at(seed)))
        sound, rate = span.sound()
        assert sound.shape[1] == round(33 / 25 * rate)
    late = SpanView(frames=16, stride=8, at=1.0)(
        clip, at()
    )  # longer than the video: it repeats, and sound ends with it
    assert late.last == 99 and late.places[-1] == late.places[-2] == 96
    with pytest.raises(ValueError, match=r"view/frames decodes what view/span chose \(got Clip\)"):
        Frames()(clip, at())
    with pytest.raises(ValueError, match=r"view/sound hears what another view has chosen \(got Tensor\)"):
        SoundOf()(torch.zeros(2), at())
    with pytest.raises(ValueError, match=r"begin with view/clip.*view/span"):
        Video().collate([span])
    with pytest.raises(ValueError, match="channels is 1"):
        SoundOf(channels=2)


def test_a_sound_made_of_pictures():
    """As loud as the picture is bright, row by row, and at the time it is so."""
    frames = np.zeros((30, 3, 32, 8), np.uint8)
    frames[:15, :, -2:], frames[15:, :, :2] = 255, 255  # first the lowest of 16 rows, then the highest
    clip = Clip.over(frames, {"fps": 30.0}).sounding(OfPictures())
    sound, rate = clip.heard(0, 29)
    assert rate == 16000 and sound.shape == (1, 16000)
    assert pitch(sound[0, 1600:6400].numpy(), rate) == pytest.approx(110, abs=5)
    assert pitch(sound[0, 9600:14400].numpy(), rate) == pytest.approx(3520, abs=5)
    assert torch.equal(clip.heard(0, 29)[0], sound)
    later, _ = clip.heard(20, 29)  # tones go on through time: a part is a part of the whole
    torch.testing.assert_close(later[:, 1000:5000], sound[:, -len(later[0]) + 1000 :][:, :4000], atol=1e-5, rtol=0)
    dark, _ = Clip.over(np.zeros_like(frames), {}).sounding(OfPictures()).heard(0, 29)
    assert dark.abs().max() == 0
    with pytest.raises(ValueError, match="sound/of_pictures: rate has to be"):
        OfPictures(rate=100)


def test_a_videos_own_sound_comes_first(tmp_path):
    assert isinstance(open_video(talking(tmp_path / "a.mp4", 1)).sounding(OfPictures()).sound, Track)


def views(stride=2):
    return {
        "x": [SpanView(frames=8, stride=stride), Frames()],
        "sound": [Of(name="x", after=1), SoundOf(), Resample(rate=16000)],
    }


def data(root, memory_mb=64, **more):
    said = {
        "source": lambda adapter: VideoFolder(adapter, root=str(root), test_share=0.0), "views": views(),
        "view": [ClipView(frames=8, stride=2, at=0.5)], "batch_size": 4, "channels": 3, "workers": 0,
    }  # fmt: skip
    made = Data(Video(), 3, memory_mb=memory_mb, **(said | more))
    made.others = {"sound": Audio()}
    return made


def films(root, count=6):
    for i in range(count):
        talking(root / f"{i}.{('mp4', 'mkv')[i % 2]}", 2)
    return root


def test_one_batch_of_both_is_the_same_kept_or_not(tmp_path):
    """The cache of decoded frames does not touch the sound; nor does the order in which samples are read."""
    root = films(tmp_path / "d")
    kept, plain = data(root), data(root, 0)
    mine, other = (next(iter(d.train_dataloader())) for d in (kept, plain))
    assert kept.dataset("train").in_memory and not plain.dataset("train").in_memory
    assert mine["x"].modality == "video" and mine["sound"].modality == "audio"
    assert torch.equal(mine["x"].data, other["x"].data) and torch.equal(
        mine["sound"].data.data, other["sound"].data.data
    )
    assert mine["sound"].data.rate == 16000 and mine["sound"].data.counts == (round(17 / 25 * 16000),) * 4
    again = kept.batch([(0, int(i)) for i in reversed(mine["id"].tolist())])
    assert torch.equal(again["sound"].data.data.flip(0), mine["sound"].data.data)
    other_epoch = kept.batch([(1, int(i)) for i in mine["id"].tolist()])
    assert not torch.equal(other_epoch["sound"].data.data, mine["sound"].data.data)
    repeated = data(root, repeats=2).batch([(0, 0)])  # each row has its own span, and its own sound
    assert repeated["sound"].data.data.shape[0] == 2
    assert not torch.equal(repeated["sound"].data.data[0], repeated["sound"].data.data[1])


def test_each_row_hears_its_own_frames(tmp_path):
    """The picture tells the frame (it brightens), the pitch the half second; both have to agree in every row."""
    made = data(films(tmp_path / "d")).batch([(epoch, i) for epoch in range(3) for i in range(6)])
    for frames, wave in zip(made["x"].data, made["sound"].data, strict=True):
        grey = float(frames[0].float().median(-1).values.median())
        frame = round((grey - 40) / 4)  # pixels(): 40 + 4 i, below 200 for 40 frames, then again
        seconds = {(f / 25) for f in (frame, frame + 50) if f + 16 < 50} or {frame / 25}
        middle = {s + 0.05 for s in seconds}
        inside = [s for s in middle if 0.06 < s % 0.5 < 0.44]
        if len(inside) == len(middle):
            found = pitch(wave.data[0, :1600].numpy(), wave.rate)
            assert any(found == pytest.approx(400 + 200 * int(s / 0.5), abs=12) for s in inside), (grey, frame, found)


def test_resumed_batches_go_on(tmp_path):
    root = films(tmp_path / "d")
    whole = list(data(root, batch_size=2).train_dataloader())
    later = data(root, batch_size=2)
    later.set_start(0, 1)
    for mine, other in zip(later.train_dataloader(), whole[1:], strict=True):
        assert torch.equal(mine["id"], other["id"]) and torch.equal(mine["sound"].data.data, other["sound"].data.data)


def test_files_without_sound_are_counted_and_named(tmp_path):
    root = films(tmp_path / "d", 9)
    video(root / "silent.mp4", pixels(50))
    held = data(root, bad_share=0.5)
    batch = held.batch([(0, i) for i in range(10)])
    assert batch["bad"] == ["silent.mp4"] and "has no sound" in batch["why"]["silent.mp4"] and len(batch["id"]) == 10
    mute = tmp_path / "mute"
    for i in range(4):
        video(mute / f"{i}.mp4", pixels(50))
    with pytest.raises(
        ValueError, match=r"no view of 4 samples in a row.*\d\.mp4: the video has no sound.*data\.source\.sound"
    ):
        next(iter(data(mute).train_dataloader()))
    given = data(mute, source=lambda a: VideoFolder(a, root=str(mute), test_share=0.0, sound=OfPictures()))
    assert next(iter(given.train_dataloader()))["sound"].data.rate == 16000
    assert given.dataset("train").in_memory and isinstance(given.dataset("train").read(0).sound, OfPictures)


def test_too_many_files_without_sound_are_an_error_with_the_reason(tmp_path):
    root = films(tmp_path / "d", 10)
    for i in range(14):
        video(root / f"silent{i}.mp4", pixels(50))
    held = data(root, batch_size=24, bad_share=0.1)
    with pytest.raises(
        ValueError, match=r"data\.bad_share=0\.1: .*silent.*The reason for silent\d+\.mp4: the video has no sound"
    ):
        next(iter(held.train_dataloader()))


def test_content_without_a_file_is_said_to_be_lost():
    note = {"fps": 25.0, "sound": Track(b"content").note()}
    with pytest.raises(BadSample, match=r"shards.*data\.memory_mb=0"):
        Clip.over(np.zeros((4, 3, 2, 2), np.uint8), note).heard(0, 1)


def test_the_view_begins_after_some_operations():
    with pytest.raises(ValueError, match="after counts operations of view 'x', at least 1"):
        Of(name="x", after=0)
    with pytest.raises(ValueError, match=r"views\.b\[0\]: view/of with after=3, but view 'a' has 2 operations"):
        data("nowhere", views={"a": views()["x"], "b": [Of(name="a", after=3)]})


def tree(*said):
    found = compose("multimodal/hicmae", ["data=videos", "data.root=NOWHERE", *said])
    check(found)
    return found


def test_parts_of_a_stream_belong_to_its_modality():
    assert set(build.others(tree())) == {"sound"} and build.others(tree())["sound"].name == "audio"
    for said, message in (
        (
            "streams.sound.modality=audoi",
            r"streams\.sound\.modality: there is no modality 'audoi'; did you mean 'audio'",
        ),
        (
            "streams.sound.modality=image",
            r"streams\.sound\.tokenizer: tokenizer/spectrogram is made for modality 'audio'",
        ),
        (
            "masker._target_=masker/bandwidths",
            "is made for modality 'graph', and this run is of modality 'video' and 'audio'",
        ),
        ("view=[{_target_: view/gain}]", r"view\[0\]: view/gain is made for modality 'audio'.*'video'"),
    ):
        with pytest.raises(ConfigError, match=message):
            tree(said)


def test_the_recipe_reads_files(tmp_path):
    """From a folder of films to a loss, as the command line does."""
    said = ["data=videos", f"data.root={films(tmp_path / 'd')}", "data.batch_size=4", "data.size=32", "encoder.depth=3",
            "encoder.dim=32", "streams.sound.encoder.dim=32", "streams.sound.encoder.depth=3"]  # fmt: skip
    module, given = mmssl.build("multimodal/hicmae", said)
    batch = given.batch([(0, i) for i in range(4)])
    assert isinstance(next(iter(batch["sound"].data)), Wave) and torch.isfinite(module.training_step(batch))
    assert isinstance(given.views["video"][0](given.dataset("train").read(0), at()), Span)
