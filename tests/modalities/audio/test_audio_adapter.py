import io
import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from torchaudio.compliance import kaldi

from mmssl.modalities.audio.adapter import Audio
from mmssl.modalities.audio.pictures import HIDDEN, Spectrogram, colours, paint
from mmssl.modalities.audio.waves import Erased, Wave, as_float, join, resample

ADAPTER = Audio()
TONE = (20000 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)).astype(np.int16)


def encoded(samples, kind="WAV", subtype="PCM_16", rate=8000):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "CAF", "AU"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_sixteen_bits_stay_integers(kind, channels):
    samples = np.stack([np.roll(TONE, 7 * c) for c in range(channels)], 1)
    wave = ADAPTER.decode(encoded(samples, kind))
    assert wave.rate == 8000 and wave.data.dtype == torch.int16 and wave.seconds == 0.5
    assert np.array_equal(wave.data.numpy(), samples.T)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_24"), ("FLAC", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")]
)
def test_finer_samples_become_floats(kind, subtype):
    samples = (TONE / 32768 * 0.7).astype(np.float32)
    wave = ADAPTER.decode(encoded(samples, kind, subtype))
    assert wave.data.dtype == torch.float32
    np.testing.assert_allclose(wave.data[0], samples, atol=2**-23)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_files(kind, subtype):
    """Decoded, they are the sound that went in, up to the codec's delay and noise."""
    wave = ADAPTER.decode(encoded(TONE / np.float32(32768), kind, subtype))
    assert wave.rate == 8000 and abs(wave.data.shape[1] - 4000) < 2500
    spectrum = torch.fft.rfft(wave.data[0, 500:3500]).abs()
    assert spectrum.argmax() == round(440 * 3000 / 8000)
    assert 0.45 < wave.data[0, 1000:3000].abs().max() < 0.75


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "not a readable recording"),
        (b"RIFF1234WAVEnothing of the kind", "not a readable recording"),
        (encoded(TONE, "FLAC")[:100], "not a readable recording|cut off|no samples"),
        (encoded(TONE[:0]), "holds no samples"),
        (encoded(np.array([0.0, np.nan], np.float32), subtype="FLOAT"), "not finite"),
    ],
)
def test_bad_files_are_value_errors(blob, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ADAPTER.decode(blob)
    (tmp_path / "a.wav").write_bytes(blob)
    with pytest.raises(ValueError, match=message):
        ADAPTER.open(tmp_path / "a.wav")


def test_a_file_that_is_cut_off():
    """The first half of a FLAC file decodes, but is not the recording that its header promises."""
    noise = np.random.default_rng(0).integers(-20000, 20000, 60000, dtype=np.int16)
    blob = encoded(noise, "FLAC")
    with pytest.raises(ValueError, match=r"cut off: [0-9]+ of 60000|not a readable recording"):
        ADAPTER.decode(blob[: len(blob) // 2])


def test_channels_are_mixed_or_kept():
    stereo = Wave(torch.tensor([[100, -300, 5], [300, -100, 6]], dtype=torch.int16), 8000)
    mono = ADAPTER.convert(stereo, 1)
    torch.testing.assert_close(mono.data, torch.tensor([[200.0, -200.0, 5.5]]) / 32768)
    assert ADAPTER.convert(stereo, 2) is stereo
    assert torch.equal(ADAPTER.convert(mono, 3).data, mono.data.repeat(3, 1))
    assert ADAPTER.decode(encoded(np.stack([TONE, TONE], 1)), 1).data.shape == (1, 4000)
    with pytest.raises(ValueError, match=r"data\.channels=3, but a recording has 2 channels.*set data\.channels=2"):
        ADAPTER.convert(stereo, 3)


def test_batches_are_padded_and_remember_lengths():
    waves = [Wave(torch.arange(1, n + 1, dtype=torch.int16)[None], 8000) for n in (3, 5, 1)]
    batch = ADAPTER.collate(waves)
    assert batch.data.dtype == torch.int16 and batch.counts == (3, 5, 1) and len(batch) == 3
    assert batch.data[:, 0].tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5], [1, 0, 0, 0, 0]]
    for made, wave in zip(batch, waves, strict=True):
        assert made.rate == 8000 and torch.equal(made.data, wave.data)
    mixed = ADAPTER.collate([waves[0], Wave(torch.full((1, 2), 0.5), 8000)])
    assert torch.equal(mixed.data, torch.tensor([[[1, 2, 3]], [[16384, 16384, 0]]]) / 32768)
    moved = mixed.to("cpu", torch.float64)
    assert moved.data.dtype == torch.float64 and moved.counts == (3, 2)
    with pytest.raises(ValueError, match=r"recordings of 8000, 16000 Hz; put view/resample"):
        ADAPTER.collate([waves[0], Wave(waves[0].data, 16000)])
    with pytest.raises(ValueError, match=r"recordings of 1 and 2 channels; set data\.channels=1"):
        ADAPTER.collate([waves[0], Wave(torch.zeros(2, 4), 8000)])


def test_what_is_to_be_erased_travels():
    wave = Wave(torch.zeros(1, 4), 8000, (Erased(0.0, 1.0, 0.2, 0.3),))
    batch = join([wave, wave._replace(erased=())])
    assert [made.erased for made in batch] == [wave.erased, ()]
    assert batch.to("cpu").erased == batch.erased and join([wave._replace(erased=())]).erased == ()


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (44100, 16000), (22050, 8000)])
def test_resampling_is_torchaudios(old, new):
    wave = Wave(torch.from_numpy(TONE)[None], old)
    made = resample(wave, new)
    wanted = torchaudio.functional.resample(as_float(wave.data), old, new)
    assert made.rate == new and torch.equal(made.data, wanted)
    assert resample(wave, old) is wave
    # a tone keeps its pitch in hertz
    peak = torch.fft.rfft(made.data[0]).abs().argmax() * new / made.data.shape[1]
    assert abs(float(peak) - 440 * old / 8000) < 5


