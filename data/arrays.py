"""Images in a .npy or .npz file: uint8 (N, H, W[, C]), with labels if the file has them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.class_names import natural_key, readable
from data.errors import DataError
from data.listing import ImageFile, Listing
from data.sources import Stamp

# Names of arrays, the likelier first: of torchvision-like, Keras, scikit-learn and MedMNIST files,
# and ours; with ``train``, ``test`` and the like before or after, as in x_train and test_labels.
IMAGES = ("images", "image", "imgs", "img", "x", "data", "pixels", "samples", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target")
MAYBE_LABELS = ("classes", "class", "arr_1")  # where there are as many as images
WHOLE = 2**53  # above which a float may stand for another whole number
PARTS = {"training": "train", "train": "train", "testing": "test", "test": "test"}
PARTS |= {"validation": "val", "valid": "val", "val": "val"}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class Arrays:
    """Training and test images of one file as a source; the name of an image is its number."""

    def __init__(self, path: Path, parts: Sequence[np.ndarray]) -> None:
        self.path, self.description, self.parts = path, readable(str(path)), parts

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        part, _, i = name.partition(" ")
        row = np.ascontiguousarray(self.parts[part == "test"][int(i)])
        channels = row.shape[2] if row.ndim == 3 else 1
        image = Image.frombytes(MODES[channels], row.shape[1::-1], row.tobytes())
        return image, f"{row.shape}".encode() + row.tobytes()

    def size(self, name: str) -> tuple[int, int]:
        height, width = self.parts[name.startswith("test")].shape[1:3]
        return height, width

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        about = self.path.stat()
        return [(about.st_size, about.st_mtime_ns, about.st_ctime_ns, len(names))]


def list_arrays(path: Path) -> Listing:
    """The images and classes in the file. Raises DataError, of other arrays too."""
    arrays = load_arrays(path)
    found = named(arrays, ("train", ""), IMAGES)
    if not found:
        raise DataError(
            f"{readable(str(path))} has no array named images, x_train or the like, only "
            f"{', '.join(map(readable, arrays)) or 'none'}"
        )
    of_images = [*found[:1], *named(arrays, ("test", "val"), IMAGES)[:1]]
    parts = [checked(path, name, arrays[name]) for name in of_images]
    of_labels = [labels_of(arrays, name) for name in of_images]
    labels = [
        values_of(path, name, arrays.get(name), len(part))
        for name, part in zip(of_labels, parts, strict=True)
    ]
    if None in labels:
        if any(labels):
            raise DataError(f"{readable(str(path))}: {' or '.join(of_images[::-1])} has no labels")
        labels = [["all"] * len(part) for part in parts]
    names = sorted(set().union(*labels), key=natural_key)
    if set(names) != set(labels[0]):
        raise DataError(f"{readable(str(path))}: some classes have test images alone")
    left_out: Counter[str] = Counter()
    for name in arrays:
        if name in (*of_images, *of_labels):
            continue
        if arrays[name].ndim > 2:
            left_out[f"in the array {readable(name)}"] += len(arrays[name])
        else:
            left_out[f"array that is not used ({readable(name)})"] += 1
    index = {name: i for i, name in enumerate(names)}
    files = [
        ImageFile(f"{('train', 'test')[part]} {i}", index[name], bool(part))
        for part, own in enumerate(labels)
        for i, name in enumerate(own)
    ]
    names = tuple(names) if len(names) > 1 else ()
    return Listing(Arrays(path, parts), tuple(files), names, left_out)


def role(name: str) -> tuple[str, str]:
    """What an array's name says: train, test, val or nothing; and the kind, in lower case.

    x_train, X-Train, train_images, imagesTrain.
    """
    part = "|".join(PARTS)
    match = re.fullmatch(rf"(?:({part})[ _.-]?)?(.*?)(?:[ _.-]?({part}))?", name.lower())
    if not match or (match[1] and match[3]):
        return "", name.lower()
    return PARTS.get(match[1] or match[3], ""), match[2]


def named(
    arrays: Mapping[str, np.ndarray], parts: Sequence[str], kinds: Sequence[str]
) -> list[str]:
    """The names of the arrays of these parts and kinds, in the order of the parts and kinds."""
    wanted = [(part, kind) for part in parts for kind in kinds]
    return sorted((n for n in arrays if role(n) in wanted), key=lambda n: wanted.index(role(n)))


def labels_of(arrays: Mapping[str, np.ndarray], images: str) -> str | None:
    """The name of the array that labels these images; None where there is none.

    For training images also one that names no part, or another, if it has as many labels.
    """
    part = role(images)[0]
    own = named(arrays, (part,), LABELS)
    others = ("train", "") if part in ("train", "") else (part,)
    maybe = named(arrays, others, (*LABELS, *MAYBE_LABELS))
    fitting = [name for name in (*own, *maybe) if arrays[name].size == len(arrays[images])]
    return next(iter((*fitting, *own)), None)


def load_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays by name; those of a .npy are ``images``, and stay on the disk."""
    try:
        if path.suffix.lower() == ".npy":
            return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as opened:
            known = (*IMAGES, *LABELS, *MAYBE_LABELS)
            return {n: opened[n] if role(n)[1] in known else np.empty(0) for n in opened.files}
    except Exception as e:  # numpy and zipfile raise what they like for damaged files
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        if "pickle" in reason:  # numpy advises to load it all the same
            reason = "damaged, or not of numbers"
        raise DataError(f"cannot read the arrays of {readable(str(path))}: {reason}") from e


def checked(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """The images. DataError unless they are uint8 (N, H, W) or (N, H, W, C)."""
    what = f"{readable(str(path))}: {name} is {images.dtype} {images.shape}"
    if images.dtype != np.uint8:
        raise DataError(f"{what}: images must be uint8, 0 ... 255")
    if images.ndim not in (3, 4) or not images.size:
        raise DataError(f"{what}: images must be (N, H, W) or (N, H, W, C)")
    if images.ndim == 3 and images.shape[2] in (2, 3, 4):
        raise DataError(f"{what}: this is one image, or many narrow ones; make it (N, H, W, C)")
    if images.ndim == 4 and images.shape[3] not in MODES:
        hint = "; put the channels last" if images.shape[1] in MODES else ""
        raise DataError(f"{what}: there must be 1 to 4 channels, the last of the axes{hint}")
    return images


def values_of(path: Path, name: str, labels: np.ndarray | None, images: int) -> list[str] | None:
    """The class of every image, by name; None without labels. DataError for a wrong shape."""
    if labels is None:
        return None
    if labels.dtype.kind == "f" and (abs(labels) < WHOLE).all() and (labels % 1 == 0).all():
        labels = labels.astype(np.int64)
    if labels.size != images or labels.dtype.kind not in "iub" + "US":
        raise DataError(
            f"{readable(str(path))}: {name} is {labels.dtype} {labels.shape}: labels must be "
            f"{images} whole numbers or names"
        )
    values = labels.reshape(-1).tolist()
    return [
        readable(v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v))
        for v in values
    ]
