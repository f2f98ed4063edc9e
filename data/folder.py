"""Images that people have: a folder, a zip, an array file; read once, cached, reported.

Everything is decoded once at the start, so what is damaged is named before the first step. A set
that fits into a share of the memory stays there; a larger one is decoded anew in every epoch.
"""

import hashlib
import math
import statistics
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.arrays import list_arrays
from data.decode import Rendering, colour, cut_off, render
from data.errors import DataError, DataNotFound, ReadError
from data.image_set import ImageSet, StreamSet, TensorSet, num_threads
from data.listing import ACCEPTED, ImageFile, Listing, list_images, summary
from data.options import DataOptions, Loading
from data.sources import Folder, Source, Zip
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.class_names import listed, readable
from utils.devices import main_memory
from utils.progress import track

DEFAULT_SIDE, SIDE_MULTIPLE = 64, 16  # pixels, of images that come in several sizes
MAX_OWN_SIDE = 256  # pixels: larger images are learnt at their own size only where it is typed
MEMORY_SHARE, MAX_BYTES = 1 / 8, 16 * 2**30  # of decoded images that stay in memory
UNKNOWN_MEMORY = 8 * 2**30  # where Python cannot tell, as on Windows
HELD_OUT_EVERY, MIN_IMAGES, MIN_CLASS = 10, 20, 5  # one in ten; from so many images, a class on
MAX_NAMED = 3  # damaged files in a message
MENTIONED_CUT = 0.1  # share of the pixels that cropping may cut off without a word
KIND = "ddpm-images-2"  # change it with what `render` computes
T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class Decoded:
    """The images of a listing in its order, those that cannot be read aside.

    images: uint8 (N, C, H, W); (0, C, H, W) where they do not fit into memory. digests: SHA-256 of
    each file, (N, 32) uint8. sizes: height and width as a viewer shows them, (N, 2).
    """

    images: Tensor
    digests: Tensor
    sizes: Tensor
    damaged: dict[str, str]  # name: why
    profiles: int  # images with an ICC profile


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


def split(kept: Sequence[ImageFile], labels: Tensor, digests: Tensor, loading: Loading) -> Tensor:
    """Which images are held out, (N,) bool: those of a test folder; those that were; a tenth."""
    named = torch.tensor([file.test for file in kept], dtype=torch.bool)
    if named.any():
        return named
    known = set() if loading.digests is None else rows_of(loading.digests)
    trained = torch.tensor([row in known for row in map(bytes, digests.tolist())], dtype=torch.bool)
    return ~trained if trained.any() else choose_held_out(labels, digests)


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


def check_same_images(
    train_set: ImageSet, options: DataOptions, loading: Loading
) -> tuple[str, ...]:
    """DataError unless these are the images a run was begun with, or what is left of them.

    A line, where some are gone.
    """
    if not loading.fingerprint or train_set.fingerprint == loading.fingerprint:
        return ()
    names = loading.class_names
    if names is not None and list(train_set.class_names) != list(names):
        raise DataError(
            f"the classes of {train_set.source} are {listed(train_set.class_names) or 'none'}, but "
            f"this run was trained on {listed(names) or 'none'}"
        )
    if loading.digests is not None:
        labels = loading.labels is not None
        before = counted(loading.digests, loading.labels)
        now = counted(train_set.digests, train_set.labels if labels else None)
        gone = len(loading.digests) - len(train_set)
        if options.skip_damaged and now < before and gone <= len(loading.digests) / 2:
            total = len(loading.digests)
            return (f"{gone:,} of {total:,} training images are gone since the start",)
        if now < before:
            raise DataError(
                f"{gone:,} of the {len(loading.digests):,} images ({train_set.source}) that this "
                "run was trained on are gone: bring them back, or go on with --skip-damaged"
            )
    raise DataError(f"the images ({train_set.source}) are not those this run was trained on")


def trained_too(trained: Tensor, held_out: Tensor) -> list[str]:
    """A line where test images are copies of training images, as a test folder may have them."""
    known = rows_of(trained)
    copies = sum(row in known for row in map(bytes, held_out.tolist()))
    return [f"{copies:,} held-out images are trained on, too, as byte-by-byte copies"] * (
        copies > 0
    )


