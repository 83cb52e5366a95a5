"""The simulator: its volumes follow the law, its twins differ in age alone, its files are BIDS."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cftools import field
from cftools.condition import Change
from cftools.errors import OutputError, UsageError
from cftools.phantom.anatomy import STRUCTURES, VOXEL_ML, Anatomy, template_anatomy
from cftools.phantom.cohort import simulate, write_cohort
from cftools.phantom.deform import TARGETS, Knobs
from cftools.phantom.law import AgeingLaw, load_law
from cftools.phantom.twins import Aged, Family
from cftools.prepare import GRID_2MM
from cftools.volume import Volume


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return template_anatomy(GRID_2MM)


@pytest.fixture(scope="module")
def law() -> AgeingLaw:
    return load_law("normative")


@pytest.fixture(scope="module")
def family(anatomy: Anatomy, law: AgeingLaw) -> Family:
    return Family([anatomy], law)


@pytest.fixture(scope="module")
def cohort(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "twins"
    write_cohort(out, family, GRID_2MM, 2, seed=7, twins=[Change.parse("age", "+30")])
    return out


def test_template_holds_a_brain(anatomy: Anatomy) -> None:
    ml = dict(zip(STRUCTURES, anatomy.regions[0].sum((1, 2, 3)) * VOXEL_ML, strict=True))
    assert 12 < ml["lateral_ventricles"] < 26
    assert 6 < ml["hippocampus"] < 14
    assert 700 < ml["cortex"] < 1100 and 500 < ml["white_matter"] < 800
    total = anatomy.tissues.sum(1)
    assert float(total.max()) < 1.01 and float(total.min()) >= 0
    left, right = (anatomy.labels == 5)[:40].sum(), (anatomy.labels == 5)[40:].sum()
    assert 0.7 < left / right < 1.4


@pytest.mark.parametrize("age", [10, 45, 70, 85, 95])
@pytest.mark.parametrize("sex", ["F", "M"])
def test_volumes_follow_the_law(anatomy: Anatomy, law: AgeingLaw, age: float, sex: str) -> None:
    knobs = Knobs.of(anatomy)
    wanted = torch.tensor([np.log(law.ratio(name, age, sex)) for name in TARGETS], dtype=torch.float32)
    amounts = knobs.solve(wanted)
    got = torch.log(knobs.grown(amounts).sum((1, 2, 3)) / knobs.regions.sum((1, 2, 3)))
    displacement = field.exponential(-knobs.velocity(amounts))
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=0.04 if age < 95 else 0.08)
    assert float(field.jacobian(displacement).min()) > 0, "space folds"


def test_what_a_subject_shows_follows_the_law(anatomy: Anatomy, law: AgeingLaw) -> None:
    """Through its own shape and affine too, which interpolate the field once more."""
    subject = Family([anatomy], law, varied=True).draw(3, 1)
    young, old = subject.at(35.0), subject.at(75.0)
    grown = [np.log(old.volumes()[name] / young.volumes()[name]) for name in TARGETS]
    wanted = (subject.log_ratios(75.0) - subject.log_ratios(35.0)).numpy()
    np.testing.assert_allclose(grown, wanted, atol=0.04)
    # The displacement handed to the training grows them by as much, on its coarser grid.
    regions = field.warp(anatomy.regions[:, [STRUCTURES.index(name) for name in TARGETS]], young.displacement)
    for shown in (young.to(old), field.coarsen(young.to(old), (40, 48, 44))):
        moved = field.warp(regions, shown)
        np.testing.assert_allclose(torch.log(moved.sum((2, 3, 4)) / regions.sum((2, 3, 4)))[0], wanted, atol=0.09)


def test_cranium_does_not_change(family: Family) -> None:
    subject = family.draw(3, 0)
    young, old = (subject.at(age) for age in (20.0, 80.0))
    assert torch.equal(young.image() > 0, old.image() > 0)


def test_a_twin_differs_in_age_alone(family: Family) -> None:
    subject = family.draw(1, 4)
    same = subject.at(40.0).image()
    assert torch.equal(same, subject.at(40.0).image())
    older = subject.at(70.0)
    assert older.volumes()["lateral_ventricles"] > 1.3 * subject.at(40.0).volumes()["lateral_ventricles"]
    assert older.volumes()["cortex"] < subject.at(40.0).volumes()["cortex"]


def test_the_true_field_makes_one_twin_the_other(family: Family) -> None:
    subject = family.draw(1, 2)
    before, after = subject.at(35.0), subject.at(70.0)
    moved = field.warp(before.image(), before.to(after))
    nothing = (before.image() - after.image()).abs().mean()
    assert (moved - after.image()).abs().mean() < 0.5 * nothing


def test_subjects_do_not_depend_on_order(family: Family) -> None:
    alone = family.draw(5, 3)
    family.draw(5, 1)
    again = family.draw(5, 3)
    assert torch.equal(alone.to_base, again.to_base) and alone.scanner.seed == again.scanner.seed


def test_a_share_grows_from_the_first_anatomy(anatomy: Anatomy, law: AgeingLaw) -> None:
    other = replace(anatomy, name="other")
    for share, expected in ((0.0, "other"), (1.0, anatomy.name)):
        pair = Family([anatomy, other], law, first=share)
        assert {pair.draw(0, index).anatomy.name for index in range(6)} == {expected}


def test_nothing_is_left_behind_when_the_simulator_moves(anatomy: Anatomy, law: AgeingLaw) -> None:
    """On a device without numbers, where whatever was left on the CPU is refused."""
    family = Family([anatomy], law, varied=True)
    here, there = family.draw(3, 1), family.to("meta").draw(3, 1)
    velocity = there.knobs.velocity(here.knobs.solve(here.log_ratios(70)))
    aged = Aged(there, 70.0, velocity)
    for contrast in ("T1w", "FLAIR"):
        assert aged.image(contrast).is_meta
    assert aged.strip().is_meta and aged.inverse.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_simulates_the_same_people(family: Family) -> None:
    here, there = (one.draw(3, 1).at(70).image("T1w").cpu() for one in (family, family.to("cuda")))
    assert (here - there).abs().mean() < 1e-3


def test_people_once_registered_are_plain_scans_in_place(anatomy: Anatomy, law: AgeingLaw) -> None:
    """Of the template's size, whoever they are, and nearer to it than those whom a network must take."""
    registered, varied = Family([anatomy], law, registered=True), Family([anatomy], law, varied=True)
    template = anatomy.regions.sum(1, keepdim=True).clamp(0, 1)

    def off(family: Family, index: int) -> float:
        head = family.draw(3, index).at(40.0).image() > 0
        return float((head.float() - template).abs().sum() / template.sum())

    found = [off(registered, index) for index in range(4)]
    assert max(found) < 0.2 and np.mean(found) < np.mean([off(varied, index) for index in range(4)])
    moved = [float(registered.draw(3, index).to_base.abs().max()) for index in range(6)]
    assert max(moved) < 14, "nobody is turned, or mirrored as some of those are"
    assert max(float(varied.draw(3, index).to_base.abs().max()) for index in range(6)) > 100
    women, men = (sum(registered.draw(3, 0, sex).at(30.0).volumes().values()) for sex in "FM")
    assert abs(women / men - 1) < 0.02, "head size is taken out"
    assert registered.draw(3, 0).scanner.resolution == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="one of the two"):
        Family([anatomy], law, varied=True, registered=True)


