"""Reading every image of a listing once: decoded, hashed, and what is damaged named."""

import hashlib
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.class_names import readable
from data.decode import Rendering, colour, render
from data.errors import DataError, ReadError
from data.image_set import num_threads
from data.listing import Listing
from data.options import DataOptions, Loading
from data.sources import Source
from data.threads import Threads, result_of
from utils.devices import main_memory, out_of_memory
from utils.errors import number
from utils.progress import track

DEFAULT_SIDE, SIDE_MULTIPLE = 64, 16  # pixels, of images that come in several sizes
MAX_OWN_SIDE = 256  # pixels: larger images are learnt at their own size only where it is typed
MEMORY_SHARE, MAX_BYTES = 1 / 8, 16 * 2**30  # of decoded images that stay in memory
UNKNOWN_MEMORY = 8 * 2**30  # where Python cannot tell, as on Windows
MAX_NAMED = 3  # damaged files in a message
T = TypeVar("T")


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
    except Exception as e:  # Pillow's decoders raise what they like
        if out_of_memory(e):
            raise
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

    def decode(i: int, name: str) -> tuple | str:
        try:
            image, *facts = read(source, name, how)
        except ReadError as e:
            return str(e)
        if keep:
            images[i] = image
        return *facts, bool((image[:1] == image).all())

    count = number(len(names), "image", "images")
    print(f"Reading {count} of {source.description}", flush=True)
    for i, found in enumerate(mapped(decode, names, "decoding", loading.silent)):
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

    def size(_: int, name: str) -> tuple[int, int] | None:
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


def mapped(
    function: Callable[[int, str], T], names: Sequence[str], title: str, silent: bool
) -> Iterator[T]:
    """function(i, name) of every name, in order, computed by threads a little ahead."""
    ahead, waiting = 4 * num_threads(), deque()
    pool = Threads(num_threads())
    try:
        for i, name in enumerate(track(names, title, "images", silent)):
            waiting.append((pool.submit(function, i, name), name))
            if len(waiting) > ahead:
                yield result_of(*waiting.popleft())
        while waiting:
            yield result_of(*waiting.popleft())
    finally:
        pool.end()


def most_bytes(loading: Loading) -> float:
    """What decoded images may take."""
    if loading.in_memory is not None:
        return loading.in_memory
    memory = main_memory()
    return min(MAX_BYTES, MEMORY_SHARE * (memory if memory < math.inf else UNKNOWN_MEMORY))


def check_damaged(damaged: dict[str, str], options: DataOptions) -> None:
    """DataError with the first files that cannot be read, unless they may be left out."""
    if not damaged or options.skip_damaged:
        return
    first = list(damaged.items())[:MAX_NAMED]
    named = "; ".join(f"{readable(name)} ({reason})" for name, reason in first)
    more = f" and {len(damaged) - MAX_NAMED} more" if len(damaged) > MAX_NAMED else ""
    count = number(len(damaged), "file", "files")
    raise DataError(
        f"{count} cannot be read: {named}{more}; repair or remove them, or leave them out with "
        "--skip-damaged"
    )
