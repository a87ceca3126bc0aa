"""Which process does which role's work: one small file each in the data folder, checked against the living processes."""

import json
import os
from pathlib import Path
from typing import Any

import psutil

from deploy.settings import Settings


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "processes"


def enter(settings: Settings, role: str, name: str, pid: int, ports: dict[str, int]) -> None:
    """Say that this process does the role's work; replaces what was said under the same role and name."""
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"role": role, "name": name, "pid": pid, "ports": ports, "started": psutil.Process(pid).create_time()}
    draft = folder / f".{role}.{name}.{os.getpid()}"
    draft.write_text(json.dumps(entry))
    draft.replace(folder / f"{role}.{name}.json")


def leave(settings: Settings, role: str, name: str) -> None:
    (_folder(settings) / f"{role}.{name}.json").unlink(missing_ok=True)


def processes(settings: Settings) -> list[dict[str, Any]]:
    """The living processes of the platform with this data folder: role, name, pid, ports."""
    found: list[dict[str, Any]] = []
    for path in sorted(_folder(settings).glob("*.json")):
        try:
            entry = json.loads(path.read_text())
            started = entry.pop("started")
            alive = abs(psutil.Process(entry["pid"]).create_time() - started) < 1.0
        except (OSError, ValueError, KeyError, psutil.Error):
            continue
        if alive:
            found.append(entry)
    return found
