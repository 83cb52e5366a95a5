"""The tables of the docs, made of docs/results.

python benchmarks/tables.py           # prints them
python benchmarks/tables.py --write   # puts them between the markers in the pages
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    DOCS / f"{name}.md"
    for name in ("twin-flow", "latent-diffusion", "volumes", "cdm", "raw-heads", "scoring", "reproduction/cdm")
]


def facts(name: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())


def rows(*lines: Sequence[str]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def truth_of(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by change, then by metric."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in facts(name)["rows"]:
        table.setdefault(row["setting"], {})[row["metric"]] = row
    return table


def interval(row: dict[str, float], digits: int = 2) -> str:
    """0.39 [0.35, 0.43]"""
    return f"{row['ours']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


CHANGES = {"agePlus30": "+30 years", "ageMinus30": "-30 years"}


def truth() -> str:
    """Fidelity to the truth on the normative law and the average brain."""
    table = truth_of("truth-normative")
    lines = [("change", "truth_ratio", "PSNR, dB (doing nothing)", "MS-SSIM (doing nothing)", "n")]
    for setting, change in CHANGES.items():
        found = table[setting]
        psnr, similar, ratio = found["psnr_db"], found["ms_ssim"], found["truth_ratio"]
        lines.append(
            (
                change,
                interval(ratio),
                f"{psnr['ours']:.1f} ({psnr['nothing']:.1f})",
                f"{similar['ours']:.3f} ({similar['nothing']:.3f})",
                f"{ratio['n']:.0f}",
            )
        )
    return rows(*lines)


def elsewhere() -> str:
    """truth_ratio under other laws and on other anatomy, and what the simulator's own field reaches."""
    sets = {
        "normative law, MNI152": "truth-normative",
        "altered law, MNI152": "truth-altered",
        "normative law, unseen IXI": "truth-ixi",
    }
    tables = {label: truth_of(name) for label, name in sets.items()}
    floors = {"normative law, MNI152": facts("truth-floor"), "altered law, MNI152": facts("truth-floor-altered")}
    lines = [("change", *sets)]
    for setting, change in CHANGES.items():
        lines.append((change, *(interval(table[setting]["truth_ratio"]) for table in tables.values())))
    lines.append(("both", *(interval(table["overall"]["truth_ratio"]) for table in tables.values())))
    for setting, change in CHANGES.items():
        cells = []
        for label in sets:
            floor = floors.get(label, {}).get(f"{setting}: field")
            cells.append(f"{floor['truth_ratio']:.2f}" if floor else "")
        lines.append((f"{change}, a field that knows the normative law", *cells))
    return rows(*lines)


def steps() -> str:
    """truth_ratio by the number of steps in age."""
    lines = [("network evaluations", *CHANGES.values())]
    for path in sorted((DOCS / "results").glob("steps-*.json")):
        table = truth_of(path.stem)
        cells = (interval(table[setting]["truth_ratio"], 3) for setting in CHANGES)
        lines.append((path.stem.removeprefix("steps-"), *cells))
    return rows(*lines)


NAMES = {
    "lateral_ventricles": "lateral ventricles",
    "third_ventricle": "third ventricle",
    "hippocampi": "hippocampi",
    "grey_matter": "grey matter",
    "brain": "brain",
}


def _difference(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.0f} % [{row['low']:+.0f}, {row['high']:+.0f}]"


def real() -> str:
    """Young adults aged to the age of the really old."""
    groups = {
        (row["structure"], row["sex"], row["head_size_normalised"]): row for row in facts("real-ageing")["groups"]
    }
    lines = [("structure", "young", "aged by cf-edit (SD)", "really old (SD)", "difference", "at equal head size")]
    for name, label in NAMES.items():
        row, scaled = groups[name, "FM", False], groups[name, "FM", True]
        digits = 1 if row["young_ml"] < 100 else 0
        lines.append(
            (
                label,
                f"{row['young_ml']:.{digits}f}",
                f"{row['aged_ml']:.{digits}f} ({row['aged_sd']:.{digits}f})",
                f"{row['real_ml']:.{digits}f} ({row['real_sd']:.{digits}f})",
                _difference(row),
                _difference(scaled),
            )
        )
    by_sex = "; ".join(
        f"{label} F {_difference(groups[name, 'F', False])}, M {_difference(groups[name, 'M', False])}"
        for name, label in NAMES.items()
    )
    return f"{rows(*lines)}\n\nBy sex, not normalised: {by_sex}."


