"""Pictures of what a model sees and makes: sheets of images as uint8 arrays, and a map of embeddings as SVG.

Images are (h, w), (h, w, 1), (h, w, 3) or (h, w, c): uint8, or real numbers in [0, 1]. Small ones are enlarged by a
whole factor without smoothing, so that a pixel stays a pixel. Of more than three channels the first three are shown.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.report.markup import replace_file

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SIDE = 112  # images are enlarged until their shorter side has about as many pixels
_GAP = 8
_LINE = 22  # height of a line of text
_SAME, _OTHER, _INK = (0, 114, 178), (213, 94, 0), (29, 33, 39)


def to_rgb(image: ArrayLike) -> NDArray[np.uint8]:
    """An image as (h, w, 3) uint8; values that are not finite become 0, those outside [0, 1] are clipped.

    Raises:
        ValueError: for another shape or type.
    """
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.shape[-1] or array.dtype.kind not in "uifb":
        raise ValueError(f"an image is (h, w) or (h, w, c) of numbers, got {array.shape} of {array.dtype}")
    if array.dtype != np.uint8:
        array = np.clip(np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        array = np.rint(array * 255).astype(np.uint8)
    if array.shape[-1] == 1:
        return np.repeat(array, 3, -1)
    return np.pad(array, ((0, 0), (0, 0), (0, max(0, 3 - array.shape[-1]))))[..., :3]


def enlarge(image: ArrayLike, side: int = _SIDE) -> NDArray[np.uint8]:
    """Repeats pixels by the smallest whole factor that gives the shorter side at least `side` pixels."""
    rgb = to_rgb(image)
    factor = max(1, -(-side // max(1, min(rgb.shape[:2]))))
    return rgb.repeat(factor, 0).repeat(factor, 1)


def grid(images: Sequence[ArrayLike], columns: int = 8, captions: Sequence[str] | None = None) -> NDArray[np.uint8]:
    """Images in rows on white, each with its caption beneath.

    Args:
        images: images, of unlike sizes if need be; each is centred in a cell as large as the largest.
        columns: images in a row; fewer where there are fewer images.
        captions: one text for each image, cut to the cell's width; none by default.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: without images, or with another number of captions.
    """
    cells = [enlarge(image) for image in images]
    if not cells or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(cells)} and {columns}")
    if captions is not None and len(captions) != len(cells):
        raise ValueError(f"a grid needs one caption for each image, got {len(captions)} for {len(cells)}")
    columns = min(columns, len(cells))
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    below = _LINE if captions is not None else 0
    rows = -(-len(cells) // columns)
    size = (_GAP + rows * (height + below + _GAP), _GAP + columns * (width + _GAP), 3)
    sheet = np.full(size, 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = _GAP + i // columns * (height + below + _GAP), _GAP + i % columns * (width + _GAP)
        y, x = top + (height - cell.shape[0]) // 2, left + (width - cell.shape[1]) // 2
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
        if captions is not None:
            _write(sheet, captions[i], left, top + height, width)
    return sheet


def reconstruction_sheet(
    original: Sequence[ArrayLike], masked: Sequence[ArrayLike], reconstructed: Sequence[ArrayLike]
) -> NDArray[np.uint8]:
    """One row for each sample: the original, what the encoder saw, what came back, under column titles.

    Args:
        original: n images.
        masked: the same n, with what was hidden painted over.
        reconstructed: the same n, as the model filled them in.

    Raises:
        ValueError: when the three do not hold equally many images.
    """
    counts = {len(original), len(masked), len(reconstructed)}
    if len(counts) != 1:
        raise ValueError(f"original, masked and reconstructed must hold equally many images, got {sorted(counts)}")
    triples = [image for triple in zip(original, masked, reconstructed, strict=True) for image in triple]
    return titled(grid(triples, 3), ("original", "masked", "reconstructed"))


def neighbour_sheet(
    query: Sequence[ArrayLike], neighbours: Sequence[Sequence[ArrayLike]], labels: Sequence[Sequence[str]] | None = None
) -> NDArray[np.uint8]:
    """One row for each query: the query, then its nearest neighbours in feature space, nearest first.

    Args:
        query: q images.
        neighbours: k images for each query.
        labels: 1 + k texts for each query, its own first. A neighbour of the same label has a blue frame and `=` before
            its label, another an orange frame and `x`.

    Raises:
        ValueError: when the numbers of queries, neighbours and labels do not agree.
    """
    counts = {len(row) for row in neighbours}
    if len(query) != len(neighbours) or len(counts) != 1:
        raise ValueError(
            f"each query needs equally many neighbours, got {len(query)} queries and rows of {sorted(counts)}"
        )
    width = 1 + counts.pop()
    if labels is not None and [len(row) for row in labels] != [width] * len(query):
        raise ValueError(f"labels must hold {width} texts for each of {len(query)} queries, the query's own first")
    images, captions = [], []
    for i, (own, row) in enumerate(zip(query, neighbours, strict=True)):
        images += [enlarge(own), *map(enlarge, row)]
        if labels is not None:
            first, *others = map(str, labels[i])
            captions += [first, *(f"{'=' if label == first else 'x'} {label}" for label in others)]
            for image, label in zip(images[-len(others) :], others, strict=True):
                _frame(image, _SAME if label == first else _OTHER)
    sheet = grid(images, width, captions if labels is not None else None)
    return titled(sheet, ("query", *(f"nearest {i}" for i in range(1, width))))


def save_png(array: ArrayLike, path: Path) -> Path:
    """Writes an image as PNG; readers see the old file or the whole new one."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(to_rgb(array)).save(content, "PNG", optimize=True)
    return replace_file(Path(path), content.getvalue())


