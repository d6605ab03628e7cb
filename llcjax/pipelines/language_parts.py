"""The parts of the language experiment that follow its first one: other settings, more chains, and the control."""

from __future__ import annotations

import dataclasses

from llcjax.config import SweepConfig
from llcjax.pipelines.experiment_config import Part
from llcjax.pipelines.language_config import LanguageExperiment

MAIN = "two_layers"
"""Name of the first part: the model, in the paper's setting where the preset is the paper's."""

CONTROL = "one_layer"
"""Name of the part that cannot copy."""

LOCAL = "calibrated"
"""Name of the part whose chains are local, on the rows and in the units of the first part."""

LOCAL_PARTS = (LOCAL, "relative", "held_out")
"""All whose chains are local."""

DIP = (3_000, 4_500, 5_500, 6_500, 7_000, 7_500, 8_000, 8_500, 9_500, 11_000, 13_500, 17_000)
"""Steps across LM2, LM3 and LM4; the LLC that was published falls by 0.8 between 6,500 and 8,500."""


_FEWEST = len(LanguageExperiment.marked_steps) + 2


def local_sweep(sweep: SweepConfig) -> SweepConfig:
    """A setting with 33 times the localization of the published one, so that chains should stay below chance.

    Its step relaxes the flattest directions in 10 steps and inflates their variances by 5%. Of six settings it alone
    was sound at both checkpoints of a short training; but it holds chains by its prior rather than by the loss:
    README.md of experiments/language.
    """
    return dataclasses.replace(
        sweep, localization=(10_000.0,), step_size=(2e-5,), num_burnin_steps=100, batch_size=32, baseline="paired"
    )


def _later(experiment: LanguageExperiment) -> LanguageExperiment:
    sweep = dataclasses.replace(
        experiment.sweep, n_beta=(30.0,), localization=(200.0,), step_size=(1e-3,), batch_size=32, baseline="paired"
    )
    return dataclasses.replace(experiment, sweep=sweep)


def _calibrated(experiment: LanguageExperiment) -> LanguageExperiment:
    return dataclasses.replace(experiment, sweep=local_sweep(experiment.sweep))


def _relative(experiment: LanguageExperiment) -> LanguageExperiment:
    # The localization and the step of the local setting at the root mean square of the weights where the local LLC of
    # the paper's model falls, 0.108 (a norm of 198 at step 8,500).
    sweep = dataclasses.replace(local_sweep(experiment.sweep), localization=(120.0,), step_size=(1.6e-3,))
    return _fewer(dataclasses.replace(experiment, sweep=sweep, coordinates="relative"), 2)


def _held_out(experiment: LanguageExperiment) -> LanguageExperiment:
    local = dataclasses.replace(experiment, sweep=local_sweep(experiment.sweep), swept_rows="held_out")
    return _fewer(local, 3)


def _dip(experiment: LanguageExperiment) -> LanguageExperiment:
    return dataclasses.replace(experiment, sweep_steps=DIP, sweep=dataclasses.replace(experiment.sweep, num_chains=20))


def _one_layer(experiment: LanguageExperiment) -> LanguageExperiment:
    return _fewer(dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, num_layers=1)), 3)


def _fewer(experiment: LanguageExperiment, divisor: int) -> LanguageExperiment:
    """As many checkpoints as show the curve."""
    count = experiment.num_checkpoints
    return dataclasses.replace(experiment, num_checkpoints=count and max(count // divisor, _FEWEST))


PARTS: dict[str, Part] = {
    "later": Part("the setting of later papers: n_beta 30, localization 200, step size 1e-3", _later, False),
    LOCAL: Part("a narrow prior, local chains", _calibrated, False),
    "relative": Part("local chains, localisation in units of each tensor's size", _relative, False),
    "held_out": Part("local chains on rows that training never saw", _held_out, False),
    "dip": Part("20 chains at 12 checkpoints across LM2 to LM4", _dip, False),
    CONTROL: Part("the control: one layer, which cannot copy", _one_layer, True),
}
