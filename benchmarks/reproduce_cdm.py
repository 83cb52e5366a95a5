"""Tables 1 and 2 of the CDM paper (Huang et al. 2025) on a simulated cohort that no weights saw, or on one's own.

    make reproduce-cdm                                            # from the bundled weights
    python benchmarks/reproduce_cdm.py --train                    # trains them first, into runs/ (make weights-cdm)
    python benchmarks/reproduce_cdm.py --cohort bids/ --runs runs/ # a cohort of one's own, with weights of one's own

Direct generation: each model makes one scan for every age and sex of the real ones. Counterfactuals: scans spread over
ages are edited by -60 to +60 years; targets outside of 5 to 100 are left out (the paper's outside of 0 to 100). A
simulated scan has true counterfactuals, so that the truth is scored too, there, under the altered law of ageing, and
on OASIS anatomies where CFTOOLS_DATA names them. What is there already in --work, under the same settings and weights,
is not made again. `cf-phantom` and `cf-score` do the rest, and their JSON stays in --work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cftools.cohort import Scan, described, find_scans
from cftools.condition import Condition, entity
from cftools.described import save_described
from cftools.editing import Editor
from cftools.errors import CftoolsWarning
from cftools.facts import Target
from cftools.imagesets import find_members, spread_over_ages
from cftools.piping import Person, Synthesiser, decode, encode, model_of, pipe_plan, targets_of
from cftools.planning import parse_sweep, plan
from cftools.preset import Preset, load_preset
from cftools.provenance import command_line
from cftools.schema import FrozenMapping, plain
from cftools.score.table import reproduction
from cftools.volume import Volume
from cftools.weights import installed, locate

ROOT = Path(__file__).parents[1]
#: Models of the paper's Table 1 by preset; those that edit: the paper's three, VAE-GAN and ours.
MAKE = ("vqvae-ar", "vae-gan", "alpha-gan", "ldm", "cdm")
EDIT = ("vae-gan", "alpha-gan", "ldm", "cdm", "twin")
#: Those whose edits of one subject are drawn, beside the truth.
DRAWN = ("cdm", "twin")
#: Those whose edits can come home in other ways from one resampling.
LATENT = ("ldm", "cdm")
CHANGES = ("-60", "-30", "-10", "+10", "+30", "+60")
#: Ages that the weights and the simulator know.
YOUNGEST, OLDEST = 5.0, 100.0

#: The paper's Table 1: age MAE, sex accuracy, FID, MS-SSIM; of direct generation, then of counterfactuals.
METRICS = ("age_mae", "sex_accuracy", "fid", "ms_ssim")
PAPER_1 = {
    "real": ((2.23, 0.88, None, 0.75), (2.23, 0.88, None, 0.75)),
    "vqvae-ar": ((40.37, 0.46, 55.30, 0.81), ()),
    "vae-gan": ((28.57, 0.52, 93.29, 0.91), ()),
    "alpha-gan": ((33.30, 0.50, 60.19, 0.97), (36.86, 0.48, 191.55, 0.93)),
    "ldm": ((18.80, 0.84, 35.50, 0.80), (9.71, 0.82, 90.12, 0.822)),
    "cdm": ((15.39, 0.88, 35.46, 0.79), (7.87, 0.86, 91.86, 0.8047)),
}
#: Its Table 2: age MAE by change.
PAPER_2 = {
    "alpha-gan": (7.38, 18.96, 28.18, 42.78, 52.97, 67.86),
    "ldm": (3.75, 8.70, 6.56, 9.88, 15.09, 12.83),
    "cdm": (3.35, 10.03, 6.14, 8.62, 9.97, 7.72),
}


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know.

    Attributes:
        runs: folder whose NAME/weights.safetensors take the place of bundled weights, or None.
        steps: moves of the diffusion presets' edits, each way; 0 for the presets' own.
    """

    runs: Path | None
    steps: int
    seed: int
    device: str

    def preset(self, name: str) -> Preset:
        """A preset, with the weights of `runs` where there are any."""
        preset = load_preset(name)
        return replace(preset, weights=FrozenMapping({k: tuple(map(self.named, v)) for k, v in preset.weights.items()}))

    def named(self, name: str) -> str:
        own = self.runs / name / "weights.safetensors" if self.runs else None
        return str(own) if own and own.exists() else name

    def names(self) -> list[str]:
        """Of all weights, as presets know them."""
        return sorted({name for one in {*MAKE, *EDIT} for some in load_preset(one).weights.values() for name in some})

    def digests(self) -> dict[str, str]:
        """sha256 of all weights, by name."""
        names = {name: self.named(name) for name in self.names()}
        return {name: digest(own) for name, own in names.items() if installed(own)}

    def say(self) -> None:
        """Whose weights are taken, where there are some of one's own; without any of them it ends."""
        if self.runs is None:
            return
        own = {name: self.named(name) for name in self.names()}
        if not any(name != taken for name, taken in own.items()):
            sys.exit(f"{self.runs}: holds none of {', '.join(f'{name}/weights.safetensors' for name in own)}")
        for name, taken in own.items():
            print(f"{name}: {taken if taken != name else 'as bundled'}", flush=True)

    def samplings(self) -> dict[str, dict[str, Any]]:
        """How each preset makes and edits scans."""
        tables = {name: plain(self.preset(name)) for name in sorted({*MAKE, *EDIT})}
        return {
            name: {key: table[key] for key in ("sampling", "prior", "tuned", "carry")} for name, table in tables.items()
        }

    def moves(self, name: str) -> dict[str, int]:
        return {"steps": self.steps} if self.steps and name in LATENT else {}


