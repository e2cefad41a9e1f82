"""How figures look and where they go: colours, legends, spectrogram axes, files.

A figure is a function `draw(width in inches) -> matplotlib Figure`. `save` calls it for the full width of a page
(7 in) and for a column (3.4 in), and writes NAME.png, NAME.pdf, NAME-column.png, NAME-column.pdf, the drawn numbers
as NAME.csv, and NAME.json with the caption and the settings. Text is never smaller than 7 pt.
"""
import json
from functools import lru_cache
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath

from wren import cli
from wren.recipes import octave_band

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


# --------------------------------------------------------------------------------------------------------- pages

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
    figure, body = page(width, height * -(-count // columns), caption, handles)
    axes = list(body.subplots(-(-count // columns), columns, squeeze=False, **kwargs).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


@lru_cache(maxsize=4096)
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


# -------------------------------------------------------------------------------------------------- spectrograms

def band(hertz, config):
    """Where a frequency in Hz lies among an encoder's bands (the centre of band k is k)."""
    if config.frontend == "octave":
        return octave_band(hertz) - 0.5
    hertz = np.array([config.f_min, config.f_max or config.sample_rate / 2, hertz])
    low, high, place = np.log1p(hertz / 700)  # HTK's mel scale
    return (place - low) / (high - low) * (config.n_mels + 1) - 1


def kilohertz(ax, config):
    """Label an axis of mel bands in kHz, at octaves that lie apart enough to be read."""
    ticks = {}
    for hertz in 1000.0 * 2.0 ** np.arange(-3, 9):
        place = band(hertz, config)
        if -0.5 <= place <= config.n_mels - 0.5 and place - max(ticks, default=-np.inf) >= config.n_mels / 9:
            ticks[place] = f"{hertz / 1000:g}"
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylabel("frequency (kHz)")


def mel_image(ax, spec, config, start=0.0, **looks):
    """Draw an encoder's spectrogram (F, T): time in s from `start`, frequency in kHz on the mel scale."""
    image = ax.imshow(spec, origin="lower", aspect="auto",
                      extent=(start, start + spec.shape[1] * config.hop, -0.5, spec.shape[0] - 0.5), **looks)
    kilohertz(ax, config)
    return image


def power_image(ax, wave, rate, start=0.0):
    """Draw a spectrogram of a wave (S,) at `rate` Hz in dB above each frequency's median over time, which flattens
    steady noise; linear frequency. White: less than 3 dB.

    The window is 25 ms, or 1024 samples of a faster recording; at most about 2000 frames, as many as can be printed.
    """
    from scipy.signal import ShortTimeFFT, get_window
    size = min(1024, max(64, round(0.025 * rate)), len(wave))
    hop = max(size // 4, len(wave) // 2000)
    power = ShortTimeFFT(get_window("hann", size), hop, rate, mfft=max(size, 512)).spectrogram(wave)  # (F, T)
    db = 10 * np.log10(power + 1e-12 * power.max() + 1e-20)
    db -= np.median(db, axis=1, keepdims=True)
    image = ax.imshow(db, origin="lower", aspect="auto", vmin=3, vmax=max(20, np.percentile(db, 99.9)),
                      extent=(start, start + power.shape[1] * hop / rate, 0, rate / 2000))
    ax.set_xlim(start, start + len(wave) / rate)
    ax.set_ylabel("frequency (kHz)")
    return image


# --------------------------------------------------------------------------------------------------------- files

def save(draw, out, name, caption, rows, about):
    """Write a figure at both widths, its numbers (rows: list of dicts with the same keys) and what it is (about:
    plain values). Returns the path of the full-width PNG. Each file appears whole or not at all."""
    out = Path(out)
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
