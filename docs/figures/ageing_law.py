"""Draw the ageing law: every curve by sex, both built-in laws, to ageing-law.png beside this file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cftools.phantom.law import CONTRAST, load_law

AGES = np.arange(5, 100.5, 0.5)
COLOURS = {"F": "#b5457a", "M": "#2a6f97"}


def main() -> None:
    normative, altered = load_law("normative"), load_law("altered")
    figure, axes = plt.subplots(2, 5, figsize=(12, 5), sharex=True, layout="constrained")
    for axis, name in zip(axes.flat, (*normative.structures, CONTRAST), strict=True):
        for sex, colour in COLOURS.items():
            curve = np.array([normative.ratio(name, age, sex) for age in AGES])
            spread = np.exp(normative.log_sd(name))
            axis.fill_between(AGES, curve / spread, curve * spread, color=colour, alpha=0.12, linewidth=0)
            axis.plot(AGES, curve, color=colour, label=f"normative, {sex}")
        curve = np.array([altered.ratio(name, age) for age in AGES])
        axis.plot(AGES, curve, color="0.35", linestyle=":", label="altered (invented), mean of F and M")
        axis.axhline(1, color="0.8", linewidth=0.6, zorder=0)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlim(5, 100)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("age (years)")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative to 25 years")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(Path(__file__).with_name("ageing-law.png"), dpi=80)


if __name__ == "__main__":
    main()