def test_sexes_differ_in_head_size(family: Family) -> None:
    women = np.mean([sum(family.draw(0, i, "F").at(30.0).volumes().values()) for i in range(4)])
    men = np.mean([sum(family.draw(0, i, "M").at(30.0).volumes().values()) for i in range(4)])
    assert 1200 < women < men < 1700


def test_cohort_is_bids_with_truth(cohort: Path) -> None:
    people = list(csv.DictReader((cohort / "participants.tsv").open(), delimiter="\t"))
    assert [person["participant_id"] for person in people] == ["sub-0001", "sub-0002"]
    truth = cohort / "derivatives" / "truth"
    volumes = list(csv.DictReader((truth / "volumes.tsv").open(), delimiter="\t"))
    for person in people:
        name = person["participant_id"]
        assert 5 <= float(person["age"]) <= 70
        scan = Volume.load(cohort / name / "anat" / f"{name}_T1w.nii.gz")
        twin = Volume.load(truth / name / "anat" / f"{name}_desc-agePlus30_T1w.nii.gz")
        np.testing.assert_array_equal(scan.affine, twin.affine)
        now, then = (row for row in volumes if row["participant_id"] == name)
        assert float(then["lateral_ventricles"]) > float(now["lateral_ventricles"])
        assert float(then["age"]) == pytest.approx(float(now["age"]) + 30)
        labels = Volume.load(truth / name / "anat" / f"{name}_desc-agePlus30structures_dseg.nii.gz")
        ml = float((labels.array == 5).sum()) * labels.voxel_volume / 1000
        assert ml == pytest.approx(float(then["lateral_ventricles"]), rel=0.2)


