"""Floors: a room imports rooms of lower floors only, itself aside."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"utils"},
    {"config", "data", "diffusion", "models"},
    {"training", "evaluation"},
    {"sample"},
    {"train", "evaluate", "edit"},
]
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}


def imported(source: str | bytes) -> set[str]:
    """The top-level packages that a source file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def violations(room: str, source: str | bytes) -> set[str]:
    """The rooms it imports that are not on a lower floor."""
    return {r for r in imported(source) - {room} if FLOOR.get(r, -1) >= FLOOR[room]}


def rooms() -> Iterator[tuple[str, Path]]:
    for room in FLOOR:
        for path in [*ROOT.glob(f"{room}.py"), *ROOT.glob(f"{room}/**/*.py")]:
            yield room, path


def test_rooms_import_lower_floors_only():
    assert {room for room, _ in rooms()} == FLOOR.keys()
    assert {
        str(path): found for room, path in rooms() if (found := violations(room, path.read_bytes()))
    } == {}


def test_a_violation_is_found():
    """The control."""
    assert violations("utils", "def f():\n    from data.idx import x") == {"data"}
    assert violations("models", "import torch, diffusion.gaussian") == {"diffusion"}
    assert violations("evaluation", "from training import state") == {"training"}
    assert violations("train", "import evaluate, sample, utils.files") == {"evaluate"}
    assert violations("training", "import utils.files\nfrom training.optim import Muon") == set()


# What Windows lacks, and macOS some of.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX = {"fork", "forkpty", "geteuid", "getloadavg", "getuid", "killpg", "mkfifo", "nice", "setsid"}
POSIX |= {"O_DIRECTORY", "O_NOFOLLOW", "pipe2", "posix_fadvise", "register_at_fork", "statvfs"}
POSIX |= {"sched_getaffinity", "sched_setaffinity", "sysconf", "uname", "wait4", "waitid"}
POSIX |= {"SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}
POSIX |= {"alarm"}
GUARDS = ast.Try | ast.If | ast.IfExp


def unguarded(node: ast.AST) -> Iterator[str]:
    """What other systems lack and is used outside of try and if, or below the if's condition."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, GUARDS):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in child.names]
            yield from POSIX_MODULES.intersection([*names, getattr(child, "module", None)])
        owner = child.value if isinstance(child, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in ("os", "signal") and child.attr in POSIX:
            yield child.attr
        yield from unguarded(child)


def test_nothing_is_used_unguarded_that_other_systems_lack():
    """tests/other_system.py looks whether the guards are good."""
    found = {str(path): set(unguarded(ast.parse(path.read_bytes()))) for _, path in rooms()}
    assert {path: names for path, names in found.items() if names} == {}


def test_what_is_unguarded_is_found():
    """The control."""
    use = "import os, fcntl\ndef f():\n    return 1 + os.sysconf('x')"
    assert set(unguarded(ast.parse(use))) == {"fcntl", "sysconf"}
    use = "try:\n    import fcntl\nexcept ImportError:\n    pass\nx = os.fork if y else 1"
    assert set(unguarded(ast.parse(use))) == set()


def not_required(sources: Iterable[str | bytes]) -> set[str]:
    """The packages that these sources import and requirements.txt does not name."""
    lines = (ROOT / "requirements.txt").read_text().split()
    listed = {line.partition(">=")[0] for line in lines}
    own = {*sys.stdlib_module_names, *FLOOR, "."}
    names = {name for source in sources for name in imported(source)} - own
    return {name for name in names if {"PIL": "pillow"}.get(name, name) not in listed}


def test_what_is_imported_is_required():
    """By itself, as another package may cease to bring it."""
    assert not_required(path.read_bytes() for _, path in rooms()) == set()
    assert not_required(["import os, torch, scipy.linalg\nfrom PIL import Image"]) == {"scipy"}


def test_the_root_holds_scripts_and_config_alone():
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "train",
        "sample",
        "evaluate",
        "edit",
        "config",
    }


def test_config_imports_no_torch():
    assert "torch" not in imported((ROOT / "config.py").read_bytes())


def test_init_files_only_re_export():
    for path in ROOT.glob("*/__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_bytes()).body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}, path


def test_starting_up_does_not_import_what_takes_seconds():
    slow = "{'torchvision', 'torch._dynamo', 'sympy', 'triton', 'tensorboard'}"
    code = f"import sys, train, sample, evaluate, edit; print(sorted({slow} & sys.modules.keys()))"
    command = [sys.executable, "-c", f"{code}; import sympy; {code}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, after = found.splitlines()
    assert before == "[]"
    assert "sympy" in after  # control
