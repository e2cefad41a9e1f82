"""How figures look and where they go.

A figure is a function `draw(width in inches) -> matplotlib Figure`. `save` calls it for the full width of a page
(7 in) and for a column (3.4 in), and writes NAME.png, NAME.pdf, NAME-column.png, NAME-column.pdf, the drawn numbers
as NAME.csv, and NAME.json with the caption and the settings. Text is never smaller than 7 pt.

The functions `plot…(args)` of this room take the arguments of plot_tsne.py and return what `save` wants: (name, draw,
caption, rows of data, settings).
"""
import json
from textwrap import fill

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath

from wren import cli

WIDTHS = {"": 7.0, "-column": 3.4}  # inches
SIZE = 7  # pt
LINE = 1.25 * SIZE / 72  # inches between two lines of text
# Okabe and Ito's palette, which people with any colour vision can tell apart, the strongest on white first; beyond
# eight classes the shape of the marker changes: 80 looks
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
MARKERS = "o^sDvPX<>p"
LOOKS = len(COLOURS) * len(MARKERS)
GREY = "#8C8C8C"
STYLE = {
    "font.size": SIZE, "axes.titlesize": SIZE, "axes.labelsize": SIZE, "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE, "legend.fontsize": SIZE, "axes.linewidth": 0.6, "lines.linewidth": 1.0,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "image.cmap": "gray_r", "image.interpolation": "nearest",
    "pdf.fonttype": 42, "savefig.dpi": 300, "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03}


def page(width, height, caption, handles=()):
    """(figure, its part for the panels): panels of `height` inches, a legend of `handles` below, then the caption."""
    # textwrap counts characters, so lines hold what the average one leaves room for, less 5 % for wide ones
    text = fill(caption, int(0.95 * (width - 0.1) / (inches(caption) / len(caption)))).splitlines()
    widest = max((inches(handle.get_label()) for handle in handles), default=1.0) + 0.275  # the marker and the gaps
    columns = max(1, min(len(handles), int(width / widest)))
    legend = LINE * 1.02 * -(-len(handles) // columns) + 0.08 if handles else 0.001
    heights = [height, legend, LINE * len(text) + 0.08]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    body, low, foot = figure.subfigures(3, 1, height_ratios=heights, hspace=0)
    if handles:
        low.legend(handles=handles, loc="center", ncols=columns, frameon=False, handlelength=1.4, columnspacing=1.0,
                   handletextpad=0.4, labelspacing=0.15, borderpad=0)
    foot.text(0.05 / width, 1 - 0.02 / heights[2], "\n".join(text), va="top", ha="left", linespacing=1.2)
    return figure, body


def across(count, width):
    """How many of so many panels stand side by side: on a full page three or four, whichever leaves fewer holes."""
    return min(count, 2 if width < 5 else min(4, 3, key=lambda n: -count % n))


def panels(width, count, height, caption, handles=(), **kwargs):
    """(figure, axes of panels of `height` inches, row by row): a `page` of equal panels."""
    columns = across(count, width)
    rows = -(-count // columns)
    figure, body = page(width, height * rows, caption, handles)
    axes = body.subplots(rows, columns, squeeze=False, **kwargs).flatten()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def inches(text):
    """Printed width of a line of text."""
    return TextToPath().get_text_width_height_descent(text, FontProperties(size=SIZE), ismath=False)[0] / 72


def shortened(label, most=28):
    """A label that leaves room for others: its beginning and its end."""
    tail = most // 3
    return label if len(label) <= most else f"{label[:most - 1 - tail]}…{label[-tail:]}"


def look(k):
    """Colour and marker of class k; classes beyond the 80th are grey points."""
    if k >= LOOKS:
        return {"color": GREY, "marker": "."}
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k // len(COLOURS)]}


def handle(label, **looks):
    """A legend entry."""
    return Line2D([], [], **{"linestyle": "none", "markersize": 4, "markeredgewidth": 0.3, **looks}, label=label)


def save(draw, out, name, caption, rows, about):
    """Write a figure at both widths into folder `out`, its numbers (rows: list of dicts with the same keys) and what it
    is (about: plain values). Returns the path of the full-width PNG. Each file appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix, width in WIDTHS.items():
        with matplotlib.rc_context(STYLE):
            figure = draw(width)
            figure.draw_without_rendering()  # the next layout then knows how far labels reach
            for kind in ("png", "pdf"):
                with cli.replacing(out / f"{name}{suffix}.{kind}", "wb") as file:
                    figure.savefig(file, format=kind)
                figure.set_layout_engine("none")  # both files get the same
    cli.write_table(out / f"{name}.csv", list(rows[0]), [row.values() for row in rows])
    about = cli.plain({"caption": caption, **about})
    cli.write_text(out / f"{name}.json", json.dumps(about, indent=1, ensure_ascii=False))
    return out / f"{name}.png"
