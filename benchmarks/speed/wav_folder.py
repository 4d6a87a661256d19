"""A folder of recordings to masked filter banks, as Audio-MAE's step gets them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

GOAL = 2.0
WHAT = "wav folder (10 s) to augmented filter banks, loader alone, two workers"
SAME = (
    "128 filter banks of 1,024 frames, one masked stretch and one masked band, normalised; by hand: Kaldi's per sample"
)
BATCH, COUNT, RATE = 16, 96, 16000


def recordings(folder: Path) -> list[Path]:
    """Ten-second files cut out of the speech that mmssl ships."""
    import numpy as np
    import soundfile

    import mmssl

    sound, rate = soundfile.read(Path(mmssl.__file__).parent / "modalities/audio/sample/fsdd_600.flac", dtype="int16")
    sound = np.repeat(sound, RATE // rate)
    folder.mkdir(parents=True)
    numbers, paths = np.random.default_rng(0), []
    for i in range(COUNT):
        start = int(numbers.integers(len(sound) - 10 * RATE))
        paths.append(folder / f"{i:03}.wav")
        soundfile.write(paths[-1], sound[start : start + 10 * RATE], RATE)
    return paths


def by_hand(path: Path) -> Any:
    """One sample as the data set of AST and Audio-MAE makes it (Huang et al. 2022, arXiv:2207.06405)."""
    import soundfile
    import torch
    import torchaudio
    from torch.nn import functional as F

    data, rate = soundfile.read(path, dtype="float32")
    wave = torch.from_numpy(data)[None]
    bank = torchaudio.compliance.kaldi.fbank(
        wave - wave.mean(), htk_compat=True, sample_frequency=rate, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    bank = F.pad(bank, (0, 0, 0, max(0, 1024 - len(bank))))[:1024].t()[None]
    bank = torchaudio.transforms.FrequencyMasking(38)(bank)
    bank = torchaudio.transforms.TimeMasking(100)(bank)
    return (bank[0].t() + 4.2677393) / (2 * 4.5689974)


def measure(pairs: int) -> dict[str, Any]:
    """The filter banks of ours are made of whole batches behind the loader; their time is counted."""
    import torch

    from benchmarks.speed import loaders

    tokenizer: Any = None
    with tempfile.TemporaryDirectory() as name:
        paths = recordings(Path(name) / "sounds")
        said = [
            "data=folder", f"data.root={name}/sounds", f"data.batch_size={BATCH}",
            "views.x=[{_target_: view/resample, rate: 16000}, {_target_: view/gain}, {_target_: view/spec_augment, "
            "seconds: 1.0, width: 0.3}]",
        ]  # fmt: skip
        tokenizer = loaders.tokenizer("audio/audio_mae", said)

        def banks(batch: Any) -> None:
            with torch.inference_mode():
                tokenizer(batch["x"])

        found = loaders.in_turn(
            pairs,
            reference=loaders.epochs(loaders.plain(paths, by_hand, BATCH), BATCH),
            ours=loaders.epochs(loaders.ours("audio/audio_mae", said, False), BATCH, banks),
        )
    return loaders.reported(found, {"ours": (WHAT, GOAL)})
