"""Image sets as batches of float tensors in [-1, 1]."""

from data.datasets import DATASETS, load, load_splits
from data.errors import DataError, DataNotFound, ReadError
from data.image_set import ImageSet, deaths_of_workers

__all__ = [
    "DATASETS",
    "DataError",
    "DataNotFound",
    "ImageSet",
    "ReadError",
    "deaths_of_workers",
    "load",
    "load_splits",
]
