"""Every fault with how often it is tried."""

import functools

from tests.faults import kills

FAULTS = {
    "killed sweeps": (functools.partial(kills.killed, "sweep"), 50),
    "killed trainings": (functools.partial(kills.killed, "training"), 50),
    "preempted sweeps": (functools.partial(kills.preempted, "sweep"), 10),
    "preempted trainings": (functools.partial(kills.preempted, "training"), 10),
}
