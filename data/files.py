"""Pictures on disk as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Files:
    """A torch Dataset of (uint8 (3, size, size), label), read when asked for."""

    paths: Sequence[str]
    labels: Sequence[int]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return square(read(self.paths[i]), self.size), self.labels[i]


def read(path: str) -> Tensor:
    """The colours of a picture, uint8 (3, H, W). OSError for a damaged one.

    torchvision's own decoders take 60 to 85 % of PIL's time, but they are on their way out.
    """
    from PIL import Image
    from torchvision.transforms.v2 import functional as v2

    with Image.open(path) as picture:
        return v2.pil_to_tensor(picture.convert("RGB"))


def square(image: Tensor, size: int) -> Tensor:
    """The middle of an image: the shorter side resized, on uint8 so that no value overshoots."""
    from torchvision.transforms.v2 import functional as v2

    return v2.center_crop(v2.resize(image, [size], antialias=True), [size, size])
