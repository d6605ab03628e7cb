"""The grids of a calibration: checked, named, swept one after the other, joined on `setting`."""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from llcjax import checks
from llcjax.config import SweepConfig

CONTROL_DRAWS = 32
"""Draws from the localisation prior at each checkpoint and localization of a grid."""


def check_configs(configs: tuple[SweepConfig, ...], target_acceptance: float | None) -> None:
    """Refuses grids that cannot be joined.

    Raises:
        ValueError: the sentence names what differs or is missing.
    """
    if not configs:
        raise ValueError("config is empty; give at least one SweepConfig.")
    for config in configs:
        checks.instance("config", config, SweepConfig, "a SweepConfig, or several")
    samplers = [config.sampler for config in configs]
    if len(set(samplers)) < len(samplers):
        raise ValueError(f"config names a sampler twice ({', '.join(samplers)}); give one config for each sampler.")
    for name in ("num_chains", "num_draws", "num_burnin_steps", "num_steps_between_draws"):
        if len({getattr(config, name) for config in configs}) > 1:
            raise ValueError(f"the configs differ in {name}; sweeps that are joined must have the same counts.")

    if target_acceptance is None:
        return
    if not 0 < checks.number("target_acceptance", target_acceptance, "between 0 and 1, such as 0.9") < 1:
        raise ValueError(f"target_acceptance={target_acceptance:g} must be between 0 and 1, such as 0.9.")
    if "sgld" not in samplers:
        raise ValueError(
            f"target_acceptance={target_acceptance:g} is for sgld, but config has {', '.join(samplers)}; leave it out."
        )


def with_measures(config: SweepConfig) -> SweepConfig:
    """The config with what a judgement wants beside the chains, where they do not have it.

    That is the acceptance of a few dozen moves a chain, where the sampler is SGLD, and the loss of draws from the
    localisation prior, where there is one.
    """
    every = max(config.num_draws // 20, 1) if config.sampler == "sgld" else 0
    control = CONTROL_DRAWS if min(config.localization) > 0 else 0
    return dataclasses.replace(
        config,
        acceptance_every=config.acceptance_every or every,
        num_control_draws=config.num_control_draws or control,
    )


def grid_name(config: SweepConfig, warmed: bool) -> str:
    """A store for each grid; those of a warm-up have values that another target would change."""
    if not warmed or config.sampler != "sgld":
        return f"grid_{config.sampler}"
    values = (config.n_beta[0], config.localization[0], config.step_size[0])
    return "_".join(["grid", config.sampler, *(f"{value:.6g}" for value in values)])


def joined(parts: list[xr.Dataset], configs: tuple[SweepConfig, ...]) -> xr.Dataset:
    """Sweeps, or their estimates, one after the other on `setting`, with the sampler of each setting.

    `step_level` is the place of a step size among those of its grid: step sizes of one level belong together where a
    warm-up found other ones for each localization.
    """
    named = [
        part.assign_coords(
            sampler=("setting", np.full(part.sizes["setting"], config.sampler)),
            step_level=("setting", np.searchsorted(np.unique(config.step_size), part["step_size"].values)),
        )
        for part, config in zip(parts, configs, strict=True)
    ]
    if len(named) == 1:
        return named[0]
    shared = set.intersection(*({str(name) for name in part.data_vars} for part in named))
    names = [str(name) for name in named[0].data_vars if name in shared]
    with_setting = [name for name in names if "setting" in named[0][name].dims]
    grown = xr.concat(
        [part[with_setting].load() for part in named], "setting", join="exact", coords="minimal", compat="override",
        combine_attrs="override",
    )  # fmt: skip
    rest = named[0][[name for name in names if name not in with_setting]]
    return grown.assign_coords(setting=np.arange(grown.sizes["setting"])).merge(rest).assign_attrs(named[0].attrs)


def config_of(configs: tuple[SweepConfig, ...], table: xr.Dataset, setting: int) -> SweepConfig:
    """The config of one setting of a joined table."""
    one = table.isel(setting=setting)
    base = next(config for config in configs if config.sampler == str(one["sampler"].item()))
    values = {name: (float(one[name]),) for name in ("n_beta", "localization", "step_size")}
    return dataclasses.replace(base, **values)
