"""Charts of scores: ages told and read, errors by change, and samples side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cftools.score.adherence import Looked
from cftools.score.table import Score
from cftools.slices import to_ras
from cftools.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which are told apart whatever one's eyes see.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: Samples of each set that are shown.
SAMPLES = 6


def ages(looked: Mapping[str, Sequence[Looked]]) -> Figure | None:
    """The age that each image should show against the age that is read off it, by set; None without any."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    shown = False
    for (name, images), colour in zip(looked.items(), _colours(len(looked)), strict=True):
        pairs = [(one.told.get("age"), one.read.get("age")) for one in images]
        known = [(told, read) for told, read in pairs if isinstance(told, float) and isinstance(read, float)]
        if known:
            told, read = zip(*known, strict=True)
            axes.scatter(told, read, s=14, alpha=0.7, color=colour, linewidths=0, label=name)
            shown = True
    if not shown:
        return None
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="age asked for, years", ylabel="age read off the image, years", xlim=(0, 105), ylim=(0, 105))
    axes.set_aspect("equal")
    _finish(axes)
    return figure


def errors(scores: Sequence[Score], metric: str, label: str) -> Figure | None:
    """One metric by change and set, with its intervals; None where no set has it for several changes."""
    from matplotlib.figure import Figure

    rows = [one for one in scores if one.metric == metric]
    settings = list(dict.fromkeys(one.setting for one in rows))
    methods = list(dict.fromkeys(one.method for one in rows))
    if len(settings) < 2:
        return None
    figure = Figure(figsize=(1.6 + 0.75 * len(settings), 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for number, (method, colour) in enumerate(zip(methods, _colours(len(methods)), strict=True)):
        mine = [one for one in rows if one.method == method]
        places = [settings.index(one.setting) + 0.5 * (number - (len(methods) - 1) / 2) / len(methods) for one in mine]
        values = np.array([one.ours for one in mine])
        ends = np.array([[one.low, one.high] for one in mine])
        away = np.abs(np.nan_to_num(ends - values[:, None]))
        axes.errorbar(places, values, yerr=away.T, fmt="o", markersize=4, capsize=2, color=colour, label=method)
        nothing = [(place, one.nothing) for place, one in zip(places, mine, strict=True) if not math.isnan(one.nothing)]
        if nothing:
            across, up = zip(*nothing, strict=True)
            axes.scatter(across, up, marker="_", s=80, color=colour, alpha=0.5)
    axes.set_xticks(range(len(settings)), settings, rotation=30, ha="right", fontsize=8)
    axes.set(ylabel=label)
    axes.set_ylim(bottom=0)
    if any(not math.isnan(one.nothing) for one in rows):
        axes.set_title("a dash: doing nothing", fontsize=8, color="0.35", loc="right")
    _finish(axes)
    return figure


def samples(sets: Mapping[str, Sequence[Volume]]) -> Figure:
    """An axial slice through the middle of the brain of the first images of each set, a row a set."""
    from matplotlib.figure import Figure

    columns = max(len(images) for images in sets.values())
    figure = Figure(figsize=(1.3 * columns + 0.3, 1.6 * len(sets) + 0.1), facecolor="white")
    panels = figure.subplots(len(sets), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.06})
    figure.subplots_adjust(left=0.3 / (1.3 * columns + 0.3), right=0.995, bottom=0.01, top=0.99)
    for row, (name, images) in zip(panels, sets.items(), strict=True):
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, volume in zip(row, images, strict=False):
            array, affine = to_ras(volume.array, volume.affine)
            high = float(np.percentile(array[array > 0], 99.5)) if (array > 0).any() else 1.0
            across, up, _ = np.linalg.norm(affine[:3, :3], axis=0)
            axes.imshow(_middle(array).T, origin="lower", cmap="gray", vmin=0, vmax=high, aspect=up / across)
            axes.set_facecolor("black")
        row[0].set_ylabel(name, fontsize=8)
    return figure


def _middle(array: np.ndarray) -> np.ndarray:
    """The axial slice halfway up the foreground, cut to it."""
    there = np.argwhere(array > 0)
    if not len(there):
        return array[:, :, array.shape[2] // 2]
    low, high = np.percentile(there, [0.5, 99.5], axis=0).astype(int)
    low, high = np.maximum(low - 2, 0), high + 3
    return array[low[0] : high[0], low[1] : high[1], (low[2] + high[2]) // 2]


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
    axes.legend(frameon=False, fontsize=8)