def laws() -> str:
    """Composition, reversal and the rest."""
    table = facts("consistency")
    labels = {
        "null_edit_largest_difference": "+0 against the input, largest difference",
        "reversal": "+30 then -30 against the input",
        "composition": "+15 twice against +30",
        "sharpness_ratio": "sharpness after over before (mean squared Laplacian)",
        "outside_largest_difference": "outside the brain mask, largest difference",
    }
    lines = [("", *(f"{steps.replace('1 steps', 'one shot')}: median (worst)" for steps in table))]
    for key, label in labels.items():
        cells = []
        for scans in table.values():
            values = [scan[key] for scan in scans.values()]
            worst = min(values) if key == "sharpness_ratio" else max(values)
            digits = 2 if any(values) else 0
            cells.append(f"{statistics.median(values):.{digits}f} ({worst:.{digits}f})")
        lines.append((label, *cells))
    same = all(scan["same_header"] for scans in table.values() for scan in scans.values())
    return rows(*lines, ("header and affine the same", *("yes" if same else "no" for _ in table)))


def speed() -> str:
    """Seconds and memory."""
    found = facts("speed")["rows"]
    labels = {
        "cf-edit --age +30": "`cf-edit --age +30`",
        "each further age of the sweep": "each further age of a sweep",
        "cf-edit --help": "`cf-edit --help`",
        "nibabel: read and write": "nibabel reading and writing the same scan",
    }
    lines = [("", "seconds", "peak")]
    for key, label in labels.items():
        row = found[key]
        lines.append((label, f"{row['seconds']:.2g}", f"{row['peak_mib']} MiB" if row["peak_mib"] else ""))
    return rows(*lines)


def ablation() -> str:
    """truth_ratio by variant and test set."""
    found = facts("twin-ablation")["rows"]
    settings = list(dict.fromkeys(row["setting"] for row in found))
    lines = [("variant", "parameters", *settings)]
    for variant in dict.fromkeys(row["variant"] for row in found):
        mine = {row["setting"]: row for row in found if row["variant"] == variant}
        cells = [f"{mine[s]['truth_ratio']:.2f} [{mine[s]['low']:.2f}, {mine[s]['high']:.2f}]" for s in settings]
        lines.append((variant, f"{next(iter(mine.values()))['parameters_m']} M", *cells))
    return rows(*lines)


def age() -> str:
    """How far off the age model is."""
    lines = [("scans", "n", "mean absolute error, years", "bias, years", "correlation with age")]
    for name, row in facts("age-model").items():
        off = f"{row['mean_absolute_error']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        lines.append((name, str(row["n"]), off, f"{row['bias']:+.1f}", f"{row['correlation']:.2f}"))
    return rows(*lines)


def autoencoder() -> str:
    """What the autoencoder keeps, beside plain resampling."""
    found: dict[str, dict[str, Any]] = {}
    for key, row in facts("autoencoder").items():
        images, way = key.split("; ")
        found.setdefault(images, {})[way] = row
    ways = list(next(iter(found.values())))
    lines: list[Sequence[str]] = [("scans", "n", *(f"{way}, dB" for way in ways))]
    for images, by in found.items():
        cells = [f"{by[way]['psnr_db']:.1f} [{by[way]['low']:.1f}, {by[way]['high']:.1f}]" for way in ways]
        lines.append((images, str(by[ways[0]]["n"]), *cells))
    return rows(*lines)


def round_trip() -> str:
    """What comes back of a scan that was inverted, by evaluations each way."""
    found: dict[str, dict[int, Any]] = {}
    for row in facts("round-trip"):
        found.setdefault(row["inverter"], {})[row["evaluations each way"]] = row
    counts = sorted({count for by in found.values() for count in by})
    lines: list[Sequence[str]] = [("inverter", *(f"{count} evaluations, dB" for count in counts))]
    for name, by in found.items():
        cells = [f"{by[count]['psnr_db']:.1f}" if count in by else "" for count in counts]
        lines.append((name, *cells))
    return rows(*lines)


