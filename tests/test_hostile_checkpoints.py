"""Damaged and hostile checkpoints: refused by name, quickly, in little memory, and never run."""

import contextlib
import io
import os
import pickle
import random
import resource
import struct
import subprocess
import tarfile
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from faults import (
    AGAIN,
    FORK,
    a_dozen_times,
    checkpoints,
    count,
    folder,
    needs_nobody,
    newest,
    run,
    two_at_a_time,
)

import sample
from utils import checkpoint, pytree
from utils.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """The checkpoint of a small training."""
    with folder() as where:
        assert run(where, AGAIN).code == 0
        path = tmp_path_factory.mktemp("real") / checkpoint.filename(20)
        path.write_bytes(checkpoints(where)[20].read_bytes())
    return path


def flip(original: bytes, draw: random.Random) -> bytes:
    """One bit."""
    damaged, at = bytearray(original), draw.randrange(8 * len(original))
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


def block(original: bytes, draw: random.Random) -> bytes:
    """512 or 4096 bytes zeroed, random, or from elsewhere; or the file's end, or the structure."""
    damaged, size = bytearray(original), draw.choice((512, 4096))
    start = draw.randrange(len(original) - size) // size * size
    kind = draw.randrange(6)
    if kind == 0:
        damaged[start : start + size] = bytes(size)
    elif kind == 1:
        damaged[start : start + size] = draw.randbytes(size)
    elif kind == 2:
        other = draw.randrange(len(original) - size) // size * size
        damaged[start : start + size] = original[other : other + size]
        damaged[other : other + size] = original[start : start + size]
    elif kind == 3:
        damaged += draw.randbytes(size)
    elif kind == 4:  # the central directory
        at = len(damaged) - 1 - draw.randrange(4000)
        damaged[at : at + 8] = draw.randbytes(len(damaged[at : at + 8]))
    else:  # data.pkl, which comes first
        at = draw.randrange(100, 30_000)
        damaged[at : at + 4] = draw.randbytes(4)
    return bytes(damaged)


def truncate(original: bytes, length: int) -> bytes:
    return original[:length]


DAMAGES = {"flip": flip, "block": block}


def changed(original: bytes, damage, draw: random.Random) -> bytes:
    """Damage that is some: zeros over zeros are drawn again."""
    damaged = original
    while damaged == original:
        damaged = damage(original, draw)
    return damaged


def contents(path: Path) -> list[range]:
    """Where the file has structure and tensors, as opposed to headers, padding and notes."""
    original, found = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith("data.pkl") or "/data/" in info.filename:
                name, extra = struct.unpack_from("<HH", original, info.header_offset + 26)
                start = info.header_offset + 30 + name + extra
                found.append(range(start, start + info.file_size))
    return found


def load_damaged(path: str, kind: str, keys: list[int], outcome) -> None:
    """In a process of its own: load each damaged copy; how many were taken, and were not equal."""
    original = Path(path).read_bytes()
    reference = pytree.digest(checkpoint.load(Path(path)))
    with folder() as where:
        copy = where / "damaged.pt"
        for key in keys:
            if kind == "truncate":
                copy.write_bytes(truncate(original, key))
            else:
                copy.write_bytes(changed(original, DAMAGES[kind], random.Random(key)))
            try:
                equal = pytree.digest(checkpoint.load(copy)) == reference
                outcome[1 if equal else 2] += 1
            except CheckpointError as e:
                outcome[0] += str(copy) in str(e)  # refused by name


