"""Image sets as batches of float tensors in [-1, 1]."""

from data.datasets import DATASETS, load
from data.errors import DataError, DataNotFound, ReadError
from data.sets import ImageSet, deaths_of_workers

__all__ = [
    "DATASETS",
    "DataError",
    "DataNotFound",
    "ImageSet",
    "ReadError",
    "deaths_of_workers",
    "load",
]
