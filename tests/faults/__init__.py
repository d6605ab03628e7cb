"""Breaks trainings and sweeps in every way that a machine does, and counts what is lost.

`python -m tests.faults` tries every fault and writes `results.json` and the table of the README;
`tests/test_faults.py` tries each a few times.
"""
