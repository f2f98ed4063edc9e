"""Image sets as batches of float tensors in [-1, 1]."""

from data.datasets import DATASETS, ImageSet, load
from data.errors import DataError, DataNotFound, ReadError

__all__ = ["DATASETS", "DataError", "DataNotFound", "ImageSet", "ReadError", "load"]
