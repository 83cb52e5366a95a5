"""Who is trained on: simulated subjects and cohorts by number, kept in memory or in a folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bad_nifti import picture

from cftools.cli.bases import base_anatomies, real_people
from cftools.condition import Condition
from cftools.errors import CftoolsWarning, OutputError, PresetError
from cftools.nets.convolutional import ConvolutionalArchitecture
from cftools.phantom.anatomy import Anatomy, template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_1MM, GRID_2MM, Grid
from cftools.preset import load_preset
from cftools.schema import FrozenMapping
from cftools.train.kinds import VARIABLES, Job
from cftools.train.people import Batches, Cohort, Portrait, Simulated
from cftools.train.recipes import job_of
from cftools.train.regressor import CategoryObjective
from cftools.train.store import Made, Store
from cftools.volume import Volume

TOLD = {name: VARIABLES[name] for name in ("age", "sex")}


@pytest.fixture(scope="module")
def family() -> Family:
    return Family([template_anatomy()], load_law("normative"))


def portraits(*ages: float | None) -> list[Portrait]:
    return [
        Portrait(torch.full((1, 2, 2, 2), number / 8), Condition({"age": age, "sex": "F"}))
        for number, age in enumerate(ages)
    ]


def test_a_folder_is_shared_and_a_cut_file_is_made_anew(tmp_path: Path) -> None:
    made: list[int] = []

    def make(number: int) -> Made:
        made.append(number)
        return {"x": torch.full((2, 3), float(number)).half()}

    one, other = Store(tmp_path / "kept"), Store(tmp_path / "kept")
    assert torch.equal(one.get(7, lambda: make(7))["x"], other.get(7, lambda: make(7))["x"])
    assert made == [7], "made once, met twice"
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert float(one.get(7, lambda: make(7))["x"][0, 0]) == 7 and made == [7, 7]
    memory = Store()
    assert memory.get(1, lambda: make(1)) is memory.get(1, lambda: make(1))


def test_what_one_process_makes_the_others_wait_for(tmp_path: Path) -> None:
    def get(_process: int) -> float:
        def make() -> Made:
            with open(tmp_path / "made", "a") as stream:
                stream.write("x")
            time.sleep(0.3)
            return {"x": torch.ones(1)}

        return float(Store(tmp_path / "kept").get(3, make)["x"])

    with ThreadPoolExecutor(4) as threads:  # a lock is of an open file, in whichever process
        assert list(threads.map(get, range(4))) == [1] * 4
    assert (tmp_path / "made").read_text() == "x"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["000003.safetensors"], "no lock is left"


def test_a_file_system_without_locks_makes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("cftools.train.store.FileLock.acquire", refuse)
    assert float(Store(tmp_path).get(3, lambda: {"x": torch.ones(1)})["x"]) == 1


def test_simulated_people_are_the_same_from_memory_and_folder(family: Family, tmp_path: Path) -> None:
    kept = Store(tmp_path)
    people = [
        Simulated(family, 3, ages=2, size=4, contrasts=("T1w", "FLAIR"), variables=TOLD, store=store)
        for store in (Store(), kept, kept)
    ]
    first, *others = [one.scans(2) for one in people]
    assert first["image"].shape == (2, 1, 80, 96, 88) and first["context"].shape == (2, 2)
    assert first["context"][0, 0] != first["context"][1, 0] and first["context"][0, 1] == first["context"][1, 1]
    for other in others:
        assert torch.equal(first["image"], other["image"]) and torch.equal(first["context"], other["context"])
    told_less = Simulated(family, 3, 2, 4, ("T1w", "FLAIR"), {"sex": TOLD["sex"]}, store=kept).scans(2)
    assert torch.equal(told_less["context"], first["context"][:, 1:]), "what is told is not kept with the images"


def test_a_cohort_comes_by_decades_of_age() -> None:
    people = Cohort(portraits(21, 22, 23, 24, 25, 26, 27, 63), TOLD)
    random = np.random.default_rng(0)
    drawn = [people.pick(random, people.size) for _ in range(400)]
    assert 160 < drawn.count(7) < 240, "one decade of two, and one scan of eight"
    assert {people.pick(random, 7) for _ in range(100)} == set(range(7)), "who has not joined is not met"
    scan = people.scans(7)
    assert scan["image"].shape == (1, 1, 2, 2, 2) and scan["context"].shape == (1, 2)
    assert float(scan["context"][0, 0]) == pytest.approx(2 * (63 - 5) / 95 - 1)


def test_who_has_no_age_is_a_decade_of_its_own() -> None:
    people = Cohort(portraits(None, 30), TOLD)
    assert torch.isnan(people.scans(0)["context"][0, 0])
    random = np.random.default_rng(0)
    assert {people.pick(random, 2) for _ in range(50)} == {0, 1}


def test_batches_let_people_join_and_mirror_them() -> None:
    people = Cohort(portraits(20, 30, 40, 50), TOLD)
    batches = Batches(people, 0, subjects=2, every=3)
    items = [batches[index] for index in range(40)]
    assert items[0]["image"].shape == (2, 1, 1, 2, 2, 2) and items[0]["context"].shape == (2, 1, 2)
    met = [set((8 * item["image"][:, 0, 0, 0, 0, 0]).int().tolist()) for item in items]
    assert met[0] == met[2] == {0} and 1 in met[3] and 2 in met[6] and set().union(*met) == {0, 1, 2, 3}
    assert torch.equal(batches[17]["image"], items[17]["image"])

    slope = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    one = Batches(Cohort([Portrait(slope, Condition())], TOLD), 0, subjects=1)
    ways = {float(one[index]["image"][0, 0, 0, 0, 0, 0]) for index in range(20)}
    assert ways == {0.0, 1.0}, "left for right, or not"


def test_paired_subjects_differ_by_sex_alone_and_come_together() -> None:
    varied = Family([template_anatomy()], load_law("normative"), varied=True)
    people = Simulated(varied, 3, ages=2, size=2, variables=TOLD, paired=True)
    scans = people.scans(1)
    context = scans["context"]
    assert scans["image"].shape == (4, 1, 80, 96, 88) and context[:, 1].tolist() == [-1, 1, -1, 1]
    assert context[0, 0] == context[1, 0] != context[2, 0] == context[3, 0]
    apart = (scans["image"][0].float() - scans["image"][1].float()).abs().mean()
    aged = (scans["image"][0].float() - scans["image"][2].float()).abs().mean()
    assert 0 < apart < 0.5 * aged, "one anatomy, of which sex changes less than decades do"
    batches = Batches(people, 0, subjects=2, alike=2)
    for item in (batches[index] for index in range(4)):
        assert item["image"].shape == (2, 2, 1, 80, 96, 88)
        assert torch.equal(item["context"][:, 0, 0], item["context"][:, 1, 0]), "of one age"
        assert item["context"][:, :, 1].tolist() == [[-1, 1], [-1, 1]]


def test_a_recipe_says_whom_it_is_trained_on(tmp_path: Path) -> None:
    law, anatomies = load_law("normative"), [template_anatomy()]

    def job(preset: str, real: Sequence[Portrait] = (), **data: object) -> Job:
        recipe = load_preset(preset).recipe_for()
        recipe = replace(recipe, data=FrozenMapping({**recipe.data, **data}))
        return job_of(recipe, ["sex"] if preset == "sex" else ["age", "sex"], anatomies, real, law, 0, tmp_path)

    def folder(one: Job) -> Path | None:
        return one.people().store.folder  # type: ignore[union-attr]

    sexes = job("sex")
    assert sexes.family.registered and not sexes.family.varied
    assert job("sex", people="varied").family.varied
    batches = Batches.of(sexes)
    assert isinstance(batches.people, Simulated) and batches.people.paired
    assert (batches.subjects, batches.alike) == (8, 2), "sixteen in a step"
    assert CategoryObjective.of(sexes, ConvolutionalArchitecture(2)).alike == 2, "a pair has one look"
    alone = Batches.of(job("sex", paired=False))
    assert (alone.subjects, alone.alike) == (16, 1)
    given = Batches.of(job("sex", portraits(20, 30)))
    assert (given.subjects, given.alike) == (16, 1), "a cohort is as it is"
    with pytest.raises(PresetError, match="even number"):
        Batches.of(job("sex", subjects=5))

    plain = job("ldm")
    assert plain.family.registered and not plain.family.varied
    assert not job("ldm", people="varied").family.registered
    assert folder(sexes) != folder(job("sex", paired=False)), "neither is taken for the other"
    assert folder(plain) != folder(job("ldm", people="varied"))


def test_what_a_cache_keeps_of_scans_goes_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An anatomy takes ten seconds; a cohort's, at each start of a training anew, hours."""
    bids, cache, made = tmp_path / "bids", tmp_path / "cache", []
    anat = bids / "sub-01" / "anat"
    anat.mkdir(parents=True)
    scan = anat / "sub-01_T1w.nii.gz"
    Volume.from_array(picture(), np.eye(4)).save(scan)
    ages = bids / "participants.tsv"
    ages.write_text("participant_id\tage\tsex\nsub-01\t40\tF\n")

    def fake(volume: Volume, age: float, sex: str | None, name: str, grid: Grid) -> Anatomy:
        warnings.warn(f"{name}: looks odd", CftoolsWarning, stacklevel=1)
        made.append(round(float(volume.array.mean() / picture().mean()), 3))
        values = torch.full((1, 3, 2, 2, 2), made[-1])
        return Anatomy(
            name, age, sex, values, values[:, :1].clone(), values.clone(), values[0, 0].numpy().astype(np.uint8)
        )

    def found(where: Path | None) -> Anatomy:
        with pytest.warns(CftoolsWarning, match="sub-01: looks odd"):
            (one,) = base_anatomies(bids, GRID_2MM, cache=where)
        return one

    monkeypatch.setattr("cftools.phantom.anatomy.scan_anatomy", fake)
    first, again = found(cache), found(cache)
    assert made == [1.0], "made once; what was said of it is said again"
    assert torch.equal(first.tissues, again.tissues) and np.array_equal(first.labels, again.labels)
    assert again.labels.dtype == np.uint8
    ages.write_text("participant_id\tage\tsex\nsub-01\t50\tM\n")
    assert (found(cache).age, found(cache).sex, made) == (50.0, "M", [1.0])
    found(None)
    Volume.from_array(2 * picture(), np.eye(4)).save(scan, force=True)
    assert float(found(cache).tissues.mean()) == 2 and made == [1.0, 1.0, 2.0]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        base_anatomies(bids, GRID_2MM, cache=tmp_path / "file")


def test_people_as_they_are_are_registered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, prepared = tmp_path / "cache", []
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    Volume.from_array(picture(), np.eye(4)).save(anat / "sub-01_T1w.nii.gz")
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t40\tF\n")

    def fake(volume: Volume, grid: Grid) -> SimpleNamespace:
        prepared.append(grid.name)
        return SimpleNamespace(image=np.full((2, 2, 2), 0.25 * len(prepared), np.float32))

    monkeypatch.setattr("cftools.prepare.prepare", fake)
    first, again, other = (
        real_people(tmp_path / "bids", grid, cache=cache)[0] for grid in (GRID_2MM, GRID_2MM, GRID_1MM)
    )
    assert prepared == [GRID_2MM.name, GRID_1MM.name], "once on each grid"
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert again.condition == first.condition == Condition({"age": 40.0, "sex": "F"})
