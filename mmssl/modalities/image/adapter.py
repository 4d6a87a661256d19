"""What generic data code knows of images: how they are decoded, joined, measured and shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmssl.registry import register

_MANY = "set data.channels=3 (or 1) to convert every image to the same number of channels"
# ITU-R 601-2 luma, the weights of PIL's and torchvision's grey conversion.
_LUMA = (0.2989, 0.587, 0.114)


@register("modality/image")
class Image:
    """The image modality. A decoded sample is a uint8 tensor (c, h, w)."""

    name = "image"
    mixes = True
    extensions = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
    segment_extensions = (".png",)

    def decode(self, blob: bytes, channels: int | None = None) -> Tensor:
        """Decodes one encoded image to uint8 (c, h, w).

        JPEG, PNG, WebP and GIF (first frame) go through torchvision, `.npy` arrays (h, w) or (h, w, c) through numpy,
        all else through PIL. Palettes and CMYK become RGB; 16 bits are scaled to 8 by 255 / 65535. The EXIF orientation
        is not applied, as in torchvision's folder data sets.

        Args:
            blob: the bytes of the file.
            channels: what to convert to, see `convert`; None keeps the file's own channels, alpha included.

        Raises:
            ValueError: where the bytes are no image that can be read.
        """
        try:
            sample = _decode(blob)
        except (RuntimeError, OSError, SyntaxError, EOFError) as error:
            raise ValueError(
                f"not a readable image ({str(error).splitlines()[0] if str(error) else error!r})"
            ) from error
        return sample if channels is None else self.convert(sample, channels)

    def convert(self, sample: Tensor, channels: int) -> Tensor:
        """Converts an image (c, h, w) to a number of channels: grey is repeated, alpha dropped, colour made grey.

        Raises:
            ValueError: for any other pair of numbers, for which there is no natural rule.
        """
        have = sample.shape[0]
        if have == channels:
            return sample
        if have == 2 or (have == 4 and channels < 4):  # grey and alpha, RGB and alpha
            return self.convert(sample[: have - 1], channels)
        if have == 1:
            return sample.expand(channels, -1, -1).contiguous()
        if have == 3 and channels == 1:
            weight = torch.tensor(_LUMA).view(3, 1, 1)
            return (sample * weight).sum(0, keepdim=True).round().clamp(0, 255).to(torch.uint8)
        raise ValueError(
            f"data.channels={channels}, but an image has {have} channels and there is no rule to convert {have} to "
            f"{channels}; set data.channels={have}, or null to keep what the files have"
        )

    def segments(self, blob: bytes | None, sample: Tensor) -> Tensor:
        """Classes of an image's pixels, (h, w) int64, -1 where there is none.

        Args:
            blob: a PNG of grey values or palette indices that are the classes; the largest value, 255 or of 16 bits
                65535, is no class. None for an image without classes.
            sample: the image, (c, h, w).

        Raises:
            ValueError: for another file, a picture in colours, and another size than the image's.
        """
        from PIL import Image as Pil

        size = tuple(sample.shape[-2:])
        if blob is None:
            return torch.full(size, -1)
        with Pil.open(io.BytesIO(blob)) as image:
            values, mode = np.array(image), image.mode
        if values.ndim != 2:
            raise ValueError(f"classes of pixels have to be grey values or palette indices (got colours, {mode})")
        if values.shape != size:
            raise ValueError(f"{values.shape[0]}x{values.shape[1]} classes, but the image is {size[0]}x{size[1]}")
        classes = torch.from_numpy(values.astype(np.int64))
        return classes.masked_fill(classes == (255 if values.itemsize == 1 else 65535), -1)

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """Joins images of one shape to a batch (b, c, h, w).

        Raises:
            ValueError: where channels or sizes differ, with the key to set.
        """
        shapes = {tuple(sample.shape) for sample in samples}
        if len(shapes) == 1:
            # in a worker torch's own function stacks in the memory that the main process reads
            if all(sample.stride(0) == 1 for sample in samples):  # channels last in memory, as decoders and resizing do
                return default_collate([sample.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
            return default_collate(list(samples))
        channels = sorted({shape[0] for shape in shapes})
        if len(channels) > 1:
            raise ValueError(f"one batch holds images of {_list(channels)} channels; {_MANY}")
        sizes = sorted({f"{height}x{width}" for _, height, width in shapes})
        raise ValueError(
            f"one batch holds images of different sizes ({', '.join(sizes[:4])}{', ...' if len(sizes) > 4 else ''}); "
            "let data.views and data.view bring them to one size, for instance by view/random_resized_crop in the one "
            "and view/resize with view/center_crop in the other"
        )

    def facts(self, samples: Iterable[Tensor]) -> dict[str, Any]:
        """Measures images one by one.

        Returns:
            `channels`; `mean` and `std` per channel over all pixels, in units where 255 is 1; `height` and `width` as
            [smallest, largest]; `counted`, the number of images.

        Raises:
            ValueError: where images differ in channels, or there is none.
        """
        count, pixels = 0, 0
        total = square = torch.zeros(0, dtype=torch.float64)
        heights, widths, by_channels = set(), set(), dict[int, int]()
        for sample in samples:
            channels, height, width = sample.shape
            by_channels[channels] = by_channels.get(channels, 0) + 1
            if len(by_channels) > 1:
                continue
            values = sample.reshape(channels, -1).to(torch.float64) / 255
            total = total + values.sum(1) if count else values.sum(1)
            square = square + values.square().sum(1) if count else values.square().sum(1)
            count, pixels = count + 1, pixels + height * width
            heights.add(height)
            widths.add(width)
        if not by_channels:
            raise ValueError("data.source gave no readable image to measure; check data.root")
        if len(by_channels) > 1:
            found = ", ".join(f"{number} with {channels}" for channels, number in sorted(by_channels.items()))
            raise ValueError(f"images differ in their number of channels ({found}); {_MANY}")
        mean = total / pixels
        return {
            "channels": next(iter(by_channels)),
            "mean": mean.tolist(),
            "std": (square / pixels - mean.square()).clamp(min=0).sqrt().tolist(),
            "height": [min(heights), max(heights)],
            "width": [min(widths), max(widths)],
            "counted": count,
        }

    def baseline(self, sample: Tensor) -> Tensor:
        """The raw-input baseline: pixels of the image resized to 32 x 32, in [0, 1], (c * 32 * 32,) float32."""
        pixels = sample.unsqueeze(0).to(torch.float32) / 255
        if pixels.shape[-2:] != (32, 32):
            pixels = torch.nn.functional.interpolate(
                pixels, (32, 32), mode="bilinear", align_corners=False, antialias=True
            )
        return pixels.flatten()

    def picture(self, sample: Tensor) -> np.ndarray:
        """The image to look at, uint8 (h, w, 3): one or two channels as grey, of many the first three."""
        shown = sample[:3] if sample.shape[0] >= 3 else sample[:1].expand(3, -1, -1)
        return shown.permute(1, 2, 0).contiguous().numpy()


def _list(values: Sequence[int]) -> str:
    return " and ".join(str(value) for value in values)


def _decode(blob: bytes) -> Tensor:
    if blob[:6] == b"\x93NUMPY":
        return _array(np.load(io.BytesIO(blob), allow_pickle=False))
    jpeg, png = blob[:3] == b"\xff\xd8\xff", blob[:8] == b"\x89PNG\r\n\x1a\n"
    if jpeg or png or blob[:4] == b"GIF8" or (blob[:4] == b"RIFF" and blob[8:12] == b"WEBP"):
        return _torchvision(blob, jpeg, palette=png and blob[25:26] == b"\x03")
    return _pil(blob)


def _torchvision(blob: bytes, jpeg: bool, palette: bool) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    # A bytearray, because torch warns about memory that it may not write to.
    data = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    # Unchanged, torchvision would hand out the indices of a palette as if they were grey.
    image = decode_image(data, mode=ImageReadMode.RGB if palette else ImageReadMode.UNCHANGED)
    if jpeg and image.shape[0] == 4:  # a JPEG has no alpha: this is CMYK
        image = decode_image(data, mode=ImageReadMode.RGB)
    if image.dim() == 4:  # an animation
        image = image[0]
    return _eight_bits(image) if image.dtype == torch.uint16 else image


def _pil(blob: bytes) -> Tensor:
    from PIL import Image as Pil

    with Pil.open(io.BytesIO(blob)) as image:
        if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "PA"):
            image = image.convert("RGB")
        elif image.mode == "1":
            image = image.convert("L")
        return _array(np.array(image))


def _array(pixels: np.ndarray) -> Tensor:
    """An array (h, w) or (h, w, c) as uint8 (c, h, w)."""
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"an image has to be of shape (h, w) or (h, w, c) (got {pixels.shape})")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    image = torch.from_numpy(np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None]).copy())
    image = image.permute(2, 0, 1).contiguous()
    if pixels.dtype == np.uint8:
        return image
    if pixels.dtype in (np.uint16, np.int32):  # PIL reads 16 bit grey as int32 in some formats
        return _eight_bits(image)
    raise ValueError(f"pixels of type {pixels.dtype} have no known range; save them as 8 or 16 bit unsigned integers")


def _eight_bits(image: Tensor) -> Tensor:
    """16 bit values scaled to 8 bits, rounded: 65535 / 257 = 255."""
    return ((image.to(torch.int32).clamp(0, 65535) + 128) // 257).to(torch.uint8)
