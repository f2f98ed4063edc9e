"""Log folders as training and evaluate.py leave them, made without training."""

import json
import math
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from config import Config

LAYERS = """| layer | output (C x H x W) | parameters | MFLOPs per image |
| --- | --- | ---: | ---: |
| stem | 8 x 14 x 14 | 296 | 0.1 |
| total | 1 x 28 x 28 | 40,321 | 2.5 |"""
ROW = {"steps": 12, "nfe": 18, "fid_classifier@600": 1.5, "precision@600": 0.75}
FLOOR = {"fid_classifier@600": 0.25, "precision@600": 0.875}


def validation(step: int) -> dict:
    """A line of history.jsonl; scores at every second one."""
    loss = 0.1 + math.exp(-step / 300)
    line = {"step": step, "seconds": step / 4, "train": loss, "held_out": loss + 0.01}
    line |= {"held_out_raw": loss + 0.02, "held_out_by_t": [loss / 4, loss / 2, loss, loss * 2]}
    line |= {"images_per_s": 128.0, "memory_gib": 0.5}
    if step % 200 == 0:
        line["score"] = {"fid_classifier": 30 * loss, "precision": 0.75, "recall": 0.5}
    return line


def write_run(root: Path, number: int = 0, name: str = "", **settings: object) -> Path:
    """The log folder of a run of 400 steps with these settings."""
    logs = root / "Inference" / f"version_{number}"
    logs.mkdir(parents=True)
    write_history(logs, map(validation, range(100, 401, 100)))
    of = {"checkpoint": "a.pt", "step": 400, "weights": "ab", "num": 600, "seed": 0}
    of["another_checkpoint"] = False
    content = {
        "run.json": {
            "name": name,
            "preset": "mnist",
            "changed": {"--lr": "0.5"},
            "class_names": ["cat", "dog"],
            "data": ["pets: 90 training images", "2 classes: cat 45, dog 45"],
            "layers": LAYERS,
            "status": "finished",
            "step": 400,
            "total_steps": 400,
        },
        "config.json": asdict(Config().override(**settings)),
        "environment.json": {"command": "train.py --lr 0.5", "git": "0123456789ab", "gpu": "none"},
        "metrics.json": {
            "scores": {
                "of": of,
                "rows": {"ddpm:12": ROW, "real train images": FLOOR},
                "std": {"real train images": {"fid_classifier@600": 0.03125}},
            },
            "held_out": {"of": of, "all": {"loss": 0.125, "se": 0.001}},
            "bits_per_dim": {"of": of, "12 steps": {"beta": {"total": 3.5}}},
            "memorization": {"of": of, "verdict": "no sign of it", "pixels": {"median": 5.0}},
        },
    }
    for file, values in content.items():
        (logs / file).write_text(json.dumps(values))
    for step in (100, 200, 300, 400):
        Image.new("RGB", (62, 32), (step // 2, 0, 0)).save(logs / f"samples_{step:08d}.png")
    for picture in ("data", "reverse_process", "nearest_pairs"):
        Image.new("RGB", (30, 30)).save(logs / f"{picture}.png")
    return logs


def write_history(logs: Path, lines) -> None:
    """history.jsonl of these validations."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (logs / "history.jsonl").write_text(text)


def change(path: Path, **values: object) -> None:
    """Replace values of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
