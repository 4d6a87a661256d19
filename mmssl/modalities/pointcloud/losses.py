"""Losses between sets of points."""

from __future__ import annotations

from torch import Tensor

from mmssl.modalities.pointcloud.geometry import chamfer as distance
from mmssl.registry import register


@register("loss/chamfer")
def chamfer(prediction: Tensor, target: Tensor, *, norm: str = "l2", coordinates: int = 3) -> Tensor:
    """Chamfer distance of predicted and true points of each token (Point-MAE with l2, Point-BERT's dVAE with l1).

    Args:
        prediction: (..., m * coordinates); the points of a token in any order.
        target: (..., n * coordinates).
        norm: `l2` adds the mean squared distances of both directions, `l1` averages their mean distances.
        coordinates: values of a point.

    Returns:
        One number per token, (...).
    """
    lead = prediction.shape[:-1]
    made, true = (values.reshape(-1, values.shape[-1] // coordinates, coordinates) for values in (prediction, target))
    return distance(made.to(true.dtype), true, norm).reshape(lead)
