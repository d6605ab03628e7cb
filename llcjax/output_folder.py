"""An output folder takes one run at a time, and a disk that takes no more gets one sentence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
from collections.abc import Generator
from pathlib import Path

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def only_run(folder: Path) -> Generator[None, None, None]:
    """Holds a folder for this run, by a lock file beside it that names the process.

    The operating system holds the lock itself (flock) and drops it when the process ends, however it ends. What the
    file says decides where flock is not to be trusted: a process of another host may still be alive.

    Args:
        folder: of the output, which need not exist.

    Raises:
        RuntimeError: another run holds the folder; the sentence names its process and host.
        OSError: nothing can be written there.
    """
    path = folder.with_name(folder.name + ".lock")
    with writing_to(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(path, folder)
    try:
        with writing_to(folder):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a small file at once: whoever reads it, after whatever crash, finds the old text or the new one.

    Raises:
        OSError: nothing can be written there; what was there stays.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # runs of two parts may note the same config at once
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def in_turn(folder: Path) -> Generator[None, None, None]:
    """Waits while another process works in a folder, where the file system has locks.

    Args:
        folder: that exists.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_to(folder: Path) -> Generator[None, None, None]:
    """Says in one sentence that a disk is full or a folder is read-only.

    Raises:
        OSError: the sentence names the folder, the reason and the fix.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            fix = "make room there"
        elif error.errno in _NOT_ALLOWED:
            fix = "allow writing there, or choose another folder"
        else:
            raise
        reason = os.strerror(error.errno)
        raise OSError(f"{folder} cannot be written ({reason}); {fix}, and run again: what was done is kept.") from error


def _locked(path: Path, folder: Path) -> int:
    """The open lock file, which this process now holds."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held_elsewhere = _held(handle)
            owner = _owner(handle)
            if held_elsewhere or _may_be_alive(owner):
                raise RuntimeError(_refusal(folder, path, owner))
            # A file that its holder removed in between locks nothing.
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _held(handle: int) -> bool:
    """Takes the operating system's lock, or finds that another holds it; where there is none, the file decides."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        pid = _owner(handle).get("pid")
        return isinstance(pid, int) and _exists(pid)
    return False


def _owner(handle: int) -> dict[str, object]:
    """What the lock file says; nothing where it is empty or torn."""
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _may_be_alive(owner: dict[str, object]) -> bool:
    """Whether an owner without the operating system's lock may still run: on another host nobody can tell."""
    return owner.get("host", platform.node()) != platform.node()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _refusal(folder: Path, path: Path, owner: dict[str, object]) -> str:
    holder = f"process {owner.get('pid', 'unknown')} on {owner.get('host', platform.node())}"
    fix = f"wait for it, choose another folder, or remove {path} if that process is gone."
    return f"out={folder} is held by {holder}; {fix}"
