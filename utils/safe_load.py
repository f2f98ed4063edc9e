"""Reading a file that may be hostile: no code is run, and no memory is taken that it does not hold.

``torch.load(weights_only=True)`` refuses code. What it does not refuse is refused here: compressed
or overlapping archives, tensors larger than their storage, endless nesting, and types that take
memory by number (of bytearray, 1 kB can ask for 1 GB).
"""

import errno
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.pytree import children

LARGEST_STRUCTURE = 2**20  # bytes of everything but the tensors; 58 M parameters take 170,000
MOST_OPCODES = 300_000  # they take half a second
MOST_VALUES = 2**18  # a network of 58 M parameters has 6,000
DEEPEST = 100
DTYPES = "BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short"
GLOBALS = re.compile(
    rf"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch ({DTYPES})Storage"
)


def safe_load(path: Path) -> Any:
    """Plain values and tensors, on the CPU. Raises OSError, ValueError, or what torch.load does."""
    check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    check_size(content, 4 * path.stat().st_size)
    return content


def check_archive(path: Path) -> None:
    """ValueError unless it is an uncompressed zip that claims no more than the file holds, and
    whose pickle is small and names nothing but what tensors and dicts are made of.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ValueError("two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("compressed")
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise ValueError("claims more bytes than the file has")
        for pickled in (entry for name, entry in entries.items() if name.endswith(".pkl")):
            if pickled.file_size > LARGEST_STRUCTURE:
                raise ValueError("too much beside the tensors")
            check_pickle(archive.read(pickled))


def check_pickle(pickled: bytes) -> None:
    """ValueError for any class or function that a checkpoint does not need."""
    for n, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if n > MOST_OPCODES:
            raise ValueError("too much beside the tensors")
        if opcode.name == "PROTO" and argument != 2:
            raise ValueError(f"protocol {argument}")
        if opcode.name == "GLOBAL" and not GLOBALS.fullmatch(argument):
            raise ValueError(f"names {argument}")


def check_size(content: Any, most_bytes: float = math.inf) -> None:
    """ValueError for too many or too deeply nested values, for a tensor whose strides claim more
    than its storage holds, and for tensors of more than ``most_bytes`` in all.

    Without recursion, as a few bytes can nest without end.
    """
    levels, count, size = [iter([("", content)])], 0, 0
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            continue
        count += 1
        if count > MOST_VALUES or len(levels) > DEEPEST:
            raise ValueError("more values, or deeper nested, than a checkpoint has")
        name, value = found
        if isinstance(value, Tensor):
            own = value.numel() * value.element_size()
            size += own
            if own > value.untyped_storage().nbytes() or size > most_bytes:
                raise ValueError("a tensor is larger than its storage")
        levels.append(children(name, value))