def digest(name: str) -> str:
    """sha256 of weights."""
    return hashlib.sha256(locate(name)[0].read_bytes()).hexdigest()


def _device(setup: Setup) -> Callable[[], torch.device]:
    return partial(torch.device, setup.device)


@lru_cache(maxsize=1)
def _synthesiser(setup: Setup, name: str) -> Synthesiser:
    chosen = pipe_plan(setup.preset(name), None, Condition(), task="synth")
    return Synthesiser(chosen, _device(setup), setup.seed, "reproduce_cdm")


@lru_cache(maxsize=1)
def _editor(setup: Setup, name: str) -> Editor:
    preset = setup.preset(name)
    sweep = parse_sweep(CHANGES, ())
    chosen = (
        pipe_plan(preset, None, Condition(), **setup.moves(name))
        if name in LATENT
        else plan(preset, sweep, Condition())
    )
    return Editor(chosen, _device(setup), setup.seed)


def _quietly() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CftoolsWarning)


def once(marker: Path, job: Callable[[], float]) -> float:
    """Seconds that a job took, now or when it was done before."""
    if marker.exists():
        return float(marker.read_text())
    _quietly()
    seconds = job()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{seconds:.3f}")
    return seconds


def settle(work: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds what other settings, presets or weights made, as it would be taken for this."""
    path, text = work / "settings.json", json.dumps(settings, indent=1)
    if path.exists() and path.read_text() != text:
        sys.exit(
            f"{work}: holds a reproduction with other settings, presets or weights: name another --work, or remove it"
        )
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def made(setup: Setup, name: str, number: int, condition: Condition, out: Path) -> float:
    """Make one scan; seconds."""
    person = Person(f"sub-{number + 1:04d}", number, Target(condition))
    path = out / person.name / "anat" / f"{person.name}_T1w.nii.gz"
    synthesiser = _synthesiser(setup, name)
    begun = time.monotonic()
    volume, provenance = synthesiser.make(person)
    taken = time.monotonic() - begun
    path.parent.mkdir(parents=True, exist_ok=True)
    save_described(volume, provenance, path, force=True)
    return taken


def edited(setup: Setup, name: str, scan: Scan, changes: Sequence[str], outs: dict[str, Path]) -> float:
    """Edit one scan by each of some changes, carried in each way of `outs`; seconds for each change."""
    sweep = parse_sweep(changes, ())
    folders = {carry: out / scan.subject / "anat" for carry, out in outs.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    editor, volume = _editor(setup, name), Volume.load(scan.path)
    known = Condition({"age": scan.age, "sex": scan.sex})
    begun = time.monotonic()
    if name in LATENT:
        latent = encode(editor, editor.ready(volume, known))
        model = model_of(editor.plan, _device(setup))
        state = model.invert(latent)
        edits = model.resample(state, targets_of(editor.plan, state, sweep))
        for carry, folder in folders.items():
            for target, image in decode(edits, _device(setup), volume, carry):
                image.save(folder / described(scan.path, target.entity), force=True)
    else:
        (folder,) = folders.values()
        for changed, one in zip(sweep, editor.edits(editor.ready(volume, known, sweep)), strict=True):
            one.volume.save(folder / described(scan.path, entity(changed)), force=True)
    return (time.monotonic() - begun) / len(changes)


def possible(age: float) -> list[str]:
    """The changes of CHANGES after which someone is still of an age that is known."""
    return [change for change in CHANGES if YOUNGEST <= age + float(change) <= OLDEST]


def command(*words: object, fine: Sequence[int] = (0,)) -> None:
    """Run one of the commands beside this interpreter; end if it ends otherwise than is fine."""
    name, *rest = map(str, words)
    done = subprocess.run([Path(sys.executable).parent / name, *rest])
    if done.returncode not in fine:
        sys.exit(f"{name} ended with {done.returncode}: {' '.join(map(str, words))}")


def phantom(folder: Path, count: int, seed: int, changes: Sequence[str], *options: object) -> None:
    """A cohort with twins, unless it is there."""
    if not (folder / "participants.tsv").exists():
        command(
            "cf-phantom", folder, "-n", count, "--seed", seed, "--twin", f"age={','.join(changes)}", "--force", *options
        )


def score(out: Path, *words: object, plots: Path | None = None) -> dict[str, Any]:
    """What cf-score writes as JSON, now or when it was asked the same before, of the same judges.

    Args:
        plots: of sets of images, of which some may fail, such as brains that are none: the others are scored.
    """
    words = words if plots is None else (*words, "--plots", plots)
    asked = ["cf-score", *map(str, words), "--json", str(out), "--force"]
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    drawn = plots is None or (plots / "samples.png").exists()
    if not drawn or found.get("command") != command_line(asked) or not all(map(unchanged, judges(found))):
        out.unlink(missing_ok=True)
        command(*asked, fine=(0,) if plots is None else (0, 1))
        if not out.exists() or (plots and not (plots / "samples.png").exists()):
            sys.exit(f"{' '.join(asked)}: gave no scores")
        found = json.loads(out.read_text())
    return found


def judges(found: dict[str, Any]) -> list[str]:
    """Whose features and readings a cf-score has, as it names them."""
    return [name for name in (found.get("features"), *found.get("readers", {}).values()) if name]


def unchanged(judge: str) -> bool:
    """Whether weights are those of which cf-score says "name (beginning of their sha256)"."""
    name, _, beginning = judge.rpartition(" ")
    return not installed(name) or digest(name).startswith(beginning.strip("()"))


def all_of(jobs: Sequence[Callable[[], float]], processes: int, label: str) -> float:
    """The mean of the seconds that the jobs took."""
    print(f"{label}: {len(jobs)} jobs", flush=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        taken = list(pool.map(_call, jobs))
    return sum(taken) / len(taken)


def _call(job: Callable[[], float]) -> float:
    return job()


def scans_of(cohort: Path, count: int) -> list[Scan]:
    """Scans of a cohort of known age, spread over ages."""
    chosen = spread_over_ages(find_members(cohort), count)
    paths = {one.path.resolve() for one in chosen}
    return [scan for scan in find_scans(cohort) if scan.path.resolve() in paths]


def edit_all(
    setup: Setup, options: Any, scans: Sequence[Scan], names: Sequence[str], changes: Any, out: Path
) -> dict[str, float]:
    """Edit scans by every preset; mean seconds of an edit, by preset."""
    seconds = {}
    for name in names:
        ways = {"replace": out / name, "warp": out / f"{name}-warp"} if name in LATENT else {"own": out / name}
        jobs = [
            partial(
                once,
                options.work / "seconds" / f"{out.name}-{name}-{stem(scan)}",
                partial(edited, setup, name, scan, changes(scan.age), ways),
            )
            for scan in scans
            if changes(scan.age)
        ]
        seconds[name] = all_of(jobs, options.processes, f"{out.name}: {name}")
    return seconds


def stem(scan: Scan) -> str:
    """The scan's own name: of a subject there may be several."""
    return scan.path.name.partition(".")[0]


def linked(cohort: Path, scans: Sequence[Scan], out: Path) -> Path:
    """A BIDS folder of some scans of a cohort alone, by links to them."""
    shutil.rmtree(out, ignore_errors=True)
    tables = [path for name in ("participants.tsv", "participants.json") if (path := cohort / name).exists()]
    images = [scan.path.absolute() for scan in scans]
    sidecars = [path for image in images if (path := image.parent / f"{image.name.partition('.')[0]}.json").exists()]
    for path in (*(table.absolute() for table in tables), *images, *sidecars):
        link = out / path.relative_to(cohort.absolute())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return out


def rows_of(
    found: dict[str, Any], table: str, paper: Callable[[str, str, str], float | None]
) -> Iterator[dict[str, Any]]:
    """The rows of a cf-score of sets in a reproduction's shape."""
    for one in found["rows"]:
        method = "real" if one["setting"] == "reference" else one["method"]
        row = {key: one[key] for key in ("setting", "metric", "ours", "low", "high")}
        yield {"table": table, "method": method, **row, "paper": paper(method, one["setting"], one["metric"])}


def paper_1(counterfactual: bool, method: str, setting: str, metric: str) -> float | None:
    """A number of the paper's Table 1."""
    numbers = PAPER_1.get(method, ((), ()))[counterfactual]
    if not numbers or metric not in METRICS or setting not in ("overall", "reference"):
        return None
    return numbers[METRICS.index(metric)]


def paper_2(method: str, setting: str, metric: str) -> float | None:
    """A number of its Table 2."""
    named = [f"age{'Minus' if change[0] == '-' else 'Plus'}{change[1:]}" for change in CHANGES]
    if method not in PAPER_2 or metric != "age_mae" or setting not in named:
        return None
    return PAPER_2[method][named.index(setting)]


def truth_rows(work: Path, cohort: Path, edits: Path, world: str) -> Iterator[dict[str, Any]]:
    """Edits against the truth, for every preset and way home in a folder."""
    for folder in sorted(one for one in edits.iterdir() if one.is_dir()):
        found = score(work / f"truth-{world}-{folder.name}.json", "--truth", cohort, folder)
        name, warped = folder.name.removesuffix("-warp"), folder.name.endswith("-warp")
        for one in found["rows"]:
            if one["metric"] in ("truth_ratio", "outside_error", "psnr_db"):
                row = {key: one[key] for key in ("metric", "ours", "low", "high")}
                setting = f"{one['setting']}, by warp" if warped else one["setting"]
                yield {"table": f"truth, {world}", "method": name, "setting": setting, **row, "paper": None}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce-cdm"), help="where images and scores stay")
    parser.add_argument("--cohort", type=Path, help="BIDS folder of one's own; without it one is simulated")
    parser.add_argument("--runs", type=Path, help="weights of one's own, NAME/weights.safetensors, before bundled ones")
    parser.add_argument("--train", action="store_true", help="train all of them first: make weights-cdm")
    parser.add_argument("-n", type=int, default=24, help="real scans, and scans that each model makes")
    parser.add_argument("--scans", type=int, default=8, help="scans that are edited")
    parser.add_argument("--elsewhere", type=int, default=4, help="people under the altered law, and on other anatomy")
    parser.add_argument("--steps", type=int, default=0, help="of diffusion presets' edits, each way; 0: their own")
    parser.add_argument("--full", action="store_true", help="the paper's number of scans edited, 50")
    parser.add_argument("--seed", type=int, default=5151)
    parser.add_argument("--features", default="features-2mm", help="as cf-score --features")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for figures like the paper's 2 and 3")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.full:
        options.n, options.scans = max(options.n, 50), 50
    if options.n < 4:
        sys.exit(f"-n {options.n}: KID needs 4 scans or more")
    if options.train:
        subprocess.run(["make", "weights-cdm"], cwd=ROOT, check=True)
        options.runs = options.runs or ROOT / "runs"
    work: Path = options.work
    setup = Setup(options.runs, options.steps, options.seed, options.device)
    decisive = {name: str(getattr(options, name)) for name in ("cohort", "n", "scans", "elsewhere", "steps", "seed")}
    setup.say()
    settle(work, {**decisive, "weights": setup.digests(), "presets": setup.samplings()})
    cohort = options.cohort or work / "real"
    if options.cohort is None:
        phantom(cohort, options.n, options.seed, CHANGES)
    people = scans_of(cohort, options.n)
    rows: list[dict[str, Any]] = []

    seconds = {}
    for name in MAKE:
        told = [Condition({"age": scan.age, "sex": scan.sex or "F"}) for scan in people]
        jobs = [
            partial(
                once,
                work / "seconds" / f"made-{name}-{number}",
                partial(made, setup, name, number, each, work / "made" / name),
            )
            for number, each in enumerate(told)
        ]
        seconds[name] = all_of(jobs, options.processes, f"made: {name}")
    found_by = {name: setup.named(f"score-{name}-2mm") for name in ("age", "sex")}
    known = [name for name, weights in found_by.items() if installed(weights)]
    readers = [f"--reader={name}={weights if name in known else ''}" for name, weights in found_by.items()]
    metrics = ",".join(["fid", "kid", "ms-ssim", *known])
    reference = cohort if options.cohort is None else linked(cohort, people, work / "real")
    scoring = ["--ref", reference, "--features", options.features, *readers, "--metric", metrics]
    made_by = (work / "made" / name for name in MAKE)
    found = score(work / "made.json", *made_by, *scoring, plots=work / "plots-made")
    rows += rows_of(found, "1, direct", partial(paper_1, False))
    rows += timed("1, direct", "scan", seconds)

    scans = scans_of(cohort, options.scans)
    seconds = edit_all(setup, options, scans, EDIT, possible, work / "edits")
    sets = [work / "edits" / name for name in EDIT]
    found = score(work / "edits.json", *sets, *scoring, plots=work / "plots-edits")
    overall = [
        row
        for row in rows_of(found, "1, counterfactual", partial(paper_1, True))
        if row["setting"] in ("overall", "reference")
    ]
    rows += overall
    rows += [
        row
        for row in rows_of(found, "2", paper_2)
        if row["metric"] == "age_mae" and row["setting"] not in ("overall", "reference")
    ]
    rows += timed("1, counterfactual", "edit", seconds)
    features = found["features"]

    if options.cohort is None:
        rows += truth_rows(work, cohort, work / "edits", "normative law")
        elsewhere = {"altered law": ["--law", "altered"]}
        if data := os.environ.get("CFTOOLS_DATA"):
            elsewhere["OASIS anatomy"] = ["--base", f"{data}/oasis", "--base-ages", "20,90"]
        for world, other in elsewhere.items():
            twins = work / world.replace(" ", "-")
            phantom(twins, options.elsewhere, options.seed + 1, ("-30", "+30"), *other)
            out = work / f"edits-{twins.name}"
            edit_all(
                setup, options, scans_of(twins, options.elsewhere), (*LATENT, "twin"), lambda age: ["-30", "+30"], out
            )
            rows += truth_rows(work, twins, out, world)

    if options.pictures:
        pictures(options.pictures, work, cohort, scans)
    if options.json:
        about = {
            "seed": options.seed,
            "n": len(people),
            "edited": len(scans),
            "steps": options.steps or "the presets' own",
            "features": features,
            "source": "simulated: cf-phantom" if options.cohort is None else "a cohort of one's own",
        }
        given = command_line(["python", "benchmarks/reproduce_cdm.py", *sys.argv[1:]])
        text = json.dumps(reproduction(given, about, rows), indent=1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")


def timed(table: str, setting: str, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of the seconds on one core."""
    empty = {"low": None, "high": None, "paper": None}
    return [
        {"table": table, "method": name, "setting": setting, "metric": "seconds", "ours": round(value, 2), **empty}
        for name, value in seconds.items()
    ]


def pictures(out: Path, work: Path, cohort: Path, scans: Sequence[Scan]) -> None:
    """Samples by model, and one subject at -60, -30, -10 and +10 years with difference maps."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "plots-made" / "samples.png", out / "cdm-samples.png")
    shutil.copy(work / "plots-made" / "ages.png", out / "cdm-ages-made.png")
    shutil.copy(work / "plots-edits" / "ages.png", out / "cdm-ages-edits.png")
    old = min((scan for scan in scans if scan.age is not None), key=lambda scan: abs(scan.age - 79))  # type: ignore[operator]
    changes = [change for change in possible(old.age or 0) if change in ("-60", "-30", "-10", "+10")]
    names = [described(old.path, entity(changed)) for changed in parse_sweep(changes, ())]
    labels = [word for change in changes for word in ("--label", f"{change} years")]
    truth = cohort / "derivatives" / "truth"
    for name, folder in {"truth": truth, **{name: work / "edits" / name for name in DRAWN}}.items():
        anat = folder / old.subject / "anat"
        images = [anat / name for name in names]
        if all(image.exists() for image in images):
            title = ["--label", f"{old.age:.0f} years"]
            command(
                "cf-view",
                old.path,
                *images,
                *title,
                *labels,
                "--dpi",
                80,
                "--force",
                "-o",
                out / f"cdm-subject-{name}.png",
            )


if __name__ == "__main__":
    main()
