"""What each head of a model attends to in one row of tokens."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from llcjax.plots.style import new_figure, plain


def plot_attention(pictures: xr.Dataset) -> Figure:
    """Draw the attention of every head: one row of panels a layer, darker where a token (down) looks more (across).

    Args:
        pictures: ``attention`` (layer, head, token, key), and the attribute ``words``, what the tokens say.
    """
    attention = pictures["attention"].transpose("layer", "head", "token", "key")
    num_layers, num_heads, length, _ = attention.shape
    figure, grid = new_figure(num_layers, num_heads, height=0.5 + 9.6 / num_heads * num_layers)
    words = [plain(str(word).strip() or " ") for word in pictures.attrs["words"]]
    for place, axes in enumerate(grid):
        layer, head = divmod(place, num_heads)
        axes.imshow(attention[layer, head], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.set_title(f"{layer + 1}:{head + 1}", fontsize=8.5)
        axes.set_xticks([])
        axes.set_yticks(range(length) if head == 0 else [], words if head == 0 else [], fontsize=3.5)
    return figure
