import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.audio.filters import FilterBanks
from mmssl.modalities.audio.maskers import Bands, Blocks, TimeFrequency
from mmssl.modalities.audio.tokenizer import LogMelTokenizer, SpectrogramTokenizer, standardise
from mmssl.modalities.audio.waves import Erased, Wave, join
from mmssl.parts.maskers import Random
from mmssl.types import TokenSpec, View

FACTS = {"channels": 1, "mean": -6.0, "std": 4.5}


def waves(*counts, rate=8000, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return join([Wave(torch.randn(channels, count, generator=generator) * 0.1, rate) for count in counts])


def view(*counts, **more):
    return View(waves(*counts, **more), "audio")


def draws(b=2):
    return Draws.of(0, 0, torch.arange(b)).named("mask")


def test_audio_mae_has_512_tokens_and_102_visible():
    tokenizer = SpectrogramTokenizer(FACTS)
    assert tokenizer.spec == TokenSpec(256, 2, (64, 8), (16, 16), 1)
    tokens = tokenizer(view(16000 * 3, 16000 * 12, rate=16000))
    assert tokens.raw.shape == (2, 512, 256) and tokens.valid is None
    mask = Random(ratio=0.8)(tokens, draws(), 0.0, None)
    assert mask.visible_count == 102 and mask.visible.sum(1).tolist() == [102, 102]
    assert tokens.pos[0, 9].tolist() == [1, 1] and tokens.pos[0, 511].tolist() == [63, 7]


@pytest.mark.parametrize(
    ("frames", "stride", "grid"),
    [(998, None, (62, 8)), (498, None, (31, 8)), (1024, 10, (101, 12)), (128, None, (8, 8)), (64, [16, 8], (4, 15))],
)
def test_grids(frames, stride, grid):
    """BEATs drops what fills no patch: 998 frames are 496 tokens; overlapping patches of Audio-MAE are 1212."""
    tokenizer = SpectrogramTokenizer(FACTS, frames=frames, stride=stride)
    tokens = tokenizer(view(16000, rate=16000))
    assert tokenizer.spec.grid == tokens.grid == grid and tokens.index.shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize(("stride", "channels"), [(None, 1), ((4, 8), 2), ((3, 5), 1)])
def test_patches_are_the_parts_of_the_spectrogram(stride, channels):
    tokenizer = SpectrogramTokenizer(
        FACTS | {"channels": channels}, rate=8000, bins=32, frames=20, patch=[8, 16], stride=stride, mean=-3.0, std=2.0
    )
    batch = waves(1500, 3000, channels=channels)
    tokens = tokenizer(View(batch, "audio"))
    banks = FilterBanks(8000, 32, 10.0, "ast")(batch.data, batch.counts, 20)
    whole = torch.zeros(2, channels, 20, 32)
    whole[:, :, : banks.shape[2]] = banks
    whole = (whole + 3.0) / 4.0
    step = stride or (8, 16)
    for i, (time, frequency) in enumerate(tokens.pos[0].long().tolist()):
        top, left = time * step[0], frequency * step[1]
        wanted = whole[:, :, top : top + 8, left : left + 16].permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(tokens.raw[:, i], wanted)


def test_a_bare_tensor_is_a_batch_at_the_tokenizers_rate():
    tokenizer = SpectrogramTokenizer(FACTS, rate=8000, bins=32, frames=32, patch=8)
    batch = waves(2000, 2000)
    for data in (batch.data, batch.data[:, 0]):
        assert torch.equal(tokenizer(View(data, "")).raw, tokenizer(View(batch, "audio")).raw)
    with pytest.raises(ValueError, match=r"tokenizer\.rate=8000, but recordings come at 16000 Hz; put view/resample"):
        tokenizer(view(4000, rate=16000))
    with pytest.raises(ValueError, match=r"built for 1 channels, but recordings have 2; set data\.channels=1"):
        tokenizer(view(4000, channels=2))


def test_statistics_come_from_the_data_unless_given():
    ours = SpectrogramTokenizer(FACTS, rate=8000, bins=32, frames=32, patch=8)
    assert (float(ours.mean), float(ours.std)) == (-6.0, 4.5)
    beats = SpectrogramTokenizer(FACTS, rate=8000, bins=32, frames=32, patch=8, flavour="beats")
    # 32768 times the samples are 32768 ** 2 times the power
    assert float(beats.mean) == pytest.approx(-6.0 + 20.794415) and float(beats.std) == 4.5
    given = SpectrogramTokenizer(FACTS, mean=-4.2677393, std=4.5689974)
    assert float(given.mean) == pytest.approx(-4.2677393) and "mean" in given.state_dict()


def test_masked_padding_is_what_lies_wholly_behind_the_end():
    """17 frames of 40 in patches of 8: the first three rows hold frames, the other two do not."""
    tokenizer = SpectrogramTokenizer(FACTS, rate=8000, bins=16, frames=40, patch=8, padding="masked")
    tokens = tokenizer(view(200 + 16 * 80, 200 + 50 * 80, 30))
    assert tokens.valid is not None
    rows = tokens.valid.reshape(3, 5, 2)
    assert rows.all(2).tolist() == rows.any(2).tolist()
    assert rows[..., 0].sum(1).tolist() == [3, 5, 1]
    assert tokenizer(view(8000, 9000)).valid is None
    content = SpectrogramTokenizer(FACTS, rate=8000, bins=16, frames=40, patch=8)
    assert torch.equal(content(view(1480, 4200, 30)).raw, tokens.raw)


@pytest.mark.parametrize(
    ("make", "masker"),
    [
        (SpectrogramTokenizer, Random(ratio=0.8)),
        (SpectrogramTokenizer, TimeFrequency(time=0.5, frequency=0.5)),
        (SpectrogramTokenizer, Blocks(ratio=0.5)),
        (LogMelTokenizer, Random(ratio=0.8)),
        (LogMelTokenizer, Bands()),
    ],
)
def test_padding_changes_nothing(make, masker):
    """A batch padded further, with noise behind the ends, gives the same valid tokens and masks."""
    said = {"frames": 40, "patch": 8, "padding": "masked"} if make is SpectrogramTokenizer else {}
    tokenizer = make(FACTS, rate=8000, bins=16, **said)
    batch = waves(1500, 2500)
    tail = torch.randn(2, 1, 900, generator=torch.Generator().manual_seed(5))
    noisy = torch.cat([batch.data, tail], -1)
    noisy[0, :, 1500:2500] = 1.0
    first, second = (tokenizer(View(data, "audio")) for data in (batch, type(batch)(noisy, batch.counts, 8000)))
    assert first.valid is not None and second.valid is not None
    n = first.index.shape[1]
    assert torch.equal(first.valid, second.valid[:, :n]) and not second.valid[:, n:].any()
    torch.testing.assert_close(first.raw[first.valid], second.raw[:, :n][first.valid], rtol=0, atol=1e-5)
    one, two = (masker(tokens, draws(), 0.0, None) for tokens in (first, second))
    assert torch.equal(one.visible, two.visible[:, :n]) and torch.equal(one.targets, two.targets[..., :n])
    assert not (one.targets[:, 0] & ~first.valid).any() and not (one.visible & ~first.valid).any()


@pytest.mark.parametrize("stride", [None, 4, [3, 5]])
def test_restored_spectrograms_are_what_was_cut(stride):
    tokenizer = SpectrogramTokenizer(FACTS, rate=8000, bins=32, frames=24, patch=8, stride=stride)
    batch = waves(2500, 700)
    tokens = tokenizer(View(batch, "audio"))
    banks = FilterBanks(8000, 32, 10.0, "ast")(batch.data, batch.counts, 24)
    for i, made in enumerate(tokenizer.restore(tokens, None)):
        high, wide = made.values.shape
        wanted = torch.zeros(24, 32)
        wanted[:24] = banks[i, 0]
        torch.testing.assert_close(made.values, ((wanted + 6) / 18 + 0.5)[:high, :wide], rtol=0, atol=1e-5)
        assert made.shown is not None and made.shown.all()


def test_restore_marks_what_is_hidden():
    tokenizer = SpectrogramTokenizer(FACTS, rate=8000, bins=16, frames=16, patch=8)
    tokens = tokenizer(view(2500))
    (made,) = tokenizer.restore(tokens, torch.tensor([[True, False, True, True]]))
    assert made.shown is not None and not made.shown[:8, 8:].any() and int(made.shown.sum()) == 192


def test_pictures_end_where_the_recording_does():
    tokenizer = SpectrogramTokenizer(FACTS, rate=8000, bins=16, frames=40, patch=8, padding="masked")
    tokens = tokenizer(view(200 + 16 * 80, 8000))
    short, long = tokenizer.restore(tokens, tokens.valid)
    assert short.values.shape == (24, 16) and long.values.shape == (40, 16)
    assert short.shown is not None and short.shown.all()


def test_log_mel_frames_are_standardised_over_their_recording():
    tokenizer = LogMelTokenizer(FACTS, rate=8000, bins=40)
    batch = waves(4000, 1800)
    tokens = tokenizer(View(batch, "audio"))
    assert tokenizer.spec == TokenSpec(40, 1, channels=1) and tokens.count == 48 and tokens.raw.shape == (2, 48, 40)
    assert tokens.valid is not None and tokens.valid.sum(1).tolist() == [48, 21]
    for i, wave in enumerate(batch):
        level = 10 ** (-25 / 20) / wave.data.square().mean().sqrt()
        banks = FilterBanks(8000, 40, 10.0, "beats")(wave.data[None] * level, [wave.data.shape[1]])[0, 0]
        wanted = (banks - banks.mean(0)) / (banks.var(0) + 1e-5).sqrt()
        torch.testing.assert_close(tokens.raw[i, : len(wanted)], wanted, rtol=0, atol=1e-4)
        assert not tokens.raw[i, len(wanted) :].any()
    assert tokenizer(view(4000, 4000)).valid is None
    louder = type(batch)(batch.data * 3, batch.counts, 8000)
    torch.testing.assert_close(tokenizer(View(louder, "audio")).raw, tokens.raw, rtol=0, atol=1e-4)


def test_silence_and_single_frames_are_finite():
    tokenizer = LogMelTokenizer(FACTS, rate=8000, bins=40)
    tokens = tokenizer(View(join([Wave(torch.zeros(1, 3000), 8000), Wave(torch.ones(1, 10), 8000)]), "audio"))
    assert tokens.raw.isfinite().all() and tokens.raw.abs().max() < 1
    values = torch.arange(6.0).reshape(1, 1, 3, 2)
    assert torch.allclose(standardise(values, [3], None)[0, 0, :, 0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5)


def test_log_mel_pictures_leave_padding_out():
    tokenizer = LogMelTokenizer(FACTS, rate=8000, bins=40)
    tokens = tokenizer(view(4000, 1800))
    shown = torch.ones(2, 48, dtype=torch.bool)
    shown[1, 3:5] = False
    long, short = tokenizer.restore(tokens, shown)
    assert long.values.shape == (48, 40) and short.values.shape == (21, 40)
    assert short.shown is not None and (~short.shown).sum() == 80 and not short.shown[3:5].any()
    torch.testing.assert_close(short.values, tokens.raw[1, :21] / 5 + 0.5)


@pytest.mark.parametrize("make", [SpectrogramTokenizer, LogMelTokenizer])
def test_erased_rectangles_become_the_mean(make):
    said = {"frames": 40, "patch": 40} if make is SpectrogramTokenizer else {}
    tokenizer = make(FACTS, rate=8000, bins=40, **said)
    plain = waves(200 + 39 * 80, 2000)
    erased = ((Erased(0.1, 0.2, 0.0, 1.0), Erased(0.0, 9.0, 0.25, 0.5)), ())
    before = tokenizer(View(plain, "audio")).raw.reshape(2, 40, 40)
    after = tokenizer(View(type(plain)(plain.data, plain.counts, 8000, erased), "audio")).raw.reshape(2, 40, 40)
    gone = torch.zeros(40, 40, dtype=torch.bool)
    gone[10:20] = gone[:, 10:20] = True
    assert not after[0][gone].any() and torch.equal(after[0][~gone], before[0][~gone])
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"padding": "mask"}, "'content', 'masked' or 'quiet' .got 'mask'."),
        ({"patch": [2000, 16]}, r"tokenizer\.patch=\[2000, 16\] has to fit into tokenizer\.frames=1024"),
        ({"stride": 0}, r"stride=\[0, 0\] has to be at least 1"),
    ],
)
def test_arguments_are_checked(said, message):
    with pytest.raises(ValueError, match=message):
        SpectrogramTokenizer(FACTS, **said)