def latent_edits() -> str:
    """The error that is left, by carry and guidance."""
    lines: list[Sequence[str]] = [
        ("carry", "guidance", *(f"{change}, truth_ratio" for change in CHANGES.values()), "n")
    ]
    for path in sorted((DOCS / "results").glob("latent-*.json")):
        table = truth_of(path.stem)
        carry, guidance = path.stem.removeprefix("latent-").split("-")[:2]
        ratios = [table[setting]["truth_ratio"] for setting in CHANGES if setting in table]
        lines.append((carry, guidance.removeprefix("g"), *map(interval, ratios), f"{ratios[0]['n']:.0f}"))
    return rows(*lines)


def precision() -> str:
    """Edits in bfloat16 beside float32."""
    lines: list[Sequence[str]] = [("network in", "seconds an edit", "truth_ratio", "differs from float32", "n")]
    for row in facts("precision")["rows"]:
        ratio = f"{row['truth_ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append((row["dtype"], f"{row['seconds']:.1f}", ratio, f"{row['differs']:.1%}", str(row["n"])))
    return rows(*lines)


def synthetic_ages() -> str:
    """The ages that are read off synthetic scans."""
    found: dict[str, dict[int, Any]] = {}
    for row in facts("synthetic-ages"):
        found.setdefault(row["scans"], {})[row["age"]] = row
    ages = list(next(iter(found.values())))
    lines: list[Sequence[str]] = [("scans", *(f"asked: {age}" for age in ages), "n of each")]
    for name, by in found.items():
        cells = [f"{by[age]['mean']:.0f} [{by[age]['low']:.0f}, {by[age]['high']:.0f}]" for age in ages]
        lines.append((name, *cells, str(by[ages[0]]["n"])))
    return rows(*lines)


def volumes() -> str:
    """How well --volumes measures."""
    names = {"simulated": "simulated, against the truth", "oasis": "OASIS, against labels"}
    lines: list[Sequence[str]] = [("scans", "structure", "error, %", "bias, %", "images", "subjects")]
    for row in facts("volumes")["rows"]:
        error, low, high, bias = (100 * row[key] for key in ("error", "low", "high", "bias"))
        cells = (f"{error:.1f} [{low:.1f}, {high:.1f}]", f"{bias:+.1f}", str(row["images"]), str(row["n"]))
        lines.append((names[row["scans"]], row["structure"], *cells))
    return rows(*lines)


def diagnosis() -> str:
    """Alzheimer's disease given to healthy simulated people, against the truth."""
    found = truth_of("diagnosis")["diagnosisAD"]
    psnr, ratio = found["psnr_db"], found["truth_ratio"]
    line = ("CN to AD", interval(ratio), f"{psnr['ours']:.1f} ({psnr['nothing']:.1f})", f"{ratio['n']:.0f}")
    return rows(("change", "truth_ratio", "PSNR, dB (doing nothing)", "n"), line)


def orders() -> str:
    """The order of every solver, as declared and as measured, down and up."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in facts("engine")["orders"]:
        found.setdefault(row["solver"], []).append(row)
    paths = [row["path"] for row in next(iter(found.values()))]
    lines: list[Sequence[str]] = [("solver", "declared", *(f"{path}: down, up" for path in paths))]
    for name, by in found.items():
        cells = [", ".join(f"{row[way]:.2f}" for way in ("down", "up") if way in row) for row in by]
        lines.append((name, str(by[0]["declared"]), *cells))
    return rows(*lines)


def engine_laws() -> str:
    """The worst error of each law of the engine."""
    return rows(("law", "worst error"), *((law, f"{error:.0e}") for law, error in facts("engine")["laws"].items()))


def cycle_line() -> str:
    """How much a denoiser hears its condition, by the terms of CDM's loss."""
    found: dict[str, dict[float, Any]] = {}
    for row in facts("cycle-line")["rows"]:
        found.setdefault(row["variant"], {})[row["time"]] = row
    times = list(next(iter(found.values())))
    lines: list[Sequence[str]] = [("variant", *(f"t = {time:g}" for time in times))]
    lines += [(name, *(f"{by[time]['pull']:.2f}" for time in times)) for name, by in found.items()]
    return rows(*lines)


def cycle_ablation() -> str:
    """Edits of twins, by the terms of CDM's loss; nothing while nobody measured it."""
    if not (DOCS / "results" / "cycle-ablation.json").exists():
        return "Not measured yet."
    table = facts("cycle-ablation")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table["rows"]:
        found.setdefault((row["setting"], row["table"].split()[-1]), {})[row["metric"]] = row
    metrics = ("truth_ratio", "way_share", "age_share")
    lines: list[Sequence[str]] = [("variant", "guidance", *metrics)]
    lines += [(*key, *(interval(by[metric]) for metric in metrics)) for key, by in found.items()]
    return f"{table['steps']} steps each, {table['cohort']['n']} twins.\n\n{rows(*lines)}"


