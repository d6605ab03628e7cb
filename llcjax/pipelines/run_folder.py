"""The folder of a run holds the config that it was made with, and takes no other."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from llcjax.config import fingerprint
from llcjax.output_folder import in_turn, write_text
from llcjax.provenance import provenance
from llcjax.store import load_dataset, save_dataset
from llcjax.untrusted import read_json, reason

Config = dict[str, Any]
_NAME = "config.json"


def load_config(folder: Path | str) -> Config:
    """The config of a run folder.

    Raises:
        ValueError: the folder holds no run.
    """
    try:
        return read_json(Path(folder) / _NAME)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no run of llcjax ({reason(error)}); make one with `llcjax run`.") from error


def claim(folder: Path, config: Config, complete: Callable[[Config], Config]) -> None:
    """Notes the config in the folder, or checks that it is the one that is there.

    Args:
        folder: of the run; made where it is missing.
        config: of the run, as JSON values.
        complete: fills in what a config of an earlier version lacks.

    Raises:
        ValueError: the folder holds another config, or a broken one.
    """
    path = folder / _NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(config, indent=1))
        return
    try:
        held = complete(read_json(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is broken ({reason(error)}); remove this file if the run has this config, and it goes on, or "
            "choose another folder."
        ) from error
    if held != config:
        name = _first_difference(held, config)
        raise ValueError(f"out={folder} holds another config ({name} differs); choose another folder or remove it.")


def check_all_but(part: str, folder: Path, config: Config, complete: Callable[[Config], Config]) -> None:
    """Checks that the folder is free, or holds a run whose config differs in one part at most.

    Raises:
        ValueError: another part differs too.
    """
    if (folder / _NAME).exists():
        claim(folder, {**config, part: complete(load_config(folder)).get(part)}, complete)


def _first_difference(held: Any, wanted: Any, name: str = "") -> str:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in sorted({*held, *wanted}):
            if held.get(key) != wanted.get(key):
                return _first_difference(held.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    return f"{name}: {held!r} there, {wanted!r} asked for,"


def kept(path: Path, identity: Any, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A small dataset from its folder, made where it is missing or was made from something else.

    Args:
        path: folder of the dataset.
        identity: JSON values that decide what is in it.
        make: makes it.
    """
    mark = fingerprint(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(path.parent):  # parts of an experiment, each in a process of its own, share what they measure
        known = load_dataset(path)
        if known is not None and known.attrs.get("fingerprint") == mark:
            return known
        made = make().assign_attrs(fingerprint=mark)
        save_dataset(made, path)
    return made


@contextlib.contextmanager
def timed(folder: Path, step: str) -> Generator[None]:
    """Adds the seconds of a step of work to `times.csv`, also where it is interrupted.

    Args:
        folder: of the run.
        step: what is done, which was not done before.
    """
    started = time.monotonic()
    try:
        yield
    finally:
        seconds, path = time.monotonic() - started, folder / "times.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = [["step", "seconds", "device"]] if new else []
            csv.writer(file).writerows([*rows, [step, f"{seconds:.1f}", provenance()["device"]]])


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes dictionaries of equal keys as CSV, numbers with six digits; nothing where there are no rows."""
    rows = list(rows)
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
