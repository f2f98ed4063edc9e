"""The star: five leaves that do not know each other, joined by scripts nobody imports.

A part joins leaves too, and is known to the scripts and parts that are named beside it.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"config", "data", "diffusion", "models", "utils"}
PARTS = {
    "prepare": {"train"},
    "report": {"train"},
    "resume": {"train", "prepare"},
    "replay": {"train"},
    "training": {"train", "prepare", "report", "replay"},
    "prove": {"train"},
    "draw": {"sample", "evaluate"},
    "judge": {"evaluate", "scores", "bound"},
    "bound": {"evaluate"},
    "scores": {"evaluate"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - LEAVES - PARTS.keys()


def imported(source: str) -> set[str]:
    """The top-level packages a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def leaf_files() -> list[Path]:
    return [ROOT / "config.py", *sorted(p for leaf in LEAVES for p in (ROOT / leaf).glob("*.py"))]


@pytest.mark.parametrize("path", leaf_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_leaves_import_only_themselves(path):
    own = path.parent.name if path.parent != ROOT else path.stem
    assert imported(path.read_text()) & (LEAVES | SCRIPTS | PARTS.keys()) <= {own}


def test_config_imports_no_torch():
    assert "torch" not in imported((ROOT / "config.py").read_text())


@pytest.mark.parametrize("script", sorted(SCRIPTS | PARTS.keys()))
def test_nothing_imports_a_script_and_only_its_own_scripts_a_part(script):
    others = imported((ROOT / f"{script}.py").read_text()) - {script}
    assert not others & SCRIPTS
    assert all(script in PARTS[part] for part in others & PARTS.keys())


def test_the_walk_sees_imports():
    assert imported("from data.x import y\nimport models.unet") == {"data", "models"}  # control


def test_init_files_only_re_export():
    for path in ROOT.glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        kinds = {type(node) for node in body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}, path


def test_starting_up_does_not_import_what_takes_seconds():
    slow = "{'torchvision', 'torch._dynamo', 'sympy', 'triton', 'tensorboard'}"
    look = f"import sys; print(sorted({slow} & sys.modules.keys()))"
    assert python(f"import train, sample; {look}") == "[]"
    assert "torchvision" in python(f"import torchvision; {look}")  # control


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