def save(folder: Path, name: str, picture: ArrayLike | str, *, title: str, caption: str = "", alt: str = "") -> Path:
    """Puts a picture into a run's `pictures/` and describes it in `pictures.json` there.

    Args:
        folder: the run's `pictures/`; made if need be.
        name: the file's stem: `views`, `masks`, `reconstructions`, `neighbours`, `embedding`, or another.
        picture: an image, or the text of an SVG.
        title: heading in the report.
        caption: a sentence on what is to be seen.
        alt: what a person who cannot see the picture should know; the caption by default.
    """
    folder = Path(folder)
    if isinstance(picture, str):
        file = replace_file(folder / f"{name}.svg", picture.encode())
    else:
        file = save_png(picture, folder / f"{name}.png")
    index = folder / "pictures.json"
    known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    known[name] = {"title": title, "caption": caption, "alt": alt or caption or title}
    replace_file(index, json.dumps(known, indent=1).encode())
    return file


def _frame(image: NDArray[np.uint8], colour: tuple[int, int, int], width: int = 4) -> None:
    for edge in (image[:width], image[-width:], image[:, :width], image[:, -width:]):
        edge[:] = colour


def titled(sheet: NDArray[np.uint8], titles: Sequence[str]) -> NDArray[np.uint8]:
    """The sheet of a grid beneath a line of column titles, as many as the grid has columns."""
    head = np.full((_LINE + 4, *sheet.shape[1:]), 255, np.uint8)
    step = (sheet.shape[1] - _GAP) // len(titles)
    for i, title in enumerate(titles):
        _write(head, title, _GAP + i * step, 4, step - _GAP)
    return np.concatenate([head, sheet])


def _write(sheet: NDArray[np.uint8], text: str, x: int, y: int, width: int) -> None:
    """Writes a line of text into the array, cut with dots where it is wider than `width`."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(15)
    short = text
    while short and font.getlength(short + ("" if short == text else "...")) > width:
        short = short[:-1]
    line = Image.new("RGB", (width, _LINE - 1), "white")
    ImageDraw.Draw(line).text((0, 1), short if short == text else short + "...", fill=_INK, font=font)
    room = sheet[y : y + _LINE - 1, x : x + width]
    room[:] = np.asarray(line)[: room.shape[0], : room.shape[1]]
