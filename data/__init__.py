"""Image sets as batches of float tensors in [-1, 1]."""

from data.datasets import DATASETS, holds_images, load_splits
from data.errors import DataError, DataNotFound, ReadError, WaitError
from data.image_set import ImageSet
from data.options import DataOptions, Loading
from data.report import report

__all__ = [
    "DATASETS",
    "DataError",
    "DataNotFound",
    "DataOptions",
    "ImageSet",
    "Loading",
    "ReadError",
    "WaitError",
    "holds_images",
    "load_splits",
    "report",
]
