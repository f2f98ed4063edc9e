"""An .npz whose largest array is never in memory."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import numpy as np


def write_npz(
    file: BinaryIO, shape: Sequence[int], chunks: Iterable[bytes], more: Mapping[str, np.ndarray]
) -> None:
    """Write what ``np.savez_compressed(file, arr_0=images, **more)`` would, byte for byte.

    images: uint8 of this shape, whose bytes in C order come in chunks. The header of an array
    names its shape, so it must be known before the first chunk.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for chunk in chunks:
                member.write(chunk)
        for name, array in more.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
