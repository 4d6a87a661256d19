"""What has to happen to an image before an encoder, in the words of timm and of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.run.export.twins import options

# Numbers of PIL's filters, which transformers writes.
_PIL = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def preprocessing(network: Any, tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """Size, statistics and resizing of an image encoder, from its tokenizer and the view of evaluation; else None.

    Returns:
        `size` [height, width] of the input, `resize` (the short side) and `interpolation`, `crop` (from the centre),
        `mean` and `std` per channel of pixels in [0, 1], and `other`, operations of the view that these words miss.
    """
    pixels = getattr(network.tokenizer, "pixels", None)
    if pixels is None:
        return None
    found = {"resize": None, "interpolation": None, "crop": None, **pixels}
    other = []
    for op in tree["data"].get("view") or []:
        said = options(op) if "/" in op["_target_"] else {}
        if op["_target_"] == "view/resize":
            found |= {"resize": said["size"], "interpolation": said["interpolation"]}
        elif op["_target_"] == "view/center_crop":
            found["crop"] = said["size"]
        else:
            other.append(op["_target_"])
    return found | {"other": other}


def timm_config(said: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """timm's `pretrained_cfg` of this preprocessing."""
    size, resize = said["size"], said["resize"]
    return {
        "input_size": [channels, *size], "fixed_input_size": True, "interpolation": said["interpolation"] or "bicubic",
        "crop_pct": min(size) / resize if resize else 1.0, "crop_mode": "center", "mean": said["mean"],
        "std": said["std"], "num_classes": 0,
    }  # fmt: skip


def processor_config(said: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers: BitImageProcessor resizes the short side and crops the centre."""
    height, width = said["size"]
    return {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": channels == 3,
        "do_resize": said["resize"] is not None, "size": {"shortest_edge": said["resize"] or min(height, width)},
        "resample": _PIL.get(said["interpolation"] or "bicubic", 3), "do_center_crop": said["crop"] is not None,
        "crop_size": {"height": height, "width": width}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": said["mean"], "image_std": said["std"],
    }  # fmt: skip
