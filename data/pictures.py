"""Pictures that a user names, brought to the shape of a network's images as in training."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.class_names import match_classes, natural_key, readable
from data.decode import Rendering, colour
from data.errors import DataError, ReadError
from data.folder import list_source
from data.image_set import ImageSet
from data.listing import Listing
from data.options import DataOptions
from data.reading import read
from data.sources import Folder, why_left_out
from utils.errors import InputError
from utils.images import to_uint8

ARRAYS = (".npz", ".npy")
SIDES = ("left", "right", "top", "bottom", "centre")
TEST = re.compile(r"test:(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class Pictures:
    """uint8 (N, C, H, W), what they are called, and their labels (N,); -1: not known."""

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def joined(cls, parts: Sequence["Pictures"]) -> "Pictures":
        """All of them, in order."""
        return cls(
            torch.cat([part.images for part in parts]),
            tuple(name for part in parts for name in part.names),
            torch.cat([part.labels for part in parts]),
        )


def rendering(options: DataOptions) -> Rendering:
    """How images are brought to a size and channels that are known."""
    size, channels = options.image_size, options.image_channels
    return Rendering(size, channels, options.fit, colour(options.background))


def read_pictures(path: Path, how: Rendering, class_names: Sequence[str] = ()) -> Pictures:
    """The picture in a file, those in a folder and its folders, or in a .npz, .npy or .zip.

    Labels are those of an array file, where its classes are class_names or their numbers. DataError
    for what is not there, is no picture or cannot be read.
    """
    shown = readable(str(path))
    try:
        is_folder, found = path.is_dir(), path.exists()
    except OSError as e:
        raise DataError(f"cannot read {shown}: {e.strerror}") from e
    if not found:
        raise DataError(f"there is no {shown}")
    if path.suffix.lower() in (*ARRAYS, ".zip") and not is_folder:
        listing = list_source(path)
        names = [file.name for file in listing.files]
        labels = labels_of(listing, class_names)
        source = listing.source
    else:
        source = Folder(path if is_folder else path.parent)
        names = pictures_in(source) if is_folder else [path.name]
        labels = [-1] * len(names)
    if not names:
        raise DataError(f"{shown} holds no picture")
    images = []
    for name in names:
        try:
            images.append(read(source, name, how)[0])
        except ReadError as e:
            inside = shown if names == [path.name] else f"{readable(name)} of {shown}"
            raise DataError(f"cannot read {inside}: {e}") from e
    titles = tuple(map(readable, names))
    return Pictures(torch.stack(images), titles, torch.tensor(labels, dtype=torch.int64))


def of_test_set(test_set: ImageSet, word: str, num_classes: int) -> Pictures:
    """The test images of ``test:12`` or ``test:0-99``. DataError where there are no such."""
    first, last = (int(part) for part in TEST.fullmatch(word).groups(TEST.fullmatch(word)[1]))
    if not first <= last < len(test_set):
        raise DataError(f"{word}: {test_set.name} has the test images 0 to {len(test_set) - 1}")
    rows = torch.arange(first, last + 1)
    x_0, labels = next(test_set.batches(rows, len(rows)))
    labels = labels if num_classes == test_set.num_classes else torch.full_like(labels, -1)
    return Pictures(to_uint8(x_0), tuple(f"test:{i}" for i in rows.tolist()), labels)


def pictures_in(source: Folder) -> list[str]:
    """The names of the pictures of a folder, also of folders in it, in natural order."""
    return sorted((n for n in source.walk() if not why_left_out(source, n)), key=natural_key)


def labels_of(listing: Listing, class_names: Sequence[str]) -> list[int]:
    """The labels of the images among class_names; -1 where the file has none, or others."""
    try:
        known = [match_classes([name], class_names)[0] for name in listing.class_names]
    except InputError:
        known = []
    return [known[file.label] if known else -1 for file in listing.files]


def read_mask(path: Path, how: Rendering) -> Tensor:
    """Which pixels are white, (H, W) bool, in a picture that is fitted like the images.

    Raises DataError.
    """
    grey = Rendering(how.size, 1, how.fit, (255, 255, 255))
    masks = read_pictures(path, grey).images
    if len(masks) > 1:
        raise DataError(f"{readable(str(path))} holds {len(masks)} pictures: a mask is one")
    return masks[0, 0] >= 128


def named_mask(name: str, size: tuple[int, int]) -> Tensor:
    """That half of an image of this height and width, or its middle quarter, (H, W) bool."""
    height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    parts = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "centre": tuple(slice(n // 4, n - n // 4) for n in size),
    }
    mask[parts[name]] = True
    return mask
