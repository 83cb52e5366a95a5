"""Real scans for the simulator and for training: what `cf-phantom --base` and `cf-train` have in common."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cftools.cli import options, terminal
from cftools.errors import CftoolsError, CftoolsWarning, InputError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from cftools.cohort import Scan
    from cftools.phantom.anatomy import Anatomy
    from cftools.prepare import Grid, Prepared
    from cftools.train.people import Portrait
    from cftools.volume import Volume

Made = TypeVar("Made")

#: Under which what was said of a scan is kept: a JSON list of texts.
SAID = "said"


@contextmanager
def gathered_complaints(strict: bool) -> Iterator[None]:
    """Say in one go, when all scans have been looked at, what is wrong with them.

    Args:
        strict: refuse them then.
    Raises:
        InputError: strict, and something is wrong.
    """
    complaints: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, CftoolsWarning):
                complaints.append(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = keep
        try:
            yield
        finally:
            warnings.showwarning = show
            for text in dict.fromkeys(complaints):
                warnings.warn(text, CftoolsWarning, stacklevel=3)
    if complaints and strict:
        raise InputError(f"--strict: {len(set(complaints))} complaints about the scans, each listed above")


def base_anatomies(
    folder: Path,
    grid: Grid,
    labels: list[str] | None = None,
    ages: str | None = None,
    option: str = "--base-ages",
    cache: Path | None = None,
) -> list[Anatomy]:
    """An anatomy of each T1w scan of a BIDS folder; scans that cannot be used are left out with a warning.

    Args:
        folder: BIDS, with ages in participants.tsv or the sidecars.
        grid: of the anatomies.
        labels: participants to take, comma lists allowed; all when empty.
        ages: "low,high" years to keep, or None; option: what the user calls that.
        cache: folder in which they stay; None for none.
    Raises:
        InputError: none is left.
    """
    import torch

    from cftools.phantom.anatomy import Anatomy, scan_anatomy

    def made(scan: Scan, load: Callable[[], Volume]) -> Anatomy:
        age = scan.age
        if age is None:
            raise InputError(f"{scan.path}: its age is not known, so it cannot be an anatomy to age")

        def parts() -> dict[str, Tensor]:
            found = scan_anatomy(load(), age, scan.sex, scan.subject, grid)
            tensors = {"tissues": found.tissues, "strip": found.strip, "regions": found.regions}
            return {**tensors, "labels": torch.from_numpy(found.labels)}

        kept = _kept(cache, "anatomies", grid, scan, parts)
        tissues, strip, regions = (kept[name] for name in ("tissues", "strip", "regions"))
        return Anatomy(scan.subject, age, scan.sex, tissues, strip, regions, kept["labels"].numpy())

    anatomies = _each(_chosen(folder, "T1w", labels, ages, option), made, "anatomies")
    if not anatomies:
        raise InputError(f"{folder}: no scan in it can serve as anatomy")
    return anatomies


def real_images(
    folder: Path,
    grid: Grid,
    contrasts: Sequence[str],
    labels: list[str] | None = None,
    ages: str | None = None,
    option: str = "--data-ages",
) -> list[Tensor]:
    """The scans of a BIDS folder as they are, (1, X, Y, Z) each, normalised on the grid; arguments as above.

    The T1w scan is registered; other contrasts follow it where they are on its grid, and are left out where not.

    Args:
        contrasts: which scans, T1w among them; those that the folder does not have are left out.
    Raises:
        InputError: none is left.
    """
    import torch

    from cftools.cohort import find_scans
    from cftools.prepare import prepare

    known: dict[tuple[str, str | None], Prepared] = {}

    def made(scan: Scan, load: Callable[[], Volume]) -> Tensor:
        volume, first = load(), known.get((scan.subject, scan.session))
        if first is not None:
            first.volume.check_same_grid(volume)
        prepared = prepare(volume, grid, first.to_mni if first else None)
        known.setdefault((scan.subject, scan.session), prepared)
        return torch.from_numpy(prepared.image)[None].clamp(0, 1.5)

    scans = _chosen(folder, "T1w", labels, ages, option)
    people = {(scan.subject, scan.session) for scan in scans}
    for contrast in contrasts:
        if contrast != "T1w":
            try:
                scans += [scan for scan in find_scans(folder, contrast) if (scan.subject, scan.session) in people]
            except InputError:
                continue
    images = _each(scans, made, "scans")
    if not images:
        raise InputError(f"{folder}: no {' or '.join(contrasts)} scan in it can be used")
    return images


def real_people(
    folder: Path, grid: Grid, labels: list[str] | None = None, ages: str | None = None, cache: Path | None = None
) -> list[Portrait]:
    """The T1w scans of a BIDS folder as they are, with age and sex; those of unknown age are left out.

    Args:
        grid, labels, ages, cache: as above.
    Raises:
        InputError: none is left.
    """
    import torch

    from cftools.condition import Condition
    from cftools.prepare import prepare
    from cftools.train.people import Portrait

    def made(scan: Scan, load: Callable[[], Volume]) -> Portrait:
        if scan.age is None:
            raise InputError(f"{scan.path}: its age is not known, in participants.tsv or a sidecar")

        def parts() -> dict[str, Tensor]:
            return {"image": torch.from_numpy(prepare(load(), grid).image)[None].clamp(0, 1.5)}

        image = _kept(cache, "people-as-they-are", grid, scan, parts)["image"]
        return Portrait(image.half(), Condition({"age": scan.age, "sex": scan.sex}), scan.subject)

    people = _each(_chosen(folder, "T1w", labels, ages, "--data-ages"), made, "scans")
    if not people:
        raise InputError(f"{folder}: no T1w scan in it can be used")
    return people


def real_heads(folder: Path, labels: list[str] | None = None, ages: str | None = None) -> list[Tensor]:
    """The T1w scans of a BIDS folder as `train.brainmask.real_head` keeps them; those without labels are left out.

    Args:
        labels, ages: as above.
    Raises:
        InputError: none is left.
    """
    from cftools.train.brainmask import real_head
    from cftools.volume import Volume

    def made(scan: Scan, load: Callable[[], Volume]) -> Tensor:
        if scan.brain is None:
            raise InputError(f"{scan.path}: there is no mask of its brain under derivatives/")
        return real_head(load(), Volume.load(scan.brain))

    heads = _each(_chosen(folder, "T1w", labels, ages, "--data-ages"), made, "heads", cut=False)
    if not heads:
        raise InputError(f"{folder}: no head in it can be used")
    return heads


def _chosen(folder: Path, contrast: str, labels: list[str] | None, ages: str | None, option: str) -> list[Scan]:
    from cftools.cohort import find_scans

    wanted = [name for text in labels or [] for name in text.split(",")]
    low, high = options.numbers(ages, 2, option) if ages else (0.0, 130.0)
    found = find_scans(folder, contrast, wanted)
    for subject, times in Counter(scan.subject for scan in found).items():
        if times > 1:
            warnings.warn(
                f"{folder}: {subject} has {times} {contrast} scans; each is taken, as if of a person of its own",
                CftoolsWarning,
                stacklevel=2,
            )
    return [scan for scan in found if scan.age is None or low <= scan.age <= high]


def _kept(
    cache: Path | None, name: str, grid: Grid, scan: Scan, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What is made of a scan on a grid: kept in a cache under what is in its files, with what was said of it.

    Args:
        cache: None to keep nothing; name: of what is made.
    """
    if cache is None:
        return make()

    import torch

    from cftools import __version__
    from cftools.train.store import Store

    def said() -> dict[str, Tensor]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            made = make()
        texts = json.dumps([str(one.message) for one in found if issubclass(one.category, CftoolsWarning)])
        return {**made, SAID: torch.tensor(list(texts.encode()), dtype=torch.uint8)}

    files = (path for path in (scan.path, scan.brain) if path is not None)
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    key = hashlib.sha256(json.dumps([__version__, grid.name, contents]).encode()).hexdigest()[:24]
    kept = dict(Store(cache / name).get(key, said))
    for text in json.loads(bytes(kept.pop(SAID).tolist())):
        warnings.warn(text, CftoolsWarning, stacklevel=2)
    return kept


def _each(
    scans: list[Scan], make: Callable[[Scan, Callable[[], Volume]], Made], title: str, cut: bool = True
) -> list[Made]:
    """What is made of each scan, its brain cut out where a mask is known; those that fail with a warning alone.

    Args:
        make: of a scan and what loads it; cut: whether to cut it out.
    """
    from cftools.volume import Volume

    def load(scan: Scan) -> Volume:
        volume = Volume.load(scan.path)
        if not cut or scan.brain is None:
            return volume
        brain = Volume.load(scan.brain)
        volume.check_same_grid(brain)
        return volume.with_array(volume.array * (brain.array > 0))

    found = []
    with terminal.progress(title) as report:
        for done, scan in enumerate(scans, start=1):
            try:
                found.append(make(scan, partial(load, scan)))
            except OutputError:  # of the cache
                raise
            except CftoolsError as error:
                warnings.warn(f"left out: {error}", CftoolsWarning, stacklevel=2)
            report(done, len(scans), note=scan.subject)
    return found