def test_cohort_is_the_same_whatever_its_size(cohort: Path, family: Family, tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", family, GRID_2MM, 1, seed=7, twins=[Change.parse("age", "+30")])
    name = "sub-0001/anat/sub-0001_T1w.nii.gz"
    assert (tmp_path / "one" / name).read_bytes() == (cohort / name).read_bytes()


def test_cohort_refuses_what_cannot_be(cohort: Path, family: Family) -> None:
    with pytest.raises(OutputError, match="not empty"):
        write_cohort(cohort, family, GRID_2MM, 1, seed=7)
    with pytest.raises(OutputError, match=r"sub-0002.*: is there"):
        write_cohort(cohort, family, GRID_2MM, 1, seed=7, twins=[Change.parse("age", "+30")], force=True)
    with pytest.raises(OutputError, match=r"agePlus30_T1w.nii.gz: is there"):
        write_cohort(cohort, family, GRID_2MM, 2, seed=7, twins=[Change.parse("age", "+20")], force=True)
    with pytest.raises(UsageError, match=r"--twin agePlus96: no age"):
        write_cohort(cohort, family, GRID_2MM, 1, seed=7, twins=[Change.parse("age", "+96")])
    with pytest.raises(UsageError, match="sex"):
        write_cohort(cohort, family, GRID_2MM, 1, seed=7, twins=[Change.parse("sex", "F")])


def test_twins_that_suit_no_age_together_go_to_whom_they_suit(family: Family) -> None:
    twins = [Change.parse("age", "-60"), Change.parse("age", "+60"), Change.parse("age", "50")]
    given = set()
    for _, _, images in simulate(family, 4, 7, (5.0, 100.0), twins):
        age = images[0][1].age
        ages = {"": age, "ageMinus60": age - 60, "agePlus60": age + 60, "age50": 50.0}
        assert {desc: aged.age for desc, aged in images} == {desc: one for desc, one in ages.items() if 5 <= one <= 100}
        given |= {desc for desc, _ in images}
    assert given == {"", "ageMinus60", "agePlus60", "age50"}


def test_altered_law_is_another_world(anatomy: Anatomy, family: Family) -> None:
    other = Family([anatomy], load_law("altered"))
    ours, theirs = family.draw(2, 0), other.draw(2, 0)
    assert torch.equal(ours.to_base, theirs.to_base)
    assert not torch.allclose(ours.log_ratios(80.0), theirs.log_ratios(80.0), atol=0.05)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cftools.cli.phantom import main

    out = tmp_path / "twins"
    assert main([str(out), "--seed", "7", "--twin", "age=+20,-20", "--ages", "30,40"]) == 0
    truth = out / "derivatives" / "truth" / "sub-0001" / "anat"
    assert {path.name for path in truth.glob("*_T1w.nii.gz")} == {
        "sub-0001_desc-agePlus20_T1w.nii.gz",
        "sub-0001_desc-ageMinus20_T1w.nii.gz",
    }
    assert capsys.readouterr().out.strip() == str(out)
    assert main([str(out)]) == 2, "not empty"
    for words in (["--twin", "age"], ["--ages", "40,30"], ["--contrast", "PDw"], ["--voxel-size", "3"]):
        assert main([str(tmp_path / "new"), *words]) == 2
        assert not (tmp_path / "new").exists()
