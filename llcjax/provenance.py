"""What a result came from: versions, device, source revision."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from llcjax._version import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "xarray",
    "zarr",
    "tinygp",
)


def provenance() -> dict[str, str]:
    """Versions of the packages, the Python, the devices, and the git revision where the source is a checkout."""
    facts = {"llcjax": __version__, **{name: _version(name) for name in PACKAGES}}
    devices = jax.local_devices()
    facts["python"] = platform.python_version()
    facts["device"] = f"{len(devices)} x {devices[0].device_kind}"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    revision = git_revision()
    return {**facts, "git_revision": revision} if revision else facts


def write_json(facts: Mapping[str, Any], path: Path) -> None:
    """Writes facts with their provenance, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "provenance": provenance()}, indent=1) + "\n")


def git_revision() -> str | None:
    """The revision of this source, marked `-dirty` where it was changed; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