def full_size() -> str:
    """What the published sizes cost, on every machine that they were measured on."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for path in sorted((DOCS / "results").glob("full-size*.json")):
        for row in facts(path.stem)["rows"]:
            found.setdefault((row["method"], row["setting"]), {})[row["metric"]] = row["ours"]
    parameters = {method: by["parameters_m"] for (method, _), by in found.items() if "parameters_m" in by}
    heads = ("tflop", "activation_gb", "seconds", "peak_gb")
    lines: list[Sequence[str]] = [
        ("preset", "parameters, M", "of what", "TFLOP", "activations, GB", "seconds", "peak, GB")
    ]
    for (method, setting), by in found.items():
        cells = [f"{by[head]:.3g}" if head in by else "" for head in heads]
        if any(cells):
            lines.append((method, f"{parameters[method]:.3g}", setting, *cells))
    return rows(*lines)


def brain_masks() -> str:
    """Overlap of the brain mask with labels, by how the head was stored or drawn."""
    lines: list[Sequence[str]] = [("heads", "n", "Dice, mean", "worst")]
    for name, found in facts("brainmask")["dice"].items():
        label = name if name.startswith("simulated") else f"IXI, {name}"
        mean = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        lines.append((label, f"{found['n']:.0f}", mean, f"{found['worst']:.3f}"))
    return rows(*lines)


def whole_heads() -> str:
    """What cf-edit --age +20 does to whole heads."""
    table = facts("raw-heads")
    heads = table["heads"]
    grown = statistics.median(row["aged_ml"] / row["ventricles_ml"] for row in table["scans"])
    counts = ("on their own grid", "unchanged outside the brain", "ventricles larger")
    lines: list[Sequence[str]] = [(f"of {heads} heads, aged by 20 years", "")]
    lines += [(name, f"{table[name]}") for name in counts]
    lines += [("ventricles grow, median", f"{grown - 1:+.0%}")]
    lines += [("least likeness to MNI152", f"{table['least similarity']:.2f}")]
    return rows(*lines)


#: Columns of the tables of sets, with their digits.
SETS = {"age_mae": 1, "sex_accuracy": 2, "fid": 2, "kid": 2, "ms_ssim": 3}
SCORES = {
    "age_mae": "age MAE, years",
    "sex_accuracy": "sex accuracy",
    "fid": "FID, own features",
    "kid": "KID",
    "ms_ssim": "MS-SSIM",
    "seconds": "seconds",
}


def reproduced(name: str, table: str, metrics: dict[str, int], timed: str) -> str:
    """One table of a reproduction: a line a method, ours with its interval and the paper's in brackets."""
    found: dict[str, dict[str, Any]] = {}
    for row in reproduction(name):
        if row["table"] == table:
            found.setdefault(row["method"], {})[row["metric"]] = row
    metrics = {name: digits for name, digits in metrics.items() if any(name in scores for scores in found.values())}
    lines = [("", *(SCORES[metric] for metric in metrics), "seconds")]
    for method, scores in found.items():
        cells = [with_paper(scores.get(metric), digits) for metric, digits in metrics.items()]
        lines.append((method, *cells, f"{scores['seconds']['ours']:.1f}" if "seconds" in scores else ""))
    return rows(*lines)


def by_change(name: str, table: str, metric: str) -> str:
    """A line a method, a column a change."""
    found: dict[str, dict[str, Any]] = {}
    for row in reproduction(name):
        if row["table"] == table and row["metric"] == metric:
            found.setdefault(row["method"], {})[row["setting"]] = row
    settings = list(dict.fromkeys(setting for scores in found.values() for setting in scores))
    years = [setting.replace("ageMinus", "-").replace("agePlus", "+") for setting in settings]
    lines = [("", *(f"{each} years" for each in years))]
    lines += [(method, *(with_paper(scores.get(s), 1) for s in settings)) for method, scores in found.items()]
    return rows(*lines)


