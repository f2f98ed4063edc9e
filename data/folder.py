"""Images that people have: a folder, a zip, an array file; read once, cached, reported.

Everything is decoded once at the start, so what is damaged is named before the first step. A set
that fits into a share of the memory stays there; a larger one is decoded anew in every epoch.
"""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.arrays import list_arrays
from data.cache import cache_path, cached_or_decoded, store
from data.class_names import readable
from data.decode import Rendering, cut_off
from data.errors import DataError, DataNotFound
from data.held_out import (
    check_held_out,
    check_same_classes,
    check_same_images,
    split,
    trained_too,
)
from data.image_set import ImageSet, StreamSet, TensorSet
from data.listing import ACCEPTED, Listing, list_images, summary
from data.options import DataOptions, Loading
from data.reading import Decoded, Reader
from data.sources import Folder, Zip
from utils.errors import listed, number

MENTIONED_CUT = 0.1  # share of the pixels that cropping may cut off without a word


def open_folder(options: DataOptions, loading: Loading) -> tuple[ImageSet, ImageSet]:
    """The training and the test set of the images at data_root. Raises DataError."""
    return open_listing(list_source(Path(options.data_root)), options, loading)


def list_source(root: Path) -> Listing:
    """The images at this path, whatever it is. Raises DataError."""
    try:
        found = root.exists()
    except OSError as e:
        raise DataError(f"cannot read {readable(str(root))}: {e.strerror}") from e
    if not found:
        raise DataNotFound(f"there is no {readable(str(root))}: {ACCEPTED}")
    if root.is_dir():
        return list_images(Folder(root))
    if not root.is_file():
        raise DataError(f"cannot read {readable(str(root))}: not a regular file")
    if root.suffix.lower() in (".npy", ".npz"):
        return list_arrays(root)
    if root.suffix.lower() == ".zip":
        return list_images(Zip(root))
    raise DataError(f"cannot read images from {readable(str(root))}: {ACCEPTED}")


def open_listing(
    listing: Listing, options: DataOptions, loading: Loading
) -> tuple[ImageSet, ImageSet]:
    """Decode the images, or take them from the cache; hold some out, unless they are named."""
    listing = listing.only(options.classes)
    check_same_classes(listing.source.description, listing.class_names, loading)
    how, decoded, path = cached_or_decoded(listing, options, loading)
    kept = [file for file in listing.files if file.name not in decoded.damaged]
    labels = torch.tensor([file.label for file in kept], dtype=torch.int64)
    test = split(kept, labels, decoded.digests, loading)
    check_classes(listing, labels[~test])
    notes = (*sizes_note(decoded, how), *left_out_note(listing, decoded))

    def part(rows: Tensor) -> ImageSet:
        at = rows.nonzero().flatten()
        digests = decoded.digests[at]
        fingerprint = digest_of(listing.class_names, how, labels[at], digests)
        common = {"name": "", "source": listing.source.description, "labels": labels[at]}
        common |= {"class_names": listing.class_names, "notes": notes, "digests": digests}
        if len(decoded.images):
            return TensorSet(**common, images=decoded.images[at], of_files=fingerprint)
        names = [kept[i].name for i in at.tolist()]
        shape = (how.channels, *how.size)
        reader = Reader(listing.source, how)
        return StreamSet(
            **common, read=reader, files=names, image_shape=shape, fingerprint=fingerprint
        )

    train_set = part(~test)
    lines = check_same_images(train_set, options, loading)
    test, more = check_held_out(test, decoded.digests, options, loading)
    test_set = part(test)
    lines += (*more, *trained_too(train_set.digests, test_set.digests))
    train_set = replace(train_set, notes=(*notes, *lines))
    if path:
        store(path, decoded, how)
        with suppress(OSError):  # under what a resumed run asks for, too; else it decodes anew
            cache_path(listing, how, loading).hardlink_to(path)
    return train_set, test_set


def check_classes(listing: Listing, labels: Tensor) -> None:
    """DataError where no image is left, or none of a class."""
    if not len(labels):
        raise DataError(f"{listing.source.description} has no image to train on that can be read")
    counts = labels.bincount(minlength=len(listing.class_names)).tolist()
    empty = [name for name, n in zip(listing.class_names, counts, strict=False) if not n]
    if empty:
        raise DataError(
            f"{listing.source.description} has no image to train on of {listed(empty)}; --classes "
            "chooses others"
        )


def digest_of(class_names: Sequence[str], how: Rendering, labels: Tensor, digests: Tensor) -> str:
    """The fingerprint: of the files' content, their classes, and how they are rendered."""
    sha = hashlib.sha256(repr((tuple(class_names), how)).encode())
    sha.update(labels.numpy())
    sha.update(digests.contiguous().numpy())
    return sha.hexdigest()


def sizes_note(decoded: Decoded, how: Rendering) -> Iterator[str]:
    """The sizes of the images, and what becomes of them."""
    sizes, (height, width) = decoded.sizes.tolist(), how.size
    low, high = min(sizes, key=sum), max(sizes, key=sum)
    stored = "x".join(map(str, low))
    if low != high:
        stored += f" to {'x'.join(map(str, high))}"
    kind = {1: "grey", 3: "RGB", 4: "RGBA"}[how.channels]
    line = f"sizes (height x width): {stored}, learnt as {height}x{width} {kind}"
    if how.fit == "crop":
        cut = statistics.fmean(cut_off(tuple(size), how.size) for size in sizes)
        if cut > MENTIONED_CUT:
            line += f"; cropping cuts off {100 * cut:.0f} % on average: see --fit"
    elif any(size != list(how.size) for size in sizes):
        line += f" ({how.fit})"
    yield line


def left_out_note(listing: Listing, decoded: Decoded) -> Iterator[str]:
    """Counts of what is not learnt, by reason."""
    counts = listing.left_out + Counter(damaged=len(decoded.damaged))
    if text := summary(counts):
        yield f"left out: {text}"
    if copies := len(decoded.digests) - len(decoded.digests.unique(dim=0)):
        yield f"{number(copies, 'image is a copy', 'images are copies')} of others, byte by byte"
    if decoded.profiles:
        what = number(decoded.profiles, "image has", "images have")
        yield f"{what} an ICC profile, which is not applied"
