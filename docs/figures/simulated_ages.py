"""One simulated subject at four ages: python docs/figures/simulated_ages.py writes simulated-ages.png beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_1MM

AGES = (20, 40, 60, 80)


def main() -> None:
    torch.set_grad_enabled(False)
    subject = Family([template_anatomy(GRID_1MM)], load_law("normative")).draw(7, 0, "F")
    figure = Figure(figsize=(8, 4.4), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(AGES))
    for column, age in enumerate(AGES):
        aged = subject.at(float(age))
        image = aged.image()[0, 0].numpy()
        for row, cut in enumerate((image[:, :, 88], image[:, 104, :])):
            axes[row, column].imshow(np.rot90(cut[10:150]), cmap="gray", vmin=0, vmax=1.15)
            axes[row, column].axis("off")
        ml = aged.volumes()["lateral_ventricles"]
        axes[0, column].set_title(f"{age} years, ventricles {ml:.0f} ml", color="white", fontsize=9)
    figure.savefig(Path(__file__).with_name("simulated-ages.png"), dpi=90)


if __name__ == "__main__":
    main()
