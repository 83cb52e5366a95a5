"""How often the best judge there can be tells a simulated man from a woman, once registration has taken out head size.

    python benchmarks/sex_ceiling.py

The judge knows the law, the age and every volume without error: two Gaussians of one spread, so that its accuracy is
Phi(d / 2), d the distance of their means. No reader of images can be better, on people of those ages.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from cftools.phantom.law import load_law
from cftools.phantom.twins import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--law", default="normative")
    law = load_law(parser.parse_args().law)
    ages = np.arange(5, 101, 5)
    apart = [[np.log(law.ratio(k, float(age), "M") / law.ratio(k, float(age), "F")) for k in TARGETS] for age in ages]
    distance = np.linalg.norm(np.array(apart) / [law.log_sd(name) for name in TARGETS], axis=1)
    accuracy = norm.cdf(distance / 2)
    for age, value in zip(ages, accuracy, strict=True):
        print(f"{age:3d} years  {value:.3f}")
    print(f"mean       {accuracy.mean():.3f}")


if __name__ == "__main__":
    main()
