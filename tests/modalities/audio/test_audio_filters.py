"""Filter banks against torchaudio's own, sample by sample, and against a plain computation from the definition."""

import math

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from mmssl.modalities.audio.filters import FilterBanks
from mmssl.modalities.audio.tokenizer import SpectrogramTokenizer
from mmssl.modalities.audio.waves import Wave, join
from mmssl.types import View

FACTS = {"channels": 1, "mean": -5.0, "std": 4.0}


def sound(n, seed=0, rate=16000, channels=1):
    """Tones with noise and an offset, so that every step of the recipe matters."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(n) / rate
    tone = sum(a * torch.sin(2 * math.pi * f * time + f) for a, f in ((0.3, 220), (0.2, 1330), (0.1, 3100)))
    return (tone + 0.05 * torch.randn(channels, n, generator=generator) + 0.02).clamp(-1, 1)


def reference(wave, rate, bins, flavour):
    """What the two papers call, (frames, bins)."""
    common = {"sample_frequency": rate, "num_mel_bins": bins, "frame_length": 25, "frame_shift": 10}
    if flavour == "ast":
        return kaldi.fbank(
            wave - wave.mean(), htk_compat=True, use_energy=False, window_type="hanning", dither=0.0, **common
        )
    return kaldi.fbank(wave * 2**15, **common)


@pytest.mark.parametrize("flavour", ["ast", "beats"])
@pytest.mark.parametrize(("rate", "bins"), [(16000, 128), (8000, 64), (22050, 80)])
def test_batches_equal_torchaudio_sample_by_sample(flavour, rate, bins):
    waves = [sound(n, i, rate) for i, n in enumerate((rate, rate // 2 + 77, int(rate * 0.025), int(rate * 1.3)))]
    batch = join([Wave(wave, rate) for wave in waves])
    banks = FilterBanks(rate, bins, 10.0, flavour)
    made = banks(batch.data, batch.counts)
    frames, apart = banks.frames(batch.counts), []
    for row, wave, count in zip(made, waves, frames, strict=True):
        wanted = reference(wave, rate, bins, flavour)
        assert len(wanted) == count
        torch.testing.assert_close(row[0, :count], wanted, rtol=1e-4, atol=2e-3)
        # bins of sound, not of rounding: there both are as near to the values of double precision
        exact = reference(wave.double(), rate, bins, flavour)
        loud = exact > exact.max() - 12
        apart.append(torch.stack([(row[0, :count] - exact)[loud], (wanted - exact)[loud]]))
        assert not row[0, count:].any()
    ours, theirs = torch.cat(apart, 1).square().mean(1).sqrt()
    assert ours < 1.2 * theirs < 3e-6


@pytest.mark.parametrize(("rate", "bins"), [(16000, 128), (16000, 16), (8000, 64), (22050, 80), (44100, 37), (1000, 4)])
def test_filters_are_zero_where_a_cpu_leaves_them_out(rate, bins):
    """Every bin once and in order; what is multiplied holds all that is not zero, and with many bins less than a third of everything."""
    banks = FilterBanks(rate, bins, 10.0, "ast")
    rest, seen = banks.banks.clone(), []
    for some, low, high in banks.ranges:
        assert 0 <= low < high <= len(rest)
        rest[low:high, some] = 0
        seen += range(some.start, some.stop)
    assert seen == list(range(bins)) and not rest.any() and banks.banks.any()
    taken = sum((some.stop - some.start) * (high - low) for some, low, high in banks.ranges)
    assert bins < 64 or taken < banks.banks.numel() / 3


def test_short_recordings_are_filled_up_with_zeros():
    banks, wave = FilterBanks(8000, 32, 10.0, "ast"), sound(4000, rate=8000)[None]
    made = banks(wave, [4000], 60, fill=True)
    assert made.shape == (1, 1, 60, 32)
    assert torch.equal(made[:, :, :48], banks(wave, [4000])) and not made[:, :, 48:].any()


@pytest.mark.parametrize("flavour", ["ast", "beats"])
def test_int16_is_its_value_over_32768(flavour):
    wave = (sound(5000) * 32768).round().clamp(-32768, 32767).to(torch.int16)
    banks = FilterBanks(16000, 40, 10.0, flavour)
    assert torch.equal(banks(wave[None], [5000]), banks(wave[None].float() / 32768, [5000]))
    torch.testing.assert_close(
        banks(wave[None], [5000])[0, 0], reference(wave.float() / 32768, 16000, 40, flavour), rtol=1e-4, atol=2e-3
    )


def test_golden_values():
    """The definition in float64 with numpy alone: 440 Hz at 16 kHz, first frame, a filter around the tone and others."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    frame = wave[:400] - wave.mean()
    frame = frame - frame.mean()
    frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
    power = np.abs(np.fft.rfft(frame * np.hanning(400), 512)) ** 2
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    edges = mel(20) + np.arange(130) * (mel(8000) - mel(20)) / 129
    at = mel(np.arange(256) * 16000 / 512)
    wanted = []
    for k in PICKED:
        up, down = (at - edges[k]) / (edges[k + 1] - edges[k]), (edges[k + 2] - at) / (edges[k + 2] - edges[k + 1])
        wanted.append(np.log(max(np.clip(np.minimum(up, down), 0, None) @ power[:256], 2**-23)))
    made = FilterBanks(16000, 128, 10.0, "ast")(torch.from_numpy(wave).float()[None, None], [16000])[0, 0, 0]
    np.testing.assert_allclose(made[PICKED], wanted, atol=2e-3)
    np.testing.assert_allclose(wanted, GOLDEN, atol=1e-6)


