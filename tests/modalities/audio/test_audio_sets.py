import io
import math
import wave as wavefile

import numpy as np
import pytest
import soundfile
import torch

import mmssl
from mmssl.data.folder import Folder
from mmssl.data.manifest import Manifest
from mmssl.data.module import Data
from mmssl.modalities.audio.adapter import Audio
from mmssl.modalities.audio.sets import FSDD, AudioSample
from mmssl.modalities.audio.views import Resample

ADAPTER = Audio()


def write(path, count, rate=8000, channels=1, pitch=440):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(count) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, 1), rate)


def test_sample_is_speaker_disjoint():
    splits = AudioSample(ADAPTER).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 400, "test": 200}
    speakers = {name: {part.name(i).split("_")[1] for i in range(len(part))} for name, part in splits.items()}
    assert not speakers["train"] & speakers["test"] and len(speakers["test"]) == 2
    for part in splits.values():
        assert part.labels.bincount().tolist() == [len(part) // 10] * 10
        assert [int(part.name(i)[0]) for i in range(len(part))] == part.labels.tolist()
        assert part.classes == [str(digit) for digit in range(10)] and part.in_memory
    read = splits["test"].read(7)
    assert read.rate == 8000 and read.data.dtype == torch.int16 and read.data.shape[0] == 1
    assert 0.1 < read.seconds < 2.3 and read.data.abs().max() > 100
    seconds = sum(part.read(i).seconds for part in splits.values() for i in range(len(part)))
    assert seconds == pytest.approx(261.307375)
    assert splits["train"].fingerprint() != splits["test"].fingerprint()


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("held_out", [None, "lucas"])
def test_fsdd_in_its_own_layout(tmp_path, below, held_out):
    for digit in (0, 3):
        for speaker in ("george", "lucas"):
            for take in (0, 4, 5, 49):
                write(tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav", 800, pitch=300 + 100 * digit)
    (tmp_path / "recordings" / "notes_of_mine.txt").write_text("no recording")
    root = tmp_path if below else tmp_path / "recordings"
    splits = FSDD(ADAPTER, root=str(root), held_out=held_out).splits()
    assert [len(splits["train"]), len(splits["test"])] == [8, 8]
    for name, part in splits.items():
        for i in range(len(part)):
            digit, speaker, take = part.name(i).removesuffix(".wav").split("_")
            assert int(digit) == part.labels[i]
            assert (name == "test") == (speaker == "lucas" if held_out else int(take) < 5)
    assert splits["train"].read(0).data.shape == (1, 800)


def test_fsdd_elsewhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no Free Spoken Digit Dataset"):
        FSDD(ADAPTER, root=str(tmp_path)).splits()
    write(tmp_path / "0_george_0.wav", 800)
    with pytest.raises(ValueError, match="no such speaker; did you mean 'george'"):
        FSDD(ADAPTER, root=str(tmp_path), held_out="georg").splits()


def data(source, **said):
    said = {"views": {"x": [Resample(rate=8000)]}, "view": [Resample(rate=8000)], "batch_size": 4, "workers": 0} | said
    return Data(ADAPTER, 0, source=lambda adapter: source, **said)


def test_a_folder_of_any_rate_length_and_format(tmp_path):
    for i, (ext, rate, channels) in enumerate(
        (("wav", 8000, 1), ("flac", 16000, 2), ("ogg", 44100, 1), ("mp3", 16000, 1))
    ):
        for label in ("a", "b"):
            write(tmp_path / label / f"{i}.{ext}", rate // 4 + 100 * i, rate, channels)
    made = data(Folder(ADAPTER, root=str(tmp_path), test_share=0.0), channels=1, batch_size=8)
    (batch,) = list(made.train_dataloader())
    waves = batch["x"].data
    assert waves.rate == 8000 and waves.data.shape[:2] == (8, 1) and min(waves.counts) < max(waves.counts)
    assert sorted(batch["label"].tolist()) == [0] * 4 + [1] * 4 and batch["bad"] == []


def test_arabic_speech_commands_is_a_manifest(tmp_path):
    rows = ["path,label,split,speaker"]
    for i, (label, split) in enumerate((("up", "train"), ("down", "train"), ("up", "val"), ("down", "test"))):
        write(tmp_path / label / f"{i}.flac", 1600, 16000)
        rows.append(f"{label}/{i}.flac,{label},{split},{i:08d}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    splits = Manifest(ADAPTER, root=str(tmp_path / "clips.csv")).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert splits["train"].classes == ["down", "up"] and splits["val"].labels.tolist() == [1]
    assert splits["test"].read(0).rate == 16000


def test_bad_recordings_are_replaced_counted_and_listed(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i:02d}.wav", 800 + i)
    (tmp_path / "27.wav").write_bytes(b"RIFF of nothing")
    with wavefile.open(str(tmp_path / "31.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
    made = data(Folder(ADAPTER, root=str(tmp_path)), bad_share=0.1)
    facts = made.facts()
    assert facts["counted"] == 38 and facts["rate"] == [8000, 8000]
    assert all(len(batch["x"].data) == 4 for batch in made.train_dataloader())
    assert sorted(made.skipped) == ["27.wav", "31.wav"]
    strict = data(Folder(ADAPTER, root=str(tmp_path)), bad_share=0.0)
    with pytest.raises(ValueError, match=r"data\.bad_share=0\.0: .*27\.wav"):
        strict.facts()


def test_a_folder_of_something_else_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("no sound")
    with pytest.raises(ValueError, match=r"holds no audio files: looked .*\.wav, \.flac"):
        Folder(ADAPTER, root=str(tmp_path)).splits()


def train(recipe, overrides, steps=3):
    """Losses of a few steps of a recipe on the sample, made small."""
    module, made = mmssl.build(recipe, ["data=sample", "encoder.dim=32", "encoder.depth=1", *overrides])
    optimizer = module.configure_optimizers()
    module.eval()  # no dropout, so that losses of one batch can be compared
    batch, losses = made.batch([(0, i) for i in range(8)]), []
    for _ in range(steps):
        total, weight = next(iter(module.objective.values()))(module.begin(batch))
        loss = total / weight
        optimizer.zero_grad()
        loss.backward()
        module.optim.set(optimizer, 0.3)
        optimizer.step()
        losses.append(float(loss.detach()))
    return module, made, batch, losses


@pytest.mark.parametrize("recipe", ["audio/audio_mae", "audio/tera"])
def test_recipes_learn(recipe):
    module, made, batch, losses = train(recipe, [], steps=12)
    assert losses[-1] < 0.95 * losses[0] and all(math.isfinite(loss) for loss in losses)
    assert module.kept(batch["x"]).pool().shape == (8, 32)
    assert made.adapter.picture(made.splits["train"].read(0)).ndim == 3


@pytest.mark.parametrize(("recipe", "said"), [("audio/audio_mae", ["tokenizer.padding=masked"]), ("audio/tera", [])])
def test_padding_never_reaches_the_loss_or_the_features(recipe, said):
    """Ends of recordings moved further out, with noise behind them: same loss, same gradients, same features."""
    module, _, batch, _ = train(recipe, said, steps=1)
    waves = batch["x"].data
    noise = torch.randn(8, 1, 2000, generator=torch.Generator().manual_seed(0))
    longer = torch.cat([waves.data.float() / (32768 if waves.data.dtype == torch.int16 else 1), noise], -1)
    for i, count in enumerate(waves.counts):
        longer[i, :, count:] = noise[i, 0, :1]
    other = batch | {"x": type(batch["x"])(type(waves)(longer, waves.counts, waves.rate), "audio")}
    found = []
    for one in (batch, other):
        module.zero_grad()
        total, weight = next(iter(module.objective.values()))(module.begin(one))
        (total / weight).backward()
        grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        found.append((total.detach(), weight, grads, module.kept(one["x"]).pool().detach()))
    assert found[0][1] == found[1][1]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_zero_prediction_of_audio_mae_costs_255_of_256():
    module, made = mmssl.build(
        "audio/audio_mae",
        ["data=sample", "tokenizer.patch=16", "encoder.dim=32", "encoder.depth=1", "masker.ratio=0.5"],
    )
    term = module.objective["patches"]
    torch.nn.init.zeros_(term.predictor.head.weight)
    torch.nn.init.zeros_(term.predictor.head.bias)
    batch = made.batch([(0, i) for i in range(8)])
    long = batch["x"].data
    noise = torch.randn(8, 1, 8000, generator=torch.Generator().manual_seed(0))
    batch["x"] = type(batch["x"])(type(long)(noise, (8000,) * 8, 8000), "audio")
    total, weight = term(module.begin(batch))
    # up to the epsilon of the variance: 255/256 of v / (v + 1e-6)
    variance = term.query(module.begin(batch)["x"], "hidden")[0].raw.var(-1)
    loss = float(total.detach() / weight)
    assert loss == pytest.approx(float((variance / (variance + 1e-6)).mean()) * 255 / 256, abs=1e-6)
    assert loss == pytest.approx(255 / 256, abs=2e-4)


def test_teras_target_is_the_clean_spectrogram_and_its_loss_the_mean_over_marked_values():
    module, _, batch, _ = train("audio/tera", [], steps=0)
    step = module.begin(batch)
    look, term = step["x"], module.objective["frames"]
    clean = look.network.tokenizer(batch["x"]).raw.clone()
    seen = look.seen  # altered by now
    ((query, prediction),) = term.predict(step)
    assert torch.equal(look.tokens.raw, clean) and torch.equal(term.target(look, query), query.raw)
    marked = look.mask.elements
    whole = term.predictor(seen, look.tokens)
    wanted = (whole - clean).abs()[marked].mean()
    total, weight = term(step)
    assert weight == marked.sum()
    torch.testing.assert_close((total / weight).detach(), wanted.detach())
    assert prediction.shape[-1] == 64


def test_features_do_not_depend_on_what_else_is_in_the_batch():
    module, made, _, _ = train("audio/tera", [], steps=0)
    alone, both = made.batch([(0, 5)]), made.batch([(0, 5), (0, 11), (0, 300)])
    torch.testing.assert_close(module.kept(both["x"]).pool()[:1], module.kept(alone["x"]).pool(), rtol=1e-4, atol=1e-5)


def test_wav_bytes_in_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    soundfile.write(out, np.zeros(500), 8000, format="WAV")
    cells = [{"bytes": out.getvalue(), "path": None}] * 3
    pq.write_table(pa.table({"audio": cells, "label": [0, 1, 0]}), tmp_path / "train.parquet")
    splits = Manifest(ADAPTER, root=str(tmp_path), test_share=0.0).splits()
    assert splits["train"].read(1).data.shape == (1, 500) and splits["train"].labels.tolist() == [0, 1, 0]
