"""Sets of videos: the sample, and folders that hold video files, `.npz` clips or folders of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmssl.data.folder import arranged, walk
from mmssl.data.source import Adapter, Dataset, Files, digest, find_root, stat
from mmssl.modalities.video.adapter import Video
from mmssl.modalities.video.clips import PICTURES, Clip, Sound
from mmssl.registry import register


class Videos(Files):
    """Videos below a folder: each a file, or a folder of pictures that are its frames."""

    sound: Sound | None = None  # of videos that have none of their own

    def read(self, i: int) -> Clip:
        """Opens the i-th video."""
        return super().read(i).sounding(self.sound)

    def fingerprint(self) -> str:
        """Digest of names and sizes, of the frames too."""
        return digest(f"{name}:{stat(self.folder / name)[0]}" for name in self._files())

    def cache_key(self) -> str:
        """Digest of the folder, names, sizes, times of change and of how large frames may be."""
        files = (f"{name}:{stat(self.folder / name)}" for name in self._files())
        side = getattr(self.adapter, "side", None)
        sound = "" if self.sound is None else str(self.sound.note())
        return digest([self.adapter.name, str(side), str(self.folder.resolve()), sound, *files])

    def _files(self) -> Iterator[str]:
        for name in map(self.name, range(len(self))):
            path = self.folder / name
            if path.is_dir():
                yield from (f"{name}/{inner}" for inner in sorted(os.listdir(path)))
            else:
                yield name


@register("source/videos")
class VideoFolder:
    """All videos below a folder: video files, `.npz` clips, and folders of pictures that are the frames of one video.

    Splits, classes and held-out tests are as in `source/folder`: subfolders `train`, `val`, `test`; below them one
    folder per class. A folder that holds pictures and no videos or folders is one video.

    Args:
        adapter: the modality.
        root: the folder.
        cache_side: longest short side in pixels. Larger videos are made smaller as they are read, which is what the
            decoded cache keeps (`data.memory_mb`); null leaves them as they are.
        test_share: share of each class that becomes the test split.
        labels: false takes subfolders as mere order, true refuses data without classes, null finds out.
        sound: the sound of videos that have none of their own, such as `sound/of_pictures`; null for none.
    """

    def __init__(
        self, adapter: Adapter, *, root: str, cache_side: int | None = None, test_share: float = 0.1,
        labels: bool | None = None, sound: Sound | None = None,
    ) -> None:  # fmt: skip
        if cache_side is not None and cache_side < 1:
            raise ValueError(f"data.source.cache_side is in pixels and has to be at least 1 (got {cache_side})")
        self.adapter = adapter if cache_side is None else Video(side=cache_side)
        self.root, self.test_share, self.labels, self.sound = root, test_share, labels, sound

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: for a missing or empty folder, and for classes that do not agree between the splits.
        """
        root = find_root(self.root)
        if not root.is_dir():
            raise ValueError(f"data.root={self.root} is a file, not a folder; for a table of files use data=manifest")
        names = _scan(root, self.adapter.extensions)
        return arranged(names, root, self._opened, self.test_share, self.labels)

    def _opened(self, *args: Any) -> Videos:
        made = Videos(self.adapter, *args)
        made.sound = self.sound
        return made


@register("source/video_sample")
class VideoSample:
    """The sample shipped with mmssl: 100 training and 60 test clips of the Surveillance Camera Fight Dataset.

    Real clips of about two seconds, with a fight or without; no source video is in both splits. They have no sound.

    Args:
        adapter: the video modality.
        cache_side: longest short side in pixels of what is read and kept; the files have 96.
        sound: the sound that they are given, such as `sound/of_pictures`, where a view asks for one; null for none.
    """

    def __init__(self, adapter: Adapter, *, cache_side: int | None = 64, sound: Sound | None = None) -> None:
        self.adapter, self.cache_side, self.sound = adapter, cache_side, sound

    def splits(self) -> dict[str, Dataset]:
        """Train and test."""
        folder = Path(__file__).parent / "sample"
        said = {"cache_side": self.cache_side, "labels": True, "sound": self.sound}
        return VideoFolder(self.adapter, root=str(folder), **said).splits()


def _scan(root: Path, extensions: tuple[str, ...]) -> list[str]:
    """Paths of videos relative to the root, sorted.

    Raises:
        ValueError: where there is none, with what was found instead.
    """
    found, other = [], set[str]()
    for folder, inner, files in walk(root):
        kinds = {name: Path(name).suffix.lower() for name in files}
        videos = [name for name, kind in kinds.items() if kind in extensions]
        found += [(folder / name).relative_to(root).as_posix() for name in videos]
        if not videos and not inner and folder != root and set(kinds.values()) & set(PICTURES):
            found.append(folder.relative_to(root).as_posix())
        elif not videos:
            other |= set(kinds.values())
    if found:
        return sorted(found)
    instead = ", ".join(sorted(kind or "no extension" for kind in other)) or "no files at all"
    raise ValueError(
        f"data.root={root} holds no videos: looked in it and below it for {', '.join(extensions)} and for folders of "
        f"frames, found {instead}; check data.root and modality"
    )