def flips_in_content(path: Path, keys: list[int]) -> int:
    """How many of the flipped bits are in structure or tensors: each of these must be refused."""
    size, parts = path.stat().st_size, contents(path)
    at = (random.Random(key).randrange(8 * size) // 8 for key in keys)  # as ``flip`` draws it
    return sum(any(i in own for own in parts) for i in at)


def try_all(path: Path, kind: str, keys: list[int]) -> tuple[int, int]:
    """Refused, and taken with provably equal content; nothing else happens, and no process dies."""

    def half(i: int) -> list[int]:
        outcome = FORK.RawArray("l", 3)
        process = FORK.Process(target=load_damaged, args=(str(path), kind, keys[i::2], outcome))
        process.start()
        process.join()
        assert process.exitcode == 0
        return list(outcome)

    refused, equal, silent = (sum(column) for column in zip(*two_at_a_time(half, 2), strict=True))
    assert silent == 0
    assert refused + equal == len(keys)
    return refused, equal


def test_damage_is_never_taken_for_content(real):
    keys = list(range(30))
    assert flips_in_content(real, keys) > 20
    refused, _ = try_all(real, "flip", keys)
    assert refused >= flips_in_content(real, keys)  # beside it are headers and padding
    refused, _ = try_all(real, "block", list(range(40)))
    assert refused > 25
    size = real.stat().st_size
    lengths = [0, 1, *range(64, size, size // 12), size - 1]
    assert try_all(real, "truncate", lengths) == (len(lengths), 0)


def test_torch_alone_would_take_most_flipped_bits_for_content(real):
    """The control of the test above."""
    original, taken = real.read_bytes(), 0
    for key in range(40):
        damaged = flip(original, random.Random(key))
        with contextlib.suppress(Exception):
            torch.load(io.BytesIO(damaged), weights_only=True)
            taken += 1
    assert taken > 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trials"), [("flip", 10_000), ("block", 5_000), ("truncate", 64)])
def test_damage_is_never_taken_for_content_many_times(real, kind, trials):
    cut = kind == "truncate"
    keys = [0, 1, *range(64, real.stat().st_size, trials)] if cut else list(range(trials))
    refused, equal = try_all(real, kind, keys)
    if kind == "flip":
        assert refused >= flips_in_content(real, keys) > len(keys) / 2
    else:
        least = {"block": 0.8, "truncate": 1.0}[kind]  # a sixth of blocks is appended
        assert refused >= least * len(keys)
    name = {
        "flip": "one flipped bit in a checkpoint",
        "block": "a damaged block in a checkpoint",
        "truncate": "a checkpoint cut at every 64th byte",
    }[kind]
    end = f"{refused:,} refused, {equal:,} in bytes without meaning, 0 taken with changed content"
    count(name, len(keys), len(keys), end)


class Touch:
    """Unpickling it makes a file: the canary."""

    def __init__(self, how, canary: Path) -> None:
        self.how, self.canary = how, canary

    def __reduce__(self):
        command = f"touch {self.canary}"
        return {
            "os.system": (os.system, (command,)),
            "eval": (eval, (f"__import__('os').system({command!r})",)),
            "exec": (exec, (f"import os; os.system({command!r})",)),
            "Popen": (subprocess.Popen, (["touch", str(self.canary)],)),
            "open": (open, (str(self.canary), "w")),
            "torch.load": (partial(torch.load, weights_only=False), (f"{self.canary}.pkl",)),
        }[self.how]


HOW = ("os.system", "eval", "exec", "Popen", "open", "torch.load")


def as_zip(pickled: bytes, original: Path) -> bytes:
    """In the place of a real checkpoint's structure."""
    out = io.BytesIO()
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def as_tar(pickled: bytes, _original: Path) -> bytes:
    """torch's first format."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            target.addfile(info, io.BytesIO(pickled))
    return out.getvalue()


def as_legacy(pickled: bytes, _original: Path) -> bytes:
    """torch's second format: magic number, version, system, content."""
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in first) + pickled


FORMATS = {"zip": as_zip, "legacy": as_legacy, "tar": as_tar, "bare": lambda p, _: p}


@pytest.mark.parametrize("form", FORMATS)
def test_no_pickle_is_ever_run(real, tmp_path, form):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    Path(f"{canary}.pkl").write_bytes(pickle.dumps(Touch("os.system", canary)))
    tried = 0
    for how in HOW:
        for protocol in (2, 4, 5):
            pickled = pickle.dumps(Touch(how, canary), protocol)
            path.write_bytes(FORMATS[form](pickled, real))
            with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
                checkpoint.load(path)
            tried += 1
    time.sleep(0.1)  # for Popen
    assert not canary.exists()
    count(f"a hostile pickle, {form}", tried, tried, "refused, nothing was run")
    process = pickle.loads(pickle.dumps(Touch("Popen", canary)))
    process.wait()
    assert canary.exists()  # control: the canary sings


def test_a_compiled_program_is_refused(tmp_path):
    with warnings.catch_warnings():  # that it is deprecated
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match=r"script.pt is (damaged|not a checkpoint)"):
        checkpoint.load(tmp_path / "script.pt")


def plain(value) -> bytes:
    out = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "format_version": 1, "x": value}, out)
    return out.getvalue()


