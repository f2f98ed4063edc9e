"""Which images are learnt, and how they are brought to one shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor


def accept(_classes: int, _size: tuple[int, int]) -> None:
    """Any number of classes, images of any height and width."""


@dataclass(frozen=True)
class Loading:
    """How a set is loaded.

    cache: the folder of decoded images; None: they are not kept. silent: show no progress.
    check: called with the number of classes and (height, width) before anything is decoded, to
    refuse them by raising. download: what is missing, where that is possible. in_memory: bytes
    that decoded images may take; None: a share of the memory of this machine. size_multiple: of
    height and width, where the images' own size is taken. fingerprint, digests, labels: of the
    training images that a run was begun with; with skip_damaged, those of them that are left are
    taken. class_names: of its labels. held_out: the digests of its held-out images.
    """

    cache: Path | None = None
    silent: bool = False
    check: Callable[[int, tuple[int, int]], None] = accept
    download: bool = True
    in_memory: int | None = None
    size_multiple: int = 1
    fingerprint: str | None = None
    digests: Tensor | None = None
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None
    held_out: Tensor | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any], **settings: Any) -> Self:
        """For the images of a checkpoint, whose entry ``data`` is stored (setup.data_entry)."""
        names = ("digests", "labels", "class_names", "held_out")
        return cls(**settings, **{name: stored.get(name) for name in names})


@dataclass(frozen=True)
class DataOptions:
    """The fields of config.DataConfig, and ``image_channels``.

    image_size: (height, width) in pixels, zeros for the set's own. image_channels: 1, 3 or 4; 0: 1
    where every image is grey, else 3. fit, background: see data.decode.Rendering. classes: names of
    those to keep; none: all. skip_damaged: leave damaged files out instead of refusing the set.
    """

    dataset: str
    data_root: str = ""
    image_size: tuple[int, int] = (0, 0)
    image_channels: int = 0
    fit: str = "crop"
    background: str = "white"
    classes: tuple[str, ...] = ()
    skip_damaged: bool = False
