"""The folder of an exported model: its tensors as safetensors, everything else as JSON.

Both hold what a checkpoint holds, without what training alone needs, and together its SHA-256.
Neither format can run code.
"""

import errno
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import checkpoint
from utils.checkpoint import EXPORTED, PARTS, CheckpointError, DamagedError
from utils.devices import out_of_memory
from utils.pytree import digest, walk
from utils.safe_load import check_size

FORMAT = "ddpm-export"
CONFIG = "config.json"  # beside EXPORTED, the tensors
LARGEST_CONFIG = 2**23  # bytes; 10^5 hand-set alphas take three million
LARGEST_INTEGER = 2**63
DTYPES = {torch.float32, torch.float64, torch.int64}
EMA = "module."  # before the names of the network's tensors in a checkpoint
BESIDE = ("x0_error", "value_prior")  # tensors of the process


def encode(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of EXPORTED and CONFIG, by name.

    content: as of a checkpoint; its tensors are ``ema`` and those of BESIDE, all else is plain.
    """
    from safetensors.torch import save

    tensors = {name.removeprefix(EMA): value for name, value in content["ema"].items()}
    tensors |= {name: content[name] for name in BESIDE if content.get(name) is not None}
    tensors = {name: tensors[name].cpu().contiguous() for name in sorted(tensors)}
    plain = {name: value for name, value in content.items() if name not in ("ema", *BESIDE)}
    about = {"format": FORMAT, "format_version": checkpoint.FORMAT_VERSION, **plain}
    about = json.loads(json.dumps(about, allow_nan=False))  # tuples are lists from here on
    about["sha256"] = digest({**about, "tensors": tensors})
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    return {EXPORTED: save(tensors), CONFIG: text.encode("utf-8", "surrogatepass")}


def load(path: Path, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """The verified content of a checkpoint, or of an export, whose path is that of EXPORTED.

    parts: what a checkpoint must have; an export has what sampling needs. Raises CheckpointError.
    """
    if path.name != EXPORTED:
        return checkpoint.load(path, parts=parts)
    about = read_json(path.with_name(CONFIG))
    content = {**about, "tensors": read_tensors(path)}
    content = checkpoint.check(path, content, FORMAT, ("config", "step", "tensors"))
    check_form(path.with_name(CONFIG), content)
    tensors = content.pop("tensors")
    for name in BESIDE:
        content[name] = tensors.pop(name, None)
    count = {name: tensors.pop(name) for name in ("n_averaged",) if name in tensors}
    content["ema"] = count | {EMA + name: value for name, value in tensors.items()}
    content["config"] = {
        name: {key: tuple(v) if isinstance(v, list) else v for key, v in section.items()}
        for name, section in content["config"].items()
    }
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        about = json.loads(read(path, LARGEST_CONFIG))
        check_size(about)
    except (ValueError, RecursionError) as e:
        raise DamagedError(f"{path} is damaged or no JSON ({type(e).__name__})") from e
    if not isinstance(about, dict):
        raise DamagedError(f"{path} is no JSON object")
    return about


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by rising name, on the CPU. Raises CheckpointError."""
    from safetensors.torch import load as parse

    data = read(path)
    try:
        tensors = dict(sorted(parse(data).items()))
        if not {value.dtype for value in tensors.values()} <= DTYPES:
            raise ValueError
        return tensors
    except Exception as e:  # whatever its reader raises for hostile bytes
        if out_of_memory(e):
            raise
        raise DamagedError(
            f"{path} is damaged or no safetensors of this program ({type(e).__name__})"
        ) from e


def read(path: Path, most: float = math.inf) -> bytes:
    """The bytes of a file, at most so many. Raises CheckpointError."""
    try:
        if path.exists() and not path.is_file():  # a pipe that nobody writes to never ends
            raise OSError(errno.EINVAL, "not a file")
        if path.stat().st_size > most:
            raise DamagedError(f"{path} is larger than {most:,} bytes")
        return path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e


def check_form(path: Path, content: Mapping[str, Any]) -> None:
    """DamagedError unless the values have the types that encode writes."""
    config, step, data = content["config"], content["step"], content.get("data", {})
    names = data.get("class_names", []) if isinstance(data, dict) else None
    right = {
        "config": isinstance(config, dict) and all(isinstance(v, dict) for v in config.values()),
        "step": type(step) is int and step >= 0,
        "data": isinstance(names, list) and all(isinstance(name, str) for name in names),
    }
    wrong = [name for name, fits in right.items() if not fits]
    numbers = (value for _, value in walk(content) if isinstance(value, int))
    if any(abs(number) >= LARGEST_INTEGER for number in numbers):
        wrong.append("a number")
    if wrong:
        raise DamagedError(f"{path} cannot be used: {', '.join(wrong)} has another form")
