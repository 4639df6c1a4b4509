"""The drawing of docs/hierarchical.md: three levels of cells, and what happens in a coordinate.

python docs/examples/hierarchical.py
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from learned_optim import write_atomically

FILE = Path(__file__).parents[1] / "hierarchical.png"
TENSORS = {"weight": (1.3, 4), "bias": (4.0, 2), "weight ": (6.7, 4)}
"""The middle of each tensor, and of how many coordinates it is drawn."""
COORDINATE, TENSOR, NETWORK = "#dfe9f5", "#c3d7ee", "#9dbfe3"
UP, DOWN, PLAIN = "#1f6f3f", "#b5482a", "#404040"


def box(axes: Axes, x: float, y: float, text: str, *, width: float, height: float = 0.62, color: str = "white") -> None:
    """A box around (x, y)."""
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=color,
        edgecolor=PLAIN,
        linewidth=0.9,
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], *, color: str = PLAIN, bend: float = 0.0
) -> None:
    """An arrow; those that carry biases down are dashed."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            color=color,
            linewidth=1.2,
            linestyle=(0, (4, 2)) if color == DOWN else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=1,
        )
    )


def levels(axes: Axes) -> None:
    """A network of three tensors: means go up, biases go down."""
    box(axes, 4.0, 6.6, "network cell N, 20 units", width=2.9, color=NETWORK)
    for i, (name, (x, count)) in enumerate(TENSORS.items()):
        box(axes, x, 3.9, "tensor cell T, 20", width=1.95, color=TENSOR)
        side = (i - 1) * 0.75
        arrow(axes, (x + 0.2, 4.21), (4.0 + side + 0.2, 6.29), color=UP)
        arrow(axes, (4.0 + side - 0.2, 6.29), (x - 0.2, 4.21), color=DOWN)
        first = x - 0.3 * (count - 1)
        for k in range(count):
            at = first + 0.6 * k
            box(axes, at, 1.3, "h", width=0.46, height=0.5, color=COORDINATE)
            spread = 0.35 * (at - x)
            arrow(axes, (at + 0.07, 1.55), (x + spread + 0.07, 3.59), color=UP)
            arrow(axes, (x + spread - 0.07, 3.59), (at - 0.07, 1.55), color=DOWN)
            arrow(axes, (at, 0.62), (at, 1.05))
        axes.text(x, 0.32, f"inputs x of a {name.strip()}", ha="center", fontsize=9)
    last = TENSORS["weight "][0] + 0.9
    arrow(axes, (5.45, 6.6), (last + 0.23, 1.3), color=DOWN, bend=-0.45)
    for x, y, text, color in (
        (2.86, 2.9, "mean of [h', x]\nover coordinates", UP),
        (4.98, 4.75, "mean of T'\nover tensors", UP),
        (5.35, 2.55, "biases\nB T", DOWN),
        (1.7, 5.4, "biases\nD N", DOWN),
        (9.05, 4.6, "biases\nC N, to\nevery\ncoordinate", DOWN),
    ):
        axes.text(x, y, text, color=color, fontsize=8.5, ha="center", va="center")
    axes.text(-0.1, 1.3, "10\nunits", fontsize=8.5, ha="right", va="center")
    axes.set_title("Three levels", fontsize=11)
    axes.set_xlim(-0.7, 9.9)


def coordinate(axes: Axes) -> None:
    """From the gradient of one coordinate to its update."""
    wide = 4.9
    rows = [
        (6.6, "gradient g", 1.9, "white"),
        (5.55, "averages over 4 times, each doubling: $a_k$, $v_k$", wide, "white"),
        (
            4.35,
            "$s_k = $asinh$(a_k / \\sqrt{v_k})$,  $s_k s_{k+1}$,\nrelative log $v_k$,  $l$ less the network's mean",
            wide,
            "white",
        ),
        (3.15, "coordinate cell h", wide, COORDINATE),
    ]
    for (y, text, width, color), below in zip(rows, [*rows[1:], None], strict=True):
        height = 0.86 if "\n" in text else 0.62
        box(axes, 3.0, y, text, width=width, height=height, color=color)
        if below is not None:
            room = 0.43 if "\n" in below[1] else 0.31
            arrow(axes, (3.0, y - height / 2), (3.0, below[0] + room))
    box(axes, 1.6, 1.95, "direction $\\delta$ over its\nrms in the tensor", width=2.35, height=0.86)
    box(axes, 4.5, 1.95, "log learning rate $l$,\nwith a memory", width=2.35, height=0.86)
    box(axes, 3.0, 0.62, "$u = -\\exp(l + o)\\ \\delta\\,/\\,$rms$(\\delta)$", width=wide)
    for x in (1.6, 4.5):
        arrow(axes, (x, 2.84), (x, 2.38))
        arrow(axes, (x, 1.52), (x, 0.93))
    arrow(axes, (0.55, 4.35), (0.42, 1.95), bend=0.35)
    axes.text(-0.3, 3.1, "shortcut", fontsize=8.5, ha="right", va="center", rotation=90)
    arrow(axes, (5.45, 3.15), (5.45, 5.55), bend=0.55)
    axes.text(6.3, 4.9, "decays d and s\nof the next step", fontsize=8.5, ha="left", va="center")
    arrow(axes, (5.68, 1.95), (5.45, 4.2), bend=0.6)
    axes.set_title("Within a coordinate", fontsize=11)
    axes.set_xlim(-0.9, 7.9)


def draw() -> None:
    """Writes the picture."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(10.8, 8.8))
    for axes, panel in ((left, levels), (right, coordinate)):
        panel(axes)
        axes.set_ylim(0.1, 7.1)
        axes.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    write_atomically(FILE, content.getvalue())


if __name__ == "__main__":
    draw()
