"""Figures of a sweep: one function a figure, each returns a ``matplotlib.figure.Figure``.

Nothing here touches ``pyplot`` or ``rcParams``, so figures can be made in any thread and without a display;
save one with ``figure.savefig(path)``. Colours are those of Okabe and Ito (2008), told apart by readers with
any common colour blindness, and marker shapes repeat what colours say. Training steps are on a logarithmic
axis that has room for step 0, but for ``plot_beside``.
"""

from matplotlib.figure import Figure

from llcjax.plots.attention import plot_attention
from llcjax.plots.beside import plot_beside
from llcjax.plots.calibration import plot_health_maps, plot_llc_maps, plot_sensitivity
from llcjax.plots.curvature import plot_curvature
from llcjax.plots.curve import plot_curve, plot_positions, plot_settings, plot_slope
from llcjax.plots.health import plot_health, plot_mean_loss
from llcjax.plots.metrics import plot_metrics
from llcjax.plots.path import plot_path
from llcjax.plots.regimes import plot_regimes
from llcjax.plots.responses import (
    plot_components,
    plot_components_of_variance,
    plot_free_energy,
    plot_matrix,
    plot_susceptibilities,
    plot_temperature,
)
from llcjax.plots.traces import plot_running_llc, plot_traces

__all__ = [
    "Figure",
    "plot_attention",
    "plot_beside",
    "plot_components",
    "plot_components_of_variance",
    "plot_curvature",
    "plot_curve",
    "plot_free_energy",
    "plot_health",
    "plot_health_maps",
    "plot_llc_maps",
    "plot_matrix",
    "plot_mean_loss",
    "plot_metrics",
    "plot_path",
    "plot_positions",
    "plot_regimes",
    "plot_running_llc",
    "plot_sensitivity",
    "plot_settings",
    "plot_slope",
    "plot_susceptibilities",
    "plot_temperature",
    "plot_traces",
]
