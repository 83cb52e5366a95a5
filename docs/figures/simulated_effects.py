"""Simulated subjects with and without each effect: python docs/figures/simulated_effects.py [NAME ...].

Writes simulated-NAME.png beside itself: lesions, diagnosis, loads, heads; all four by default. Beside the loads stands
a real scan, from $CFTOOLS_DATA: Lesjak et al. 2018, doi 10.1007/s12021-017-9348-7, CC BY.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Aged, Family, Health
from cftools.prepare import GRID_1MM, GRID_2MM, Grid, resample
from cftools.volume import Volume

BRIGHTEST = {"T1w": 1.15, "T2w": 3.0, "FLAIR": 1.8, "T1ce": 1.6}
REAL = "ms/sub-MS19/anat/sub-MS19_space-MNI152_FLAIR.nii.gz"


def family(grid: Grid, varied: bool = False) -> Family:
    return Family([template_anatomy(grid)], load_law("normative"), varied)


def sheet(rows: int, columns: int, size: float = 1.6, tall: float = 1.15) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(size * columns, size * tall * rows), layout="constrained", facecolor="black")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, hspace=0, wspace=0)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    return figure, axes


def show(axis: object, cut: np.ndarray, brightest: float, title: str = "") -> None:
    axis.imshow(np.rot90(cut), cmap="gray", vmin=0, vmax=brightest, interpolation="bilinear")
    if title:
        axis.set_title(title, color="white", fontsize=9)


def level(aged: Aged) -> int:
    """The axial slice with most lesion."""
    return int(aged.lesion_mask().sum((0, 1)).argmax())


def lesions() -> Figure:
    one = family(GRID_1MM)
    cases = [(0, "high load", Health(load="high")), (1, "stroke", Health(lesion="stroke"))]
    cases += [(3, "tumour", Health(lesion="tumour"))]
    figure, axes = sheet(len(BRIGHTEST), 2 * len(cases))
    for column, (index, title, health) in enumerate(cases):
        subject = one.draw(11, index)
        ill, well = subject.at(50.0, health), subject.at(50.0)
        z = level(ill)
        for row, (contrast, brightest) in enumerate(BRIGHTEST.items()):
            for offset, aged in enumerate((well, ill)):
                cut = aged.image(contrast)[0, 0, 8:152, :, z].numpy()
                heading = (title if offset else "without") + f", {contrast}"
                show(axes[row, 2 * column + offset], cut, brightest, heading)
    return figure


def diagnosis() -> Figure:
    subject = family(GRID_1MM).draw(11, 4)
    figure, axes = sheet(2, 3, 2.2, 1.0)
    for column, name in enumerate(("CN", "MCI", "AD")):
        aged = subject.at(75.0, Health(diagnosis=name))
        image, ml = aged.image()[0, 0].numpy(), aged.volumes()
        title = f"{name}, hippocampi {ml['hippocampus']:.1f} ml"
        show(axes[0, column], image[8:152, :, 92], BRIGHTEST["T1w"], title)
        show(axes[1, column], image[8:152, 90], BRIGHTEST["T1w"])
    return figure


def loads() -> Figure:
    subject = family(GRID_1MM).draw(11, 0)
    figure, axes = sheet(1, 5, 2.0)
    for column, load in enumerate(("none", "low", "medium", "high")):
        aged = subject.at(45.0, Health(load=load))
        cut = aged.image("FLAIR")[0, 0, 8:152, :, 104].numpy()
        show(axes[0, column], cut, BRIGHTEST["FLAIR"], f"{load}, {aged.lesion_ml():.0f} ml")
    real = Path(os.environ.get("CFTOOLS_DATA", "")) / REAL
    if real.exists():
        scan = Volume.load(real)
        image = resample(np.maximum(scan.array, 0), scan.affine, GRID_1MM)
        show(axes[0, 4], image[8:152, :, 98], float(np.percentile(image[image > 0], 60)) * 1.7, "a patient, 50 ml")
    return figure


def heads() -> Figure:
    figure, axes = sheet(2, 5, 1.8, 1.2)
    for column in range(5):
        subject = family(GRID_2MM, varied=column > 0).draw(7, column)
        contrast = ("T1w", "T1w", "T2w", "FLAIR", "T1ce")[column]
        image = subject.head.around(subject.at(50.0).image(contrast), subject.cranium, subject.scanned(contrast))
        whole = image[0, 0].numpy()
        brightest = float(np.percentile(whole, 99.5))
        show(axes[0, column], whole[whole.shape[0] // 2], brightest, contrast + (", varied" if column else ", plain"))
        show(axes[1, column], whole[:, :, 70], brightest)
    return figure


FIGURES = {"lesions": lesions, "diagnosis": diagnosis, "loads": loads, "heads": heads}


def main() -> None:
    torch.set_grad_enabled(False)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]().savefig(Path(__file__).with_name(f"simulated-{name}.png"), dpi=90)


if __name__ == "__main__":
    main()
