"""All that is promised of a GPU, measured by one command: right, fast, good, in this order.

python -m benchmarks.on_gpu --minutes 25 --data-root datasets   # what is not done yet; then a table
python -m benchmarks.on_gpu --rehearse --out /tmp/rehearsal     # all of it, tiny, on a CPU
python -m benchmarks.on_gpu --table                             # of what is done

Every item runs in a process of its own and is written to OUT/ITEM.json as soon as it is known; an
item that has its file is not measured again, unless it failed. What would not end within the
minutes is not begun, or is stopped: the same command goes on there, with trainings in the middle.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.gpu_items import ITEMS, Found, Setting
from benchmarks.gpu_report import table
from config import Parser
from utils.devices import pick_device
from utils.errors import InputError

RESULTS = Path(__file__).parent / "results" / "gpu"
TOLD = 2000  # characters of what a failed item printed last


@dataclass(frozen=True)
class Args:
    """What was typed."""

    minutes: float
    device: str
    data_root: str
    out: Path
    runs: Path
    rehearse: bool
    only: list[str]
    item: str | None
    table: bool

    @property
    def setting(self) -> Setting:
        """DeviceError where the device is not there."""
        device = pick_device(self.device)
        return Setting(device, self.data_root, self.out, self.runs, self.rehearse)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all done, 1: something failed or is left, 2: bad input."""
    args = parse(argv)
    if args.item:
        write(args, args.item, measured(args))
        return 0
    left = [] if args.table else run_all(args)
    print(table(results(args.out)))
    return int(bool(left))


def parse(argv: Sequence[str] | None) -> Args:
    """The command line. Without CUDA nothing but a rehearsal is begun."""
    parser = Parser(prog="on_gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0, help="at most [%(default)g]")
    parser.add_argument("--device", help="[cuda; in a rehearsal cpu]")
    parser.add_argument("--data-root", default="datasets", help="where MNIST is [%(default)s]")
    parser.add_argument(
        "--out", type=Path, help="of JSON and pictures [benchmarks/results/gpu; a temporary folder]"
    )
    parser.add_argument(
        "--runs", type=Path, help="of trainings, which take space [a temporary folder]"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny, for few steps, on a CPU")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="ITEM", help="or the start of names"
    )
    parser.add_argument("--table", action="store_true", help="print what is done; measure nothing")
    parser.add_argument("--item", choices=ITEMS, help="measure this one, in this process")
    own, _ = parser.parse(argv, [])
    if unknown := [word for word in own["only"] if not chosen([word])]:
        parser.error(f"--only: no item begins with {unknown[0]!r}; there are {', '.join(ITEMS)}")
    if not own["minutes"] > 0:
        parser.error(f"--minutes must be above 0, got {own['minutes']:g}")
    own["device"] = own["device"] or ("cpu" if own["rehearse"] else "cuda")
    temporary = Path(tempfile.gettempdir()) / ("rehearsal_on_gpu" if own["rehearse"] else "on_gpu")
    out = temporary / "out" if own["rehearse"] else RESULTS
    own["out"] = (own["out"] or out).resolve()
    own["runs"] = (own["runs"] or temporary / "runs").resolve()
    try:
        pick_device(own["device"])
    except InputError as e:
        if not own["table"]:
            parser.error(str(e))
    return Args(**own)


def chosen(only: Sequence[str]) -> list[str]:
    """The items that begin with one of the words; all without words."""
    return [name for name in ITEMS if not only or name.startswith(tuple(only))]


def run_all(args: Args) -> list[str]:
    """Measure what is not done, within the minutes; the items that failed or are left."""
    ends, pace, left = time.monotonic() + 60 * args.minutes, Pace(), []
    todo = [name for name in chosen(args.only) if not done(args, name)]
    for at, name in enumerate(todo):
        own, rest = pace.seconds([name]), pace.seconds(todo[at:])
        say(f"[{at + 1}/{len(todo)}] {name}: about {own:.0f} s; with the rest {rest / 60:.0f} min")
        remaining = ends - time.monotonic()
        if own > remaining:
            say(f"  does not fit into the {remaining:.0f} s that are left")
            left.append(name)
            continue
        began = time.monotonic()
        failure = run_item(args, name, remaining)
        pace.note(name, time.monotonic() - began)
        if failure is not None:
            left.append(name)
            say(f"  {failure.splitlines()[-1]}")
    return left


class Pace:
    """How long items take, from those that were measured in this call."""

    def __init__(self) -> None:
        self.guessed, self.taken = 0.0, 0.0

    def note(self, name: str, seconds: float) -> None:
        self.guessed += ITEMS[name].seconds
        self.taken += seconds

    def seconds(self, names: Sequence[str]) -> float:
        """Of these items."""
        return sum(ITEMS[name].seconds for name in names) * (
            self.taken / self.guessed if self.guessed else 1
        )


def run_item(args: Args, name: str, seconds: float) -> str | None:
    """In a process of its own, at most so many seconds; why there is no result, None if there is.

    One that failed leaves a file that says so, and is tried again by the next call; one that was
    stopped leaves none.
    """
    environment = dict(os.environ)
    if args.rehearse:
        environment["TORCH_COMPILE_DISABLE"] = "1"  # each network would take a minute
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with group(command_of(args, name), environment, log) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return "stopped: the minutes are over"
        log.seek(0)
        told = log.read()[-TOLD:].strip() or f"exit code {code}"
    if code == 0:
        found = json.loads(path_of(args.out, name).read_text())
        return "failed: see its file" if found["failed"] else None
    write(args, name, {"failed": True, "rehearsal": args.rehearse, "found": told})
    return told


def command_of(args: Args, name: str) -> list[str]:
    """This script, for one item."""
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--item", name, "--device", args.device]
    command += ["--data-root", os.path.abspath(args.data_root)]
    command += ["--out", str(args.out), "--runs", str(args.runs)]
    return command + ["--rehearse"] * args.rehearse


@contextmanager
def group(
    command: Sequence[str], environment: Mapping[str, str], log: Any
) -> Iterator[subprocess.Popen]:
    """A process that is killed at the end of ``with``, and with it all that it started."""
    process = subprocess.Popen(
        command, cwd=measure.ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measured(args: Args) -> Found:
    """What the item of this process finds, how long it took, and where."""
    setting, began = args.setting, time.monotonic()
    setting.out.mkdir(parents=True, exist_ok=True)
    found = ITEMS[args.item].work(setting)
    return {
        "failed": found.get("exit_code", 0) != 0,
        "seconds": round(time.monotonic() - began, 1),
        "rehearsal": args.rehearse,
        "found": found,
        "hardware": measure.hardware(setting.device),
    }


def path_of(out: Path, name: str) -> Path:
    """The file of an item."""
    return out / f"{name}.json"


def write(args: Args, name: str, content: dict[str, Any]) -> None:
    """Write the file of an item."""
    measure.write(path_of(args.out, name), content)


def done(args: Args, name: str) -> bool:
    """Whether the item has its file, and did not fail; a rehearsal is not the real thing."""
    path = path_of(args.out, name)
    if not path.exists():
        return False
    known = json.loads(path.read_text())
    return not known["failed"] and known["rehearsal"] == args.rehearse


def results(out: Path) -> dict[str, dict[str, Any]]:
    """What is in the files, by item."""
    files = {name: path_of(out, name) for name in ITEMS}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def say(line: str) -> None:
    """Print at once, as the item may be killed."""
    print(line, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end the item
    sys.exit(main())