def truths(name: str) -> str:
    """truth_ratio over all changes in every world, and the error outside of what changes."""
    found: dict[str, dict[str, Any]] = {}
    worlds = []
    for row in reproduction(name):
        world = row["table"].removeprefix("truth, ")
        if world != row["table"] and row["setting"].startswith("overall") and row["metric"] == "truth_ratio":
            worlds += [world] * (world not in worlds)
            found.setdefault(row["method"] + row["setting"].removeprefix("overall"), {})[world] = row
    lines = [("", *worlds)]
    lines += [(method, *(with_paper(cells.get(world), 2) for world in worlds)) for method, cells in found.items()]
    return rows(*lines)


def reproduction(name: str) -> Any:
    """The rows of a reproduction of a paper; none while it was not run."""
    path = DOCS / "reproduction" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def with_paper(row: dict[str, Any] | None, digits: int) -> str:
    """6.1 [4.4, 8.0] (2.23): ours, its interval, the paper's."""
    if row is None or row["ours"] is None:
        return ""
    ours = interval(row, digits) if row["low"] is not None else f"{row['ours']:.{digits}f}"
    return ours if row["paper"] is None else f"{ours} ({row['paper']:g})"


def denoiser() -> str:
    """What denoisers know at each time, and what the one knew that took latents as they are."""
    found: dict[str, dict[float, float]] = {}
    for row in facts("denoiser")["rows"]:
        found.setdefault(row["weights"], {})[row["time"]] = row["error_over_average"]
    times = next(iter(found.values()))
    lines = [("weights", *(f"t = {time:g}" for time in times))]
    lines += [(name, *(f"{value:.2f}" for value in row.values())) for name, row in found.items()]
    return rows(*lines)


def features() -> str:
    """What the bundled features see."""
    table = facts("features")["rows"]
    same = table[0]
    lines = [("second set", "all levels", "last level alone")]
    for row in table:
        lines.append((row["set"], *(f"{row[key] / same[key]:.1f}" for key in ("all_levels", "last_level"))))
    return rows(*lines)


def sex_reader() -> str:
    """How often sex is read right, and how often it can be."""
    lines = [("people", "read right", "at best", "pairs in order", "n")]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in facts("sex-reader")["rows"]:
        found.setdefault(row["people"], {})[row["metric"]] = row
    ages = {"all": "5 to 100 years", "younger": "younger half", "older": "older half"}
    for people, of in found.items():
        cells = [f"{of['best_accuracy']['ours']:.2f}", interval(of["pairs_in_order"], 2), str(of["accuracy"]["n"])]
        lines.append((f"pairs, {ages[people]}", interval(of["accuracy"], 2), *cells))
    sets = {
        "normative": "`cf-phantom`, normative law",
        "altered": "`cf-phantom`, altered law",
        "oasis": "OASIS",
        "ixi-all": "IXI, 25 of whom gave an anatomy, but not their sex",
    }
    for name, label in sets.items():
        (row,) = (row for row in facts(f"readers-{name}")["rows"] if row["metric"] == "sex_accuracy")
        lines.append((label, interval(row, 2), "", "", str(row["n"])))
    return rows(*lines)


TABLES: dict[str, Callable[[], str]] = {
    "cycle line": cycle_line,
    "cycle ablation": cycle_ablation,
    "features": features,
    "denoiser": denoiser,
    "sex reader": sex_reader,
    "cdm direct": lambda: reproduced("cdm", "1, direct", SETS, "scan"),
    "cdm counterfactual": lambda: reproduced("cdm", "1, counterfactual", SETS, "edit"),
    "cdm changes": lambda: by_change("cdm", "2", "age_mae"),
    "cdm truth": lambda: truths("cdm"),
    "full size": full_size,
    "truth": truth,
    "elsewhere": elsewhere,
    "steps": steps,
    "real": real,
    "laws": laws,
    "speed": speed,
    "ablation": ablation,
    "age": age,
    "diagnosis": diagnosis,
    "volumes": volumes,
    "autoencoder": autoencoder,
    "round trip": round_trip,
    "latent edits": latent_edits,
    "precision": precision,
    "synthetic ages": synthetic_ages,
    "orders": orders,
    "engine laws": engine_laws,
    "brain masks": brain_masks,
    "whole heads": whole_heads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for place in PAGES:
        page = place.read_text()
        for name, table in TABLES.items():
            marked = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            if marked.search(page):
                made = table()
                page = marked.sub(lambda found, made=made: f"{found[1]}\n{made}\n\n{found[2]}", page)
                print(f"{made}\n")
        if options.write:
            place.write_text(page)


if __name__ == "__main__":
    main()
