"""Choosing hyperparameters: a grid as one sweep, a judgement on each setting, and one setting recommended.

A setting is *sound* at a checkpoint if its chains survive, agree with each other, and stay local: the loss rises by at
most a fifth of the way from L(w*) to chance. A plateau in a hyperparameter is a pair of neighboring sound settings
whose LLCs are the same (`llcjax.sensitivity.same_llc`). What is asked of the recommended setting, at every trained
checkpoint (L(w*) below 0.9 of chance):

1. It is sound, and lies on a plateau in step size: otherwise the number belongs to the step size, not to the network.
2. Among those, in this order: fewest checkpoints at which the chains walk downhill; fewest at which the localisation
   alone holds them, so that their loss rises nearly as that of draws from its prior; a plateau in localization at as
   many checkpoints as any other; the smallest localization, which looks farthest; the smallest relative error.

With a target acceptance (`llcjax.calibrate.warmup`) only step sizes that have it are recommended.

The localization is part of what is measured, so a plateau in it is wished for and not demanded; the reasons say
whether there is one.
"""

from llcjax.calibrate.bracket import Bracket
from llcjax.calibrate.criteria import CRITERIA, LIFT_LIMIT, judge_settings
from llcjax.calibrate.looks import anchor_losses, spread_checkpoints
from llcjax.calibrate.recommend import describe, recommend
from llcjax.calibrate.run import Calibration, calibrate
from llcjax.calibrate.warmup import WarmUp

__all__ = [
    "CRITERIA",
    "LIFT_LIMIT",
    "Bracket",
    "Calibration",
    "WarmUp",
    "anchor_losses",
    "calibrate",
    "describe",
    "judge_settings",
    "recommend",
    "spread_checkpoints",
]