PICKED = [22, 23, 24, 25, 27]
GOLDEN = [3.418577, 3.908807, 3.536504, 1.425589, -3.285902]


def test_frames_of_ten_seconds_and_of_very_short_recordings():
    banks = FilterBanks(16000, 128, 10.0, "beats")
    assert banks.frames([160000, 80000, 400, 399, 1]) == [998, 498, 1, 1, 1]
    short = torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(0)) * 0.1
    padded = torch.nn.functional.pad(short, (0, 300))
    assert torch.equal(banks(short, [100]), banks(padded, [400]))


def test_what_lies_behind_the_end_is_never_read():
    banks = FilterBanks(8000, 32, 10.0, "ast")
    wave = sound(4000, rate=8000)[None]
    tail = torch.full((1, 1, 900), torch.nan)
    made = banks(torch.cat([wave, tail], -1), [4000])
    assert torch.equal(made[:, :, :48], banks(wave, [4000])) and not made[:, :, 48:].any()


def test_only_the_frames_that_are_wanted():
    banks = FilterBanks(8000, 32, 10.0, "ast")
    wave = sound(4000, rate=8000)[None]
    torch.testing.assert_close(banks(wave, [4000], 7), banks(wave, [4000])[:, :, :7], rtol=0, atol=1e-5)


def test_autocast_does_not_coarsen():
    banks, wave = FilterBanks(8000, 32, 10.0, "ast"), sound(4000, rate=8000)[None]
    with torch.autocast("cpu", torch.bfloat16):
        inside = banks(wave, [4000])
    assert inside.dtype == torch.float32 and torch.equal(inside, banks(wave, [4000]))


@pytest.mark.parametrize("flavour", ["ast", "beats"])
def test_audio_mae_cuts_and_pads_before_it_normalises(flavour):
    """Each in its own way by hand: 40 frames of 21 and of 55, zeros of the logarithm as padding."""
    waves = [sound(int(0.225 * 16000), 1), sound(int(0.565 * 16000), 2)]
    tokenizer = SpectrogramTokenizer(FACTS, frames=40, bins=128, patch=[8, 16], flavour=flavour, mean=-4.2, std=4.5)
    tokens = tokenizer(View(join([Wave(wave, 16000) for wave in waves]), "audio"))
    for row, wave, count in zip(tokens.raw, waves, (21, 40), strict=True):
        banks = torch.zeros(40, 128)
        banks[:count] = reference(wave, 16000, 128, flavour)[:40]
        wanted = (banks + 4.2) / 9.0
        patches = wanted.reshape(5, 8, 8, 16).permute(0, 2, 1, 3).reshape(40, 128)
        torch.testing.assert_close(row, patches, rtol=1e-4, atol=3e-4)
    assert tokens.valid is None and tokens.grid == (5, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FilterBanks(16000, 128, 10.0, "beat"), "'ast' or 'beats' .got 'beat'.; did you mean 'beats'"),
        (lambda: FilterBanks(16000, 2, 10.0, "ast"), "at least 4 bins"),
        (lambda: FilterBanks(16000, 64, 0.01, "ast"), "a shift of one sample"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
