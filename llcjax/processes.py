"""Several processes that share one sweep: each runs its own part of the groups on its own devices.

Chains never talk to each other, so neither do the processes: no array spans two of them, and a compiled step holds no
collective. They meet only at the start and the end of a step of the pipeline, and in the store, where each writes its
own chunks; its folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np

from llcjax import _compat
from llcjax.interrupt import Interrupted, Preempted, Terminated

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables that say who takes part, where no scheduler does."""
_DONE, _PREEMPTED, _FAILED = range(3)


def launched_by_slurm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `srun` started this process as one of several.

    Example:
        >>> launched_by_slurm({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4"})
        True
        >>> launched_by_slurm({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})  # a batch script, not yet a step
        False
    """
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Makes this process one of several; call it before anything touches a device.

    Who takes part comes from the variables `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or else from the scheduler, as far as jax knows it (SLURM, Open MPI, cloud TPUs, Kubernetes).

    Raises:
        ValueError: only some of the variables are set, or nothing says who takes part.
    """
    given = [name for name in (ADDRESS, COUNT, INDEX) if environment.get(name)]
    if given and len(given) < 3:
        missing = ", ".join(sorted({ADDRESS, COUNT, INDEX} - set(given)))
        raise ValueError(
            f"{' and '.join(given)} is set, but {missing} is not; set all three, or none under a scheduler."
        )
    try:
        if given:
            jax.distributed.initialize(environment[ADDRESS], int(environment[COUNT]), int(environment[INDEX]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"processes cannot meet ({str(error).splitlines()[0]}); start them with srun, or set {ADDRESS} (host:port "
            f"of process 0), {COUNT} and {INDEX} in each."
        ) from error


def is_first() -> bool:
    """Whether this is the process that does what only one may do; true where there is only one."""
    return jax.process_index() == 0


def together(action: Callable[[], object]) -> None:
    """Runs an action in every process; each goes on when all are done.

    Raises:
        Interrupted: another process failed or died, so that nobody waits for it for ever (`Preempted` where SIGTERM
            stopped it, so that all end with the same exit code); what this one raises comes first.
    """
    if jax.process_count() == 1:
        action()
        return
    try:
        action()
    except BaseException as error:
        with contextlib.suppress(Interrupted):
            _worst(_PREEMPTED if isinstance(error, Preempted | Terminated) else _FAILED)
        raise
    worst = _worst(_DONE)
    if worst != _DONE:
        raise (Preempted if worst == _PREEMPTED else Interrupted)("another process stopped; it says why")


def _worst(own: int) -> int:
    """How the process that fared worst ended."""
    try:
        return _compat.most_of_processes(own)
    except (ValueError, RuntimeError) as error:  # which of them depends on how the network noticed
        raise Interrupted(f"another process died ({str(error).splitlines()[0]}); what this one did is kept") from error


def first_alone(action: Callable[[], object]) -> None:
    """Runs an action in the first process, while the others wait for its end."""
    together(lambda: action() if is_first() else None)


def own_part(count: int) -> np.ndarray:
    """The part of `range(count)` that is this process's, a stretch without gaps.

    Example:
        >>> own_part(3).tolist()
        [0, 1, 2]
    """
    return np.array_split(np.arange(count), jax.process_count())[jax.process_index()]
