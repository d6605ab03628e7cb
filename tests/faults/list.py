"""Every fault, with how often it is tried in all and in the quick tests."""

import functools

from tests.faults import files, kills, many, resources

FAULTS = {
    "killed sweeps": (functools.partial(kills.killed, "sweep"), 50, 3),
    "killed trainings": (functools.partial(kills.killed, "training"), 50, 3),
    "preempted sweeps": (functools.partial(kills.preempted, "sweep"), 10, 1),
    "preempted trainings": (functools.partial(kills.preempted, "training"), 10, 1),
    "torn chunks": (files.torn_chunks, 200, 4),
    "torn states": (files.torn_states, 40, 2),
    "torn segments": (files.torn_segments, 100, 2),
    "half-written steps": (files.half_written_steps, 20, 2),
    "torn banks": (files.torn_banks, 40, 2),
    "locks": (files.locks, 20, 5),
    "second runs": (files.second_runs, 4, 1),
    "full disks": (resources.full_disks, 40, 2),
    "read-only folders": (resources.read_only_folders, 4, 1),
    "out of memory": (resources.out_of_memory, 5, 1),
    "broken runs": (resources.broken_runs, 12, 3),
    "hung devices": (resources.hung_devices, 5, 1),
    "many launches": (resources.memory, 1000, 100),
    "processes": (many.equal_to_one, 2, 1),
    "dead processes": (many.one_dies, 20, 1),
    "other devices": (many.other_devices, 10, 1),
}
