"""Seeded damage to files, of the kinds that a broken disk, a careless copy or an attacker leaves."""

import json
import math
import os
import pickle
import zipfile
from pathlib import Path

VALUES = [
    None, True, -1, 0, 1.5, 1e308, math.nan, math.inf, 10**30, 2**31, 2**62, "", "../../../../evil", "/evil", "\0",
    "x" * 5000, [], {}, [[]], {"a": {"b": []}}, [1, "a", None],
]  # fmt: skip
DEEP = "[" * 100_000
HEADERS = [
    b"\x93NUMPY\x01\x00v\x00",
    b"PK\x03\x04",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"\xff" * 8,
    b"{}",
    b"\0" * 64,
]


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def mutate(folder, random, mark):
    """Damages one random file of a folder; what was done, in words."""
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    file = files[int(random.integers(len(files)))]
    data = file.read_bytes()
    kinds = [_cut, _flipped, _zeros, _header, _huge, _twice, _pickled]
    if file.suffix == ".npz":
        kinds += [_pickled_member, _named_outside]
    if text := _json_of(data):
        kinds += [_json] * 8
    kind = kinds[int(random.integers(len(kinds)))]
    kind(file, data, random, mark, text)
    return f"{file.relative_to(folder)} {kind.__name__}"


def _json_of(data):
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _cut(file, data, random, mark, text):
    file.write_bytes(data[: int(random.integers(len(data) + 1))])


def _flipped(file, data, random, mark, text):
    data = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        if data:
            data[int(random.integers(len(data)))] ^= int(random.integers(1, 256))
    file.write_bytes(data)


def _zeros(file, data, random, mark, text):
    start = int(random.integers(len(data) + 1))
    file.write_bytes(data[:start] + bytes(len(data) - start))


def _header(file, data, random, mark, text):
    new = HEADERS[int(random.integers(len(HEADERS)))]
    file.write_bytes(new + data[len(new) :])


def _huge(file, data, random, mark, text):
    """The largest numbers where a size may be."""
    place = int(random.integers(min(len(data), 64) + 1))
    new = [b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\0\0\0\x80"][int(random.integers(4))]
    file.write_bytes(data[:place] + new + data[place + len(new) :])


def _twice(file, data, random, mark, text):
    file.write_bytes(data + data)


def _pickled(file, data, random, mark, text):
    file.write_bytes(pickle.dumps(Evil(mark)))


def _pickled_member(file, data, random, mark, text):
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", header + pickle.dumps(Evil(mark)))


def _named_outside(file, data, random, mark, text):
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(["../../../evil/", "/evil/", "a/../../", "//"][int(random.integers(4))] + name, content)


def _json(file, data, random, mark, text):
    """Another value, a missing, renamed or doubled name, or a hundred thousand brackets, somewhere in a JSON text."""
    places = list(_places(text))
    if not places:
        return file.write_text(json.dumps(VALUES[int(random.integers(len(VALUES)))]))
    parent, key = places[int(random.integers(len(places)))]
    what = ["value", "value", "value", "gone", "renamed", "doubled", "deep"][int(random.integers(7))]
    if what in ("renamed", "doubled", "gone") and not isinstance(parent, dict):
        what = "value"
    if what == "value":
        parent[key] = VALUES[int(random.integers(len(VALUES)))]
    elif what == "gone":
        del parent[key]
    elif what == "renamed":
        parent["../../evil"] = parent.pop(key)
    elif what == "doubled":
        parent["@@"] = VALUES[int(random.integers(len(VALUES)))]
        return file.write_text(json.dumps(text).replace('"@@"', json.dumps(key)))
    else:
        parent[key] = "@@"
        return file.write_text(json.dumps(text).replace('"@@"', DEEP))
    return file.write_text(json.dumps(text))


def _places(node):
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(value)
