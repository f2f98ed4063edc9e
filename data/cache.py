"""Decoded images, cached on disk under what they depend on."""

import hashlib
from dataclasses import fields
from pathlib import Path

from PIL import Image

from data.decode import Rendering, colour
from data.listing import Listing
from data.options import DataOptions, Loading
from data.reading import Decoded, check_damaged, decode_all
from utils import checkpoint
from utils.checkpoint import CheckpointError

KIND = "ddpm-images-3"  # change it with what `render` computes


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
