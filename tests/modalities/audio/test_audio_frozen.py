"""torchaudio's pipelines as frozen networks, on a small pipeline whose file of weights the test makes."""

from __future__ import annotations

import pytest
import torch
import torchaudio
from torchaudio.models import wav2vec2_model

from mmssl.modalities.audio.frozen import TorchaudioNetwork
from mmssl.modalities.audio.tokenizer import SpectrogramTokenizer
from mmssl.modalities.audio.waves import Waves
from mmssl.types import TokenSpec, View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

SHAPE = {
    "extractor_mode": "layer_norm",  # group norm would hear the padding behind a recording's end
    "extractor_conv_layer_config": [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2, "extractor_conv_bias": False,
    "encoder_embed_dim": 16, "encoder_projection_dropout": 0.1, "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2, "encoder_num_layers": 3, "encoder_num_heads": 2, "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 24, "encoder_ff_interm_dropout": 0.1, "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False, "encoder_layer_drop": 0.1, "aux_num_out": None,
}  # fmt: skip


@pytest.fixture(params=[False, True])
def pipeline(request, tmp_path, monkeypatch):
    """A pipeline TINY with its file in a folder; the network it has to be, and whether it standardises."""
    torch.manual_seed(0)
    model = wav2vec2_model(**SHAPE).eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    bundle = torchaudio.pipelines.Wav2Vec2Bundle("tiny.pth", SHAPE, 16000, request.param, "Wav2Vec2")
    monkeypatch.setattr(torchaudio.pipelines, "TINY", bundle, raising=False)
    return model, request.param, str(tmp_path)


def made(folder, spec=None, **said):
    spec = spec or TokenSpec(256, 2, (10, 3), (4, 16), 1)
    return TorchaudioNetwork(spec, name="TINY", folder=folder, **said).eval().requires_grad_(False)


def heard(model, wave, standard, layer):
    """The network's features of one recording alone."""
    wave = (wave - wave.mean()) * torch.rsqrt(wave.var(correction=0) + 1e-5) if standard else wave
    with torch.no_grad():
        return model.extract_features(wave[None])[0][layer - 1][0]


@pytest.mark.parametrize("layer", [1, 3])
def test_patches_have_the_mean_of_their_frames(pipeline, layer):
    model, standard, folder = pipeline
    counts = (6560, 4000)
    data = torch.randn(2, 1, 6560, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
    made_of = made(folder, layer=layer)(View(Waves(data, counts, 16000), "audio"))
    assert made_of.grid == (10, 3) and made_of.x.shape == (2, 30, 16) and made_of.index[1].tolist() == list(range(30))
    for wave, x, count in zip(data[:, 0], made_of.x.reshape(2, 10, 3, 16), counts, strict=True):
        frames = heard(model, wave[:count], standard, layer)
        assert len(frames) == (count - 400) // 320 + 1
        for step in range(10):  # 40 ms each: two frames of 20 ms
            own = frames[2 * step : 2 * step + 2]
            wanted = own.mean(0) if len(own) else torch.zeros(16)
            torch.testing.assert_close(x[step], wanted.expand(3, -1), atol=2e-4, rtol=1e-3)


def test_other_rates_channels_and_kinds_of_samples(pipeline):
    _, _, folder = pipeline
    network = made(folder, TokenSpec(128, 2, (5, 1), (2, 64), 1))
    tone = torch.sin(torch.arange(2000) * 0.3) * 0.5
    plain = network(View(Waves(tone[None, None], (2000,), 8000), ""))
    both = network(View(Waves(torch.stack([tone * 1.5, tone * 0.5])[None], (2000,), 8000), ""))
    whole = network(View(Waves((tone * 32768).round().to(torch.int16)[None, None], (2000,), 8000), ""))
    torch.testing.assert_close(plain.x, both.x, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(plain.x, whole.x, atol=1e-2, rtol=1e-2)
    again = torchaudio.functional.resample(tone[None], 8000, 16000)
    torch.testing.assert_close(network(View(again, "")).x, plain.x, atol=1e-4, rtol=1e-4)
    assert network(View(Waves(tone[None, None, :50], (50,), 8000), "")).x[0, 0].any()  # shorter than a frame


def test_it_sits_on_the_grid_of_the_spectrogram(pipeline):
    _, _, folder = pipeline
    tokenizer = SpectrogramTokenizer(
        {"channels": 1, "mean": 0.0, "std": 1.0}, bins=32, frames=50, patch=[2, 32], padding="masked"
    )
    data = View(Waves(torch.randn(2, 1, 8160) * 0.1, (8160, 3000), 16000), "")
    tokens = tokenizer(data)
    features = made(folder, tokenizer.spec)(data)
    assert features.grid == tokens.grid == (25, 1)
    empty = ~features.x.any(-1)
    assert not empty[0, :24].any() and (empty[1] & tokens.valid[1]).sum() <= 1  # its last frame, at most


def test_what_cannot_be_had(pipeline):
    _, _, folder = pipeline
    with pytest.raises(ValueError, match=r"no pipeline 'HUBERT_BAS'; did you mean 'HUBERT_BASE'"):
        TorchaudioNetwork(TokenSpec(4, 2, (2, 2), (2, 2), 1), name="HUBERT_BAS")
    with pytest.raises(ValueError, match=r"layers 1 to 3"):
        made(folder, layer=4)
    with pytest.raises(ValueError, match=r"tokenizer/spectrogram"):
        made(folder, TokenSpec(4, 1))
