import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.audio import views
from mmssl.modalities.audio.waves import Erased, Wave, as_float, resample


def recording(n=8000, channels=1, rate=8000, whole=True, seed=0):
    data = torch.randn(channels, n, generator=torch.Generator().manual_seed(seed)) * 0.1
    return Wave((data * 32768).to(torch.int16) if whole else data, rate)


def draws(sample=0):
    return Draws.of(0, 0, torch.tensor([sample]))


ALL = [
    views.Resample(rate=16000),
    views.CropAudio(seconds=0.3),
    views.CropAudio(seconds=2, pad=True),
    views.Gain(),
    views.Roll(),
    views.AddNoise(p=1.0),
    views.SpecAugment(),
]


@pytest.mark.parametrize("op", ALL, ids=lambda op: type(op).__name__)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_pure_in_the_draws_and_any_number_of_channels(op, channels, whole):
    wave = recording(channels=channels, whole=whole)
    before = wave.data.clone()
    state = torch.random.get_rng_state()
    made = op(wave, draws(3))
    again = op(wave, draws(3))
    assert torch.equal(made.data, again.data) and made.rate == again.rate and made.erased == again.erased
    assert made.data.shape[0] == channels and torch.equal(wave.data, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = op(wave, draws(4))
    same = other.data.shape == made.data.shape and torch.equal(other.data, made.data) and other.erased == made.erased
    assert same == isinstance(op, views.Resample)


def test_resample():
    wave = recording()
    assert torch.equal(views.Resample(rate=16000)(wave, draws()).data, resample(wave, 16000).data)


def test_crops_lie_everywhere_and_hold_the_recording_as_it_was():
    wave = Wave(torch.arange(1000, dtype=torch.int16)[None], 100)
    made = [views.CropAudio(seconds=2)(wave, draws(i)).data[0] for i in range(500)]
    starts = [int(one[0]) for one in made]
    assert all(
        torch.equal(one, torch.arange(s, s + 200, dtype=torch.int16)) for one, s in zip(made, starts, strict=True)
    )
    assert min(starts) < 20 and max(starts) > 780 and 360 < sum(starts) / 500 < 440
    centre = views.CropAudio(seconds=2, random=False)(wave, draws())
    assert centre.data[0].tolist() == list(range(400, 600))


def test_short_recordings_stay_or_are_padded():
    wave = Wave(torch.ones(2, 50, dtype=torch.int16), 100)
    assert views.CropAudio(seconds=2)(wave, draws()) is wave
    made = views.CropAudio(seconds=2, pad=True)(wave, draws())
    assert made.data.shape == (2, 200) and made.data.sum() == 100 and made.data.dtype == torch.int16
    places = {int(views.CropAudio(seconds=2, pad=True)(wave, draws(i)).data[0].argmax()) for i in range(200)}
    assert min(places) < 10 and max(places) > 140
    centre = views.CropAudio(seconds=2, pad=True, random=False)(wave, draws()).data[0]
    assert centre[75:125].all() and centre.sum() == 50


def test_gain_is_beta_and_takes_the_mean_away():
    op, wave = views.Gain(), recording(channels=2, whole=False)
    wave = wave._replace(data=wave.data + 0.3)
    factors = torch.tensor([op.factor(draws(i)) for i in range(1500)]) - 0.5
    from scipy.stats import beta

    assert abs(float(factors.mean()) - 0.5) < 4 * (1 / 84 / 1500) ** 0.5
    assert abs(float(factors.var()) - 1 / 84) < 0.002
    for share in (0.05, 0.25, 0.75, 0.95):
        assert abs(float((factors < beta.ppf(share, 10, 10)).float().mean()) - share) < 0.04
    made = op(wave, draws(5))
    torch.testing.assert_close(made.data, (wave.data - wave.data.mean()) * op.factor(draws(5)))
    whole = recording()
    data = as_float(whole.data)
    torch.testing.assert_close(op(whole, draws(5)).data, (data - data.mean()) * op.factor(draws(5)))


def test_roll():
    wave = Wave(torch.arange(500, dtype=torch.int16)[None], 100)
    firsts = set()
    for i in range(200):
        made = views.Roll()(wave, draws(i)).data[0]
        shift = int(-made[0]) % 500
        firsts.add(shift)
        assert torch.equal(made, wave.data[0].roll(shift))
    assert len(firsts) > 150


def test_noise_has_the_wanted_ratio():
    wave = recording(20000, whole=False)
    for i in range(20):
        noise = views.AddNoise(snr=(10, 10), p=1)(wave, draws(i)).data - wave.data
        ratio = 10 * torch.log10(wave.data.square().mean() / noise.square().mean())
        assert abs(float(ratio) - 10) < 0.2
    happened = sum(views.AddNoise(p=0.3)(wave, draws(i)) is not wave for i in range(1000))
    assert 250 < happened < 350


def test_spec_augment_says_what_is_to_be_erased():
    op, wave = views.SpecAugment(times=2, seconds=0.4, bands=1, width=0.3), recording()
    spans, widths = [], []
    for i in range(300):
        erased = op(wave, draws(i)).erased
        assert len(erased) == 3
        for start, stop, low, high in erased[:2]:
            assert 0 <= start <= stop <= 1.0 and (low, high) == (0, 1)
            spans.append(stop - start)
        start, stop, low, high = erased[2]
        assert (start, stop) == (0, 1.0) and 0 <= low <= high <= 1
        widths.append(high - low)
    assert max(spans) < 0.4 and sum(spans) / 600 == pytest.approx(0.2, abs=0.02)
    assert max(widths) < 0.3 and sum(widths) / 300 == pytest.approx(0.15, abs=0.02)
    kept = wave._replace(erased=(Erased(0, 1, 0, 1),))
    assert op(kept, draws()).erased[0] == Erased(0, 1, 0, 1)
    assert views.SpecAugment(times=0, bands=0)(wave, draws()).erased == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.Resample(rate=0), r"view/resample: rate has to be positive \(got 0\)"),
        (lambda: views.CropAudio(seconds=-1), "seconds has to be positive"),
        (lambda: views.AddNoise(snr=(5, 1)), "snr has to ascend"),
        (lambda: views.SpecAugment(width=2), "width between 0 and 1"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