def test_facts():
    waves = [
        Wave(torch.randn(1, n, generator=torch.Generator().manual_seed(n)) * 0.1, r)
        for n, r in ((9000, 8000), (8000, 16000))
    ]
    facts = ADAPTER.facts(iter(waves))
    values = []
    for wave in waves:
        banks = kaldi.fbank(
            wave.data - wave.data.mean(), htk_compat=True, window_type="hanning", num_mel_bins=128,
            sample_frequency=wave.rate, dither=0.0,
        )  # fmt: skip
        filters, _ = kaldi.get_mel_banks(
            128, 256 if wave.rate == 8000 else 512, wave.rate, 20.0, 0.0, 100.0, -500.0, 1.0
        )
        values.append(banks[:, filters.sum(1) > 0].flatten())
    values = torch.cat(values).double()
    assert facts["mean"] == pytest.approx(float(values.mean()), abs=1e-4)
    assert facts["std"] == pytest.approx(float(values.std(correction=0)), abs=1e-4)
    wanted = {"channels": 1, "rate": [8000, 16000], "seconds": [0.5, 1.125], "counted": 2}
    assert {key: facts[key] for key in wanted} == wanted
    with pytest.raises(ValueError, match=r"\(2 with 1, 1 with 2\); set data\.channels=1"):
        ADAPTER.facts([*waves, Wave(torch.zeros(2, 4000), 8000)])
    with pytest.raises(ValueError, match="no readable recording"):
        ADAPTER.facts([])


def test_baseline_is_mean_deviation_and_segments_of_log_mel():
    wave = Wave(torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)) * 0.1, 8000)
    banks = kaldi.fbank(
        wave.data - wave.data.mean(),
        htk_compat=True,
        window_type="hanning",
        num_mel_bins=64,
        sample_frequency=8000,
        dither=0.0,
    )
    quarters = [part.mean(0) for part in (banks[:24], banks[24:49], banks[49:73], banks[73:])]
    wanted = torch.cat([banks.mean(0), banks.std(0, correction=0), *quarters])
    torch.testing.assert_close(ADAPTER.baseline(wave), wanted, rtol=1e-3, atol=1e-3)
    assert ADAPTER.baseline(Wave(wave.data[:, :50], 8000)).shape == (384,)


def test_the_baseline_compares_at_one_rate():
    fitted = Audio()
    fitted.use({"rate": [8000, 16000], "mean": -5.0, "std": 4.0})
    slow = Wave(torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)) * 0.1, 8000)
    fast = resample(slow, 16000)
    apart = (fitted.baseline(fast) - fitted.baseline(slow)).abs()[:60].mean()
    assert apart < 0.1 < (Audio().baseline(fast) - Audio().baseline(slow)).abs()[:60].mean()


def test_pictures_have_time_to_the_right_and_low_frequencies_below():
    low, high = (torch.sin(2 * math.pi * f * torch.arange(4000) / 8000) * 0.5 for f in (150, 3500))
    picture = ADAPTER.picture(Wave(torch.cat([low, high])[None], 8000)).astype(int).sum(-1)
    rows, columns = picture.shape
    assert rows == 64 and columns == 98
    assert picture[-12:, :40].mean() > picture[:12, :40].mean() + 100
    assert picture[:12, 60:].mean() > picture[-12:, 60:].mean() + 100


def test_restored_spectrograms_are_drawn_alike_and_hidden_places_grey():
    values = torch.linspace(0, 1, 8 * 5).reshape(8, 5)
    shown = torch.ones(8, 5, dtype=torch.bool)
    shown[2, 0] = False
    picture = ADAPTER.picture(Spectrogram(values, shown))
    assert picture.dtype == np.uint8 and picture.shape == (5, 8, 3)
    assert tuple(picture[4, 2]) == HIDDEN and (picture == np.array(HIDDEN)).all(-1).sum() == 1
    assert np.array_equal(picture[0, 7], colours(np.array(1.0))) and np.array_equal(
        picture[4, 0], colours(np.array(0.0))
    )
    assert paint(Spectrogram(values[:2])).shape == (5, 5, 3)  # short ones are continued on white


def test_colours_grow_lighter_all_the_way():
    shades = colours(np.linspace(-0.1, 1.1, 200)).astype(float) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(shades) >= -0.6).all() and shades[0] < 5 and shades[-1] > 240
    assert np.array_equal(colours(np.array([np.nan])), colours(np.array([0.0])))
