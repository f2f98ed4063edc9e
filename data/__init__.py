"""Image sets as batches of float tensors in [-1, 1]."""

from data.datasets import DATASETS, load
from data.errors import DataError, DataNotFound, ReadError
from data.sets import ImageSet

__all__ = ["DATASETS", "DataError", "DataNotFound", "ImageSet", "ReadError", "load"]
