"""The callables and shapes that all of the package share."""

from collections.abc import Callable

from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, C, H, W), t (B,)) -> its prediction
LabeledModel = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x_t, t, y) -> its output
Time = Tensor | int  # t: (B,) int64, or one t for all


def expand(values: Tensor, like: Tensor) -> Tensor:
    """One value, or one per image (B,) as (B, 1, ..., 1), in the dtype of ``like``.

    One value meets images of any device. One per pixel stays as it is.
    """
    values = values.to(like.dtype)
    if values.ndim == like.ndim:
        return values
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1)) if values.ndim else values