def check_held_out(
    test: Tensor, digests: Tensor, options: DataOptions, loading: Loading
) -> tuple[Tensor, tuple[str, ...]]:
    """Which images are held out, (N,) bool, of those that were when the run began; lines to print.

    Images that came later are left out. DataError where some are gone, unless damaged ones may be.
    """
    if loading.held_out is None:
        return test, ()
    before = rows_of(loading.held_out)
    known = torch.tensor([row in before for row in map(bytes, digests.tolist())], dtype=torch.bool)
    new, gone = int((test & ~known).sum()), len(before - rows_of(digests[test]))
    lines = []
    if new:
        lines.append(f"{new:,} images are new since the start of the run: left out")
    if gone:
        line = f"{gone:,} of {len(before):,} held-out images are gone or changed since the start"
        if not options.skip_damaged:
            raise DataError(f"{line}: bring them back, or go on with --skip-damaged")
        lines.append(line)
    return test & known, tuple(lines)


def counted(digests: Tensor, labels: Tensor | None) -> Counter:
    """How often each digest (N, 32) occurs, with its label (N,) where these are given."""
    own = [0] * len(digests) if labels is None else labels.tolist()
    return Counter(zip(map(bytes, digests.tolist()), own, strict=True))


def rows_of(digests: Tensor) -> set[bytes]:
    """The digests (N, 32)."""
    return set(map(bytes, digests.tolist()))


# Reading.


@dataclass(frozen=True)
class Reader:
    """Decodes the images of a source by name: uint8 (C, H, W).

    Raises ReadError, also where the content is not that of the digest any more.
    """

    source: Source
    how: Rendering

    def __call__(self, name: str, digest: bytes) -> Tensor:
        image, _, found, _ = read(self.source, name, self.how)
        if found != digest:
            raise ReadError("another image than at the start")
        return image


def read(source: Source, name: str, how: Rendering) -> tuple[Tensor, tuple[int, int], bytes, bool]:
    """Image (C, H, W), shown size, SHA-256, whether it has an ICC profile. Raises ReadError."""
    try:
        image, content = source.open(name)
        profile = "icc_profile" in image.info
        return *render(image, how), hashlib.sha256(content).digest(), profile
    except MemoryError:
        raise
    except Exception as e:  # Pillow's decoders raise what they like
        raise ReadError(why(e)) from e


