"""What the feature extractor is trained to predict: the classes or, without labels, a pretext task.

The pretext task is that of RotNet (Gidaris et al. 2018): which way an image was turned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data import ImageSet


@dataclass(frozen=True)
class Task:
    """A classification task: the outputs of a classifier and, for a pretext task, the views.

    A view turns images (N, C, H, W); its index is the label to be predicted.
    """

    name: str  # in metrics.json and in the names of files
    outputs: tuple[str, ...]
    views: tuple[Callable[[Tensor], Tensor], ...] = ()

    @property
    def pretext(self) -> bool:
        """Whether it needs no labels."""
        return bool(self.views)

    @property
    def space(self) -> str:
        """The features, in the names of distances; distances of two tasks do not compare."""
        return self.name if self.pretext else "classifier"

    def examples(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images with their classes; of a pretext task, every view of every image with its index.

        (N, C, H, W), (N,) -> (M, C, H, W), (M,), where M is N, or N times the views.
        """
        if not self.pretext:
            return images, labels
        index = torch.arange(len(self.views), device=images.device)
        views = torch.cat([view(images) for view in self.views])
        return views, index.repeat_interleave(len(images))


def of_classes(names: tuple[str, ...]) -> Task:
    """The task of a labelled set."""
    return Task("classes", names)


ROTATIONS = Task(
    "rotations",
    ("0°", "90°", "180°", "270°"),
    tuple(partial(torch.rot90, k=k, dims=(2, 3)) for k in range(4)),
)
FLIPS = Task(  # the symmetries of a rectangle, whose sides a quarter of a turn would exchange
    "flips",
    ("as it is", "180°", "left-right", "top-bottom"),
    tuple(partial(torch.flip, dims=dims) for dims in ((), (2, 3), (3,), (2,))),
)


def task_of(image_set: ImageSet) -> Task:
    """Its classes; with fewer than two of them, rotations of squares and flips of other images."""
    if image_set.num_classes > 1:
        return of_classes(image_set.class_names)
    _, height, width = image_set.image_shape
    return ROTATIONS if height == width else FLIPS