def nested(depth: int) -> bytes:
    """A list in a list in a list ..., written by hand, as pickle would recurse."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(depth: int) -> bytes:
    """A list of twice a list of twice ...: 2^depth values in a few bytes."""
    words = [b"\x80\x02]q\x00"]
    for i in range(depth):
        words.append(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]))
    return b"".join(words) + b"."


class Call:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def deflated(original: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", Path(original).read_bytes()[:100])
        archive.writestr("x/data/0", bytes(2 * 10**8))
    return out.getvalue()


BOMBS = {
    "a stride-0 tensor of 4 TB": lambda _: plain(torch.zeros(1).expand(10**12)),
    "200 MB deflated": deflated,
    "a million keys": lambda real: as_zip(pickle.dumps(dict.fromkeys(range(10**6)), 2), real),
    "10,000 levels": lambda real: as_zip(nested(10_000), real),
    "400,000 levels": lambda real: as_zip(nested(400_000), real),
    "2^60 values by reference": lambda real: as_zip(laughs(60), real),
    "1 GB of bytearray": lambda real: as_zip(pickle.dumps(Call(bytearray, 10**9), 2), real),
    "2,000 views of one large tensor": lambda _: plain([torch.zeros(2**18)] * 2000),
    "lies about a size": lambda real: real.read_bytes().replace(
        struct.pack("<I", 4 * 16), struct.pack("<I", 2**31)
    ),
}


def measure(path: str, outcome) -> None:
    """Seconds of computing, MB and whether it was refused, in a process of its own."""
    torch.load(io.BytesIO(plain(0)), weights_only=True)  # imports what it needs
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        checkpoint.load(Path(path))
    except CheckpointError:
        outcome[2] = 1
    outcome[0] = time.process_time() - began
    outcome[1] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_a_second_and_200_mb(real, tmp_path, name):
    path, outcome = tmp_path / "bomb.pt", FORK.RawArray("d", 3)
    path.write_bytes(BOMBS[name](real))
    process = FORK.Process(target=measure, args=(str(path), outcome))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    seconds, megabytes, refused = outcome
    assert refused
    assert seconds < 1
    assert megabytes < 200
    count(f"a bomb: {name}", 1, 1, f"refused, under {max(1, megabytes):.0f} MB")


def kinds_of_path(where: Path) -> dict[str, Path]:
    paths = {name: where / name for name in ("empty", "text", "png", "zip", "folder", "fifo")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("hello")
    paths["png"].write_bytes(b"\x89PNG\r\n\x1a\n")
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("readme", "hello")
    paths["folder"].mkdir()
    os.mkfifo(paths["fifo"])
    (where / "loop").symlink_to(where / "loop")
    return paths | {name: where / name for name in ("loop", "missing", 300 * "x")}


def test_whatever_is_named_the_answer_is_one_line(tmp_path, capsys):
    for name, path in kinds_of_path(tmp_path).items():
        assert sample.main(["--ckpt", str(path), "--device", "cpu"]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(path) in error


@a_dozen_times
@needs_nobody
def test_a_checkpoint_that_may_not_be_read_is_one_line(real):
    with folder() as where:
        for name in ("out", "err", "step_00000020.pt"):
            (where / name).touch()
            (where / name).chmod(0o666)
        where.chmod(0o755)
        path = where / "step_00000020.pt"
        path.write_bytes(real.read_bytes())
        path.chmod(0)
        ended = run(where, ["--resume", str(path), "--device", "cpu"], "sabotage.be_nobody")
        assert (ended.code, ended.step) == (2, 0)
        assert ended.err == f"train.py: error: cannot read {path}: Permission denied\n"
        count("a checkpoint that may not be read", 1, 1, "one line, exit code 2")


def resave(real: Path, path: Path, change) -> Path:
    """A checkpoint with another content and a digest that fits it, as no accident writes one."""
    state = checkpoint.load(real)
    change(state)
    state = {k: v for k, v in state.items() if k not in ("format", "format_version")}
    full = {"format": checkpoint.FORMAT, "format_version": 1, **state}
    torch.save({**full, "sha256": pytree.digest(full)}, path)
    return path


def rename(state: dict) -> None:
    """Seven keys of the EMA weights get other names."""
    for key in list(state["ema"])[1:8]:
        state["ema"][f"{key}_"] = state["ema"].pop(key)


def reshape(state: dict) -> None:
    key = next(key for key, value in state["ema"].items() if value.dim() > 1)
    state["ema"][key] = state["ema"][key][:1]


def to_double(state: dict) -> None:
    key = next(key for key, value in state["ema"].items() if value.dim() > 1)
    state["ema"][key] = state["ema"][key].double()


def make_nan(state: dict) -> None:
    key = next(key for key, value in state["ema"].items() if value.dim() > 1)
    state["ema"][key].view(-1)[3] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, ["is missing", "and 9 more"]),
        (reshape, ["instead of", "[1, "]),
        (to_double, ["float64", "instead of float32"]),
        (make_nan, ["ema.module.", "is not finite"]),
        (lambda state: state.update(ema=[1]), ["not a dict of tensors"]),
        (lambda state: state.pop("scheduler"), ["lacks scheduler"]),
        (lambda state: state["config"]["model"].update(colour=1), ["does not fit", "colour"]),
    ],
    ids=["keys", "shape", "type", "nan", "list", "part", "config"],
)
def test_what_does_not_fit_is_named(real, tmp_path, capsys, change, words):
    path = resave(real, tmp_path / checkpoint.filename(20), change)
    assert sample.main(["--ckpt", str(path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_the_untouched_content_is_taken(real, tmp_path):
    """The control of the test above."""
    checkpoint.load(resave(real, tmp_path / "same.pt", lambda _: None))


def test_auto_passes_over_a_damaged_checkpoint_and_keeps_it():
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        old, new = checkpoints(where).values()
        new.write_bytes(flip(new.read_bytes()[:-100], random.Random(0)))
        ended = run(where, AGAIN)
        assert ended.code == 0, ended.err
        assert "step_00000010.pt is damaged: going on from" in ended.err
        assert "Resuming after step 5" in ended.out
        assert new.with_name("step_00000010.pt.corrupt").exists()
        assert newest(where)["step"] == 20
        assert old.name == "step_00000005.pt"


def test_only_damaged_ones_are_an_error_again_and_again_and_a_named_one_too():
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        for path in checkpoints(where).values():
            path.write_bytes(path.read_bytes()[:-1000])
        names = sorted(checkpoints(where))
        for _ in range(2):
            ended = run(where, AGAIN)
            assert ended.code == 2
            assert "none of the 2 checkpoints" in ended.err
        named = str(checkpoints(where)[10])
        assert run(where, ["--resume", named, "--device", "cpu"]).code == 2
        assert sorted(checkpoints(where)) == names
        assert not (where / "Logs_Checkpoints/Inference/version_1").exists()


def test_the_order_is_that_of_steps_and_not_of_the_clock():
    with folder() as where:
        for version, steps in ((2, (5, 10)), (10, (3,))):
            for step in steps:
                path = where / f"checkpoints/version_{version}" / checkpoint.filename(step)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("")
                os.utime(path, (10**9 - 1000 * step, 10**9 - 1000 * step))
        (where / "checkpoints/version_11").mkdir()
        assert checkpoint.find("latest", where).parent.name == "version_10"
        folder_2 = where / "checkpoints/version_2"
        assert checkpoint.find(str(folder_2), where).name == checkpoint.filename(10)
