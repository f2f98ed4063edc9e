"""The images of a trained model's run, read again as training read them."""

from pathlib import Path

from data import ImageSet, Loading, load_splits
from training.setup import CACHE, data_options
from training.trained import OpenCheckpoint
from utils import runs


def load_run_data(opened: OpenCheckpoint, silent: bool = False) -> tuple[ImageSet, ImageSet]:
    """The training and the test set. Raises DataError, also where they are not those of the run."""
    stored = opened.content.get("data", {})
    loading = Loading.of(stored, cache=cache_folder(opened.path), silent=silent)
    return load_splits(data_options(opened.config), stored.get("fingerprint"), loading)


def cache_folder(path: Path) -> Path | None:
    """Where the run of this checkpoint caches its images; None for one that was copied away."""
    return runs.logs_of(path).parent.parent / CACHE if runs.is_in_run(path) else None
