"""Audio data sets by name. None is fetched."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, Files, digest, find_root
from mmssl.modalities.audio.waves import Wave
from mmssl.registry import register, suggest

_DIGITS = [str(digit) for digit in range(10)]
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.(?:wav|flac)")
# The set's own rule: of every speaker and digit the takes 0 to 4 are the test split.
_TEST_TAKES = 5


class Excerpts:
    """Recordings that lie one behind the other in one array.

    Args:
        samples: all samples, (n,) int16.
        rate: samples per second.
        places: first sample and length of each recording.
        labels: (recordings,) int64.
        names: of the recordings, for messages.
        classes: names of the labels.
    """

    in_memory = True

    def __init__(
        self,
        samples: np.ndarray,
        rate: int,
        places: list[tuple[int, int]],
        labels: Tensor,
        names: list[str],
        classes: list[str],
    ) -> None:
        self.samples, self.rate, self.places = samples, rate, places
        self.names = names
        self.labels: Tensor | None = labels
        self.classes: list[str] | None = classes

    def __len__(self) -> int:
        return len(self.places)

    def read(self, i: int) -> Wave:
        """A copy of the i-th recording."""
        start, count = self.places[i]
        return Wave(torch.from_numpy(self.samples[None, start : start + count].copy()), self.rate)

    def name(self, i: int) -> str:
        """Its name in the set."""
        return self.names[i]

    def fingerprint(self) -> str:
        """Digest of all samples, places and labels."""
        return digest(
            [self.samples.tobytes(), str(self.places), str(None if self.labels is None else self.labels.tolist())]
        )

    def cache_key(self) -> None:
        """Nothing: the samples are decoded already."""


@register("source/audio_sample")
class AudioSample:
    """The sample shipped with mmssl: 600 spoken digits (FSDD), 8 kHz; 4 speakers to train on, 2 others to test on."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train (400 recordings) and test (200 of other speakers)."""
        import soundfile

        folder = Path(__file__).parent / "sample"
        samples, rate = soundfile.read(folder / "fsdd_600.flac", dtype="int16")
        with (folder / "fsdd_600.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        ends = np.cumsum([int(row["samples"]) for row in rows]).tolist()
        found: dict[str, Dataset] = {}
        for split in ("train", "test"):
            chosen = [(row, end) for row, end in zip(rows, ends, strict=True) if row["split"] == split]
            places = [(end - int(row["samples"]), int(row["samples"])) for row, end in chosen]
            labels = torch.tensor([int(row["digit"]) for row, _ in chosen])
            found[split] = Excerpts(samples, rate, places, labels, [row["name"] for row, _ in chosen], _DIGITS)
        return found


@register("source/fsdd")
class FSDD:
    """Free Spoken Digit Dataset: 3,000 recordings of 10 digits by 6 speakers, 8 kHz (Jackson et al., CC BY-SA 4.0).

    Args:
        adapter: the audio modality.
        root: the folder `recordings` with files `{digit}_{speaker}_{take}.wav` (or .flac), or the folder above it.
        held_out: the speaker who is the test split; null takes the set's own split, takes 0 to 4 of everyone, on which
            simple baselines score 99 %.
    """

    def __init__(self, adapter: Adapter, *, root: str, held_out: str | None = None) -> None:
        self.adapter, self.root, self.held_out = adapter, root, held_out

    def splits(self) -> dict[str, Dataset]:
        """Train and test.

        Raises:
            ValueError: where `root` holds no such files, or nobody of that name.
        """
        root = find_root(self.root)
        folder = root / "recordings" if (root / "recordings").is_dir() else root
        found = [match for path in sorted(folder.glob("*_*_*.*")) if (match := _NAME.fullmatch(path.name))]
        if not found:
            raise ValueError(
                f"data.root={self.root} holds no Free Spoken Digit Dataset: expected files such as 0_george_0.wav in "
                "it or in recordings/"
            )
        speakers = sorted({match[2] for match in found})
        if self.held_out is not None and self.held_out not in speakers:
            raise ValueError(
                f"data.source.held_out={self.held_out}: there is no such speaker{suggest(self.held_out, speakers)}"
            )
        parts: dict[str, list[re.Match[str]]] = {"train": [], "test": []}
        for match in found:
            test = match[2] == self.held_out if self.held_out else int(match[3]) < _TEST_TAKES
            parts["test" if test else "train"].append(match)
        return {
            split: Files(self.adapter, folder, [m[0] for m in part], torch.tensor([int(m[1]) for m in part]), _DIGITS)
            for split, part in parts.items()
            if part
        }
