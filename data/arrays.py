"""Images in a .npy or .npz file: uint8 (N, H, W[, C]), with labels if the file has them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import DataError
from data.listing import ImageFile, Listing, Stamp
from utils.labels import natural_key, readable

# Names of arrays, the first that is there: of torchvision-like, Keras and MedMNIST files, and ours.
TRAIN = ("images", "x_train", "train_images", "x", "arr_0", "data")
TEST = ("test_images", "x_test", "val_images", "x_val", "x_valid")
LABELS = {  # of an array of images
    "images": ("labels", "label", "y", "targets", "target"),
    "x_train": ("y_train",),
    "train_images": ("train_labels",),
    "x": ("y", "labels", "label", "targets"),
    "arr_0": ("arr_1",),
    "data": ("labels", "label", "y", "targets", "target"),
    "test_images": ("test_labels",),
    "x_test": ("y_test",),
    "val_images": ("val_labels",),
    "x_val": ("y_val",),
    "x_valid": ("y_valid",),
}
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

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        about = self.path.stat()
        return [(about.st_size, about.st_mtime_ns, about.st_ctime_ns, len(names))]


def list_arrays(path: Path) -> Listing:
    """The images and classes in the file. Raises DataError, of other arrays too."""
    arrays = load_arrays(path)
    by_lower = {name.lower(): name for name in arrays}
    found = next((name for name in TRAIN if name in by_lower), None)
    if found is None:
        raise DataError(
            f"{readable(str(path))} has no array named images, x_train or the like, only "
            f"{', '.join(arrays) or 'none'}"
        )
    test = [name for name in TEST if name in by_lower]
    parts, labels = [], []
    for name in (found, *test[:1]):
        parts.append(checked(path, name, arrays[by_lower[name]]))
        of_labels = next((by_lower[n] for n in LABELS[name] if n in by_lower), None)
        labels.append(values_of(path, of_labels, arrays.get(of_labels), len(parts[-1])))
    if any(own is None for own in labels):
        if any(labels):
            raise DataError(f"{readable(str(path))}: {test[0]} or {found} has no labels")
        labels = [["all"] * len(part) for part in parts]
    names = sorted(set().union(*labels), key=natural_key)
    if test and set(labels[1]) - set(labels[0]):
        raise DataError(f"{readable(str(path))}: some classes have test images alone")
    left_out = Counter({f"in {name}": len(arrays[by_lower[name]]) for name in test[1:]})
    known = {*TRAIN, *TEST, *(name for own in LABELS.values() for name in own)}
    left_out |= {f"array of another name ({n})": 1 for n in arrays if n.lower() not in known}
    index = {name: i for i, name in enumerate(names)}
    files = [
        ImageFile(f"{('train', 'test')[part]} {i}", index[name], bool(part))
        for part, own in enumerate(labels)
        for i, name in enumerate(own)
    ]
    names = tuple(names) if len(names) > 1 else ()
    return Listing(Arrays(path, parts), tuple(files), names, left_out)


def load_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays by name; those of a .npy are ``images``, and stay on the disk."""
    try:
        if path.suffix.lower() == ".npy":
            return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as opened:
            known = {*TRAIN, *TEST, *(name for own in LABELS.values() for name in own)}
            return {n: opened[n] if n.lower() in known else np.empty(0) for n in opened.files}
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