def why(error: Exception) -> str:
    """A decoder's complaint in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (a decompression bomb?): {error}".split(" pixels, could")[0]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def decode_all(
    listing: Listing, options: DataOptions, loading: Loading
) -> tuple[Rendering, Decoded]:
    """Every image once, by as many threads as there are cores."""
    names, source = [file.name for file in listing.files], listing.source
    size = options.image_size if any(options.image_size) else own_size(source, names, loading)
    loading.check(len(listing.class_names), size)
    channels, background = options.image_channels or 3, colour(options.background)
    how = Rendering(size, channels, options.fit, background)
    shape = (channels, *size)
    keep = len(names) * torch.Size(shape).numel() <= most_bytes(loading)
    images = torch.empty((len(names) if keep else 0, *shape), dtype=torch.uint8)
    good, digests, sizes, damaged, profiles, grey = [], [], [], {}, 0, True

    def decode(i: int) -> tuple | str:
        try:
            image, *facts = read(source, names[i], how)
        except ReadError as e:
            return str(e)
        if keep:
            images[i] = image
        return *facts, bool((image[:1] == image).all())

    print(f"Reading {len(names):,} images of {source.description}", flush=True)
    for i, found in enumerate(mapped(decode, range(len(names)), "decoding", loading.silent)):
        if isinstance(found, str):
            damaged[names[i]] = found
            continue
        shown, digest, profile, is_grey = found
        good.append(i)
        digests.append(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        sizes.append(shown)
        profiles, grey = profiles + profile, grey and is_grey
    if grey and not options.image_channels:
        how, images = Rendering(size, 1, options.fit, background), images[:, :1]
    if keep and (damaged or images.shape[1] < channels):
        images = images[good].contiguous()
    check_damaged(damaged, options)
    digests = torch.stack(digests) if good else torch.empty((0, 32), dtype=torch.uint8)
    return how, Decoded(images, digests, torch.tensor(sizes).reshape(-1, 2), damaged, profiles)


def own_size(source: Source, names: Sequence[str], loading: Loading) -> tuple[int, int]:
    """Height and width to learn: that of all images where they share it, else a square.

    Rounded down to what the network takes.
    """

    def size(name: str) -> tuple[int, int] | None:
        try:
            return source.size(name)
        except Exception:  # told when it is decoded
            return None

    sizes = [s for s in mapped(size, names, "sizes", loading.silent) if s]
    multiple = loading.size_multiple
    if len(set(sizes)) == 1 and max(sizes[0]) <= MAX_OWN_SIDE:
        height, width = (max(side // multiple, 1) * multiple for side in sizes[0])
        return height, width
    shorter = statistics.median([min(s) for s in sizes] or [DEFAULT_SIDE])
    multiple = math.lcm(multiple, SIDE_MULTIPLE)
    return (max(int(min(shorter, DEFAULT_SIDE)) // multiple, 1) * multiple,) * 2


def mapped(function: Callable[[T], R], items: Sequence[T], title: str, silent: bool) -> Iterator[R]:
    """The function of every item, in order, computed by threads a little ahead."""
    ahead, waiting = 4 * num_threads(), deque()
    pool = ThreadPoolExecutor(num_threads())
    try:
        for item in track(items, title, "images", silent):
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def most_bytes(loading: Loading) -> float:
    """What decoded images may take."""
    if loading.in_memory is not None:
        return loading.in_memory
    memory = main_memory()
    return min(MAX_BYTES, MEMORY_SHARE * (memory if memory < math.inf else UNKNOWN_MEMORY))


# The cache.


def cached_or_decoded(
    listing: Listing, options: DataOptions, loading: Loading
) -> tuple[Rendering, Decoded, Path | None]:
    """The images from the cache, or else decoded, with the path where they are to be stored."""
    background = colour(options.background)
    how = Rendering(options.image_size, options.image_channels, options.fit, background)
    if loading.cache is None:
        return *decode_all(listing, options, loading), None
    path = cache_path(listing, how, loading)
    names = [f.name for f in fields(Decoded)]
    try:
        content = checkpoint.load(path, KIND, ("size", *names))
    except CheckpointError as e:
        if path.exists():
            print(f"{e}: decoding anew", flush=True)
        return *decode_all(listing, options, loading), path
    channels = content["images"].shape[1]
    how = Rendering(tuple(content["size"]), channels, how.fit, how.background)
    decoded = Decoded(**{name: content[name] for name in names})
    loading.check(len(listing.class_names), how.size)
    check_damaged(decoded.damaged, options)
    return how, decoded, None


def store(path: Path, decoded: Decoded, how: Rendering) -> None:
    """Cache the images; without a cache the next start decodes them again."""
    content = {f.name: getattr(decoded, f.name) for f in fields(Decoded)} | {"size": list(how.size)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, content, KIND)
    except (CheckpointError, OSError) as e:
        print(f"warning: the decoded images are not cached: {e}", flush=True)


def cache_path(listing: Listing, how: Rendering, loading: Loading) -> Path:
    """Changes with what is asked for, with the files, and with the content of any of them."""
    names = [file.name for file in listing.files]
    about = (
        how,
        None if any(how.size) else loading.size_multiple,
        listing.source.description,
        names,
        listing.source.stamps(names),
        Image.__version__,
    )
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    return loading.cache / f"images_{key}.pt"


def digest_of(class_names: Sequence[str], how: Rendering, labels: Tensor, digests: Tensor) -> str:
    """The fingerprint: of the files' content, their classes, and how they are rendered."""
    sha = hashlib.sha256(repr((tuple(class_names), how)).encode())
    sha.update(labels.numpy())
    sha.update(digests.contiguous().numpy())
    return sha.hexdigest()


# Held-out images, messages.


def choose_held_out(labels: Tensor, digests: Tensor) -> Tensor:
    """Which images are held out, (N,) bool: a tenth of each class, but at least one.

    Those with the lowest hash of their content: another image in the folder does not change the
    others' lot, and copies of a held-out image are held out too. Copies count as one: of fewer than
    MIN_IMAGES none is held out, nor of a class with fewer than MIN_CLASS.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.tensor([zlib.crc32(bytes(row)) for row in digests.tolist()])
    if len(order.unique()) < MIN_IMAGES:
        return chosen
    for label in labels.unique():
        contents = order[labels == label].unique()  # rising
        if len(contents) >= MIN_CLASS:
            chosen |= torch.isin(order, contents[: max(1, len(contents) // HELD_OUT_EVERY)])
    for label in labels.unique():  # whose images are all copies of another class's
        own = labels == label
        if chosen[own].all():
            chosen[own] = False
    return chosen


def check_damaged(damaged: dict[str, str], options: DataOptions) -> None:
    """DataError with the first files that cannot be read, unless they may be left out."""
    if not damaged or options.skip_damaged:
        return
    first = list(damaged.items())[:MAX_NAMED]
    named = "; ".join(f"{readable(name)} ({reason})" for name, reason in first)
    more = f" and {len(damaged) - MAX_NAMED} more" if len(damaged) > MAX_NAMED else ""
    count = "1 file" if len(damaged) == 1 else f"{len(damaged)} files"
    raise DataError(
        f"{count} cannot be read: {named}{more}; repair or remove them, or leave them out with "
        "--skip-damaged"
    )


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
        yield f"{copies:,} images are copies of others, byte by byte"
    if decoded.profiles:
        yield f"{decoded.profiles:,} images have an ICC profile, which is not applied"
