"""What the simulator can change beside age: diagnosis, load and lesions, in every contrast, and the head around."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cftools import field
from cftools.condition import Change
from cftools.errors import InputError, UsageError
from cftools.phantom.anatomy import Anatomy, template_anatomy
from cftools.phantom.cohort import Design, Twin, write_cohort
from cftools.phantom.contrast import CONTRASTS, LESION_TISSUES
from cftools.phantom.deform import TARGETS, flow, skull_window
from cftools.phantom.diagnosis import diagnoses
from cftools.phantom.head import MATERIALS, with_margin
from cftools.phantom.law import load_law
from cftools.phantom.lesion import Lesion, Zones
from cftools.phantom.plaques import LOADS
from cftools.phantom.stroke import stroke
from cftools.phantom.twins import LESION_LABEL, Aged, Family, Health, Subject
from cftools.prepare import GRID_2MM
from cftools.volume import Volume

AGE = 50.0


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return template_anatomy(GRID_2MM)


@pytest.fixture(scope="module")
def family(anatomy: Anatomy) -> Family:
    return Family([anatomy], load_law("normative"))


@pytest.fixture(scope="module")
def subject(family: Family) -> Subject:
    return family.draw(11, 4)


@pytest.fixture(scope="module")
def well(subject: Subject) -> Aged:
    return subject.at(AGE)


@pytest.fixture(scope="module")
def struck(subject: Subject) -> Aged:
    return subject.at(AGE, Health(lesion="stroke"))


@pytest.fixture(scope="module")
def grown(subject: Subject) -> Aged:
    return subject.at(AGE, Health(lesion="tumour"))


def part(aged: Aged, *names: str) -> Tensor:
    """Voxels that are nearly all one of these lesion tissues, (X, Y, Z) bool."""
    lesions = aged.lesions
    assert lesions is not None
    return lesions[0, [LESION_TISSUES.index(name) for name in names]].sum(0) > 0.9


def side_of(lesion: Lesion) -> float:
    """-1 where a lesion lies on the left, 1 on the right."""
    middle = field.identity(GRID_2MM.shape)[0] * lesion.tissues[0].sum(0)
    return float(torch.sign(middle.sum()))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_contrasts_show_tissues_as_measured(anatomy: Anatomy, well: Aged, contrast: str) -> None:
    image = well.image(contrast)[0, 0]
    tissues = field.warp(anatomy.tissues, well.displacement)[0]
    fluid, grey, white = (float(image[one > 0.97].median()) for one in tissues)
    known = CONTRASTS[contrast].means
    np.testing.assert_allclose(np.array([fluid, grey]) / white, known[:2], rtol=0.2)
    assert np.array_equal(np.argsort([fluid, grey, white]), np.argsort(known))


def test_a_scan_of_one_contrast_does_not_depend_on_the_others(subject: Subject, well: Aged) -> None:
    assert torch.equal(well.image("FLAIR"), subject.at(AGE).image("FLAIR"))
    assert subject.scanned("T1w") is subject.scanner
    assert subject.scanned("T2w").seed != subject.scanned("FLAIR").seed


@pytest.mark.parametrize("name", ["MCI", "AD"])
def test_diagnosis_changes_volumes_by_its_table(subject: Subject, name: str) -> None:
    """Through the same solution as ageing, and with the subject's own shape composed."""
    healthy, ill = subject.at(75.0), subject.at(75.0, Health(diagnosis=name))
    before, after = healthy.volumes(), ill.volumes()
    grown = [np.log(after[structure] / before[structure]) for structure in TARGETS]
    wanted = [np.log(diagnoses()[name].ratios[structure]) for structure in TARGETS]
    np.testing.assert_allclose(grown, wanted, atol=0.04)
    assert after["hippocampus"] < before["hippocampus"] and after["lateral_ventricles"] > before["lateral_ventricles"]
    assert float(field.jacobian(field.exponential(-ill.velocity)).min()) > 0, "space folds"


def test_loads_are_nested(subject: Subject, well: Aged) -> None:
    fractions, volumes = [], []
    for load in ("low", "medium", "high"):
        lesion = subject.lesion(Health(load=load))
        assert lesion is not None
        fractions.append(lesion.tissues)
        volumes.append(float(lesion.tissues.sum()) * field.voxel_ml(lesion.tissues))
        assert volumes[-1] == pytest.approx(LOADS[load], rel=0.75)
    for less, more in pairwise(fractions):
        assert bool((less <= more + 1e-6).all()), "a lesion of the lower load is missing from the higher"
    assert volumes[0] < volumes[1] < volumes[2]


def test_plaques_change_nothing_elsewhere(subject: Subject, well: Aged) -> None:
    ill = subject.at(AGE, Health(load="high"))
    lesions = ill.lesions
    assert lesions is not None
    outside = lesions.sum(1, keepdim=True) == 0
    assert float(outside.float().mean()) > 0.3
    for contrast in CONTRASTS:
        before, after = well.image(contrast), ill.image(contrast)
        assert torch.equal(before[outside], after[outside])
    inside = lesions.sum(1, keepdim=True) > 0.8
    for contrast, brighter in (("FLAIR", True), ("T2w", True), ("T1w", False)):
        change = (ill.image(contrast) - well.image(contrast))[inside].median()
        assert (change > 0.1) if brighter else (change < -0.1), contrast
    active = part(ill, "active_plaque")
    assert active.any() and float(ill.image("T1ce")[0, 0][active].median()) > 1.3


def test_plaques_lie_in_white_matter_by_the_ventricles(anatomy: Anatomy, subject: Subject) -> None:
    lesion = subject.lesion(Health(load="medium"))
    assert lesion is not None
    share, zones = lesion.tissues[0].sum(0).numpy(), Zones(anatomy)
    assert (share * zones.white).sum() > 0.75 * share.sum()
    white = zones.white / zones.white.sum()
    assert (share * (zones.from_ventricles < 12)).sum() / share.sum() > 2 * white[zones.from_ventricles < 12].sum()


def test_an_old_infarct_is_a_hole_with_a_scar(well: Aged, struck: Aged) -> None:
    cavity, scar = part(struck, "cavity"), part(struck, "gliosis")
    images = {contrast: struck.image(contrast)[0, 0] for contrast in CONTRASTS}
    assert float(images["T1w"][cavity].median()) < 0.4 and float(images["T2w"][cavity].median()) > 2
    assert float(images["FLAIR"][cavity].median()) < 0.6 < 1.3 < float(images["FLAIR"][scar].median())
    labels = struck.labels()
    assert bool((labels[cavity] == LESION_LABEL).all())
    assert not bool((well.labels() == LESION_LABEL).any())


def test_the_ventricle_widens_on_the_side_of_an_infarct(anatomy: Anatomy, family: Family) -> None:
    subject = next(one for one in (family.draw(11, i) for i in range(9)) if ml(one, "stroke") > 25)
    lesion = subject.lesion(Health(lesion="stroke"))
    assert lesion is not None and lesion.velocity is not None
    ventricles = torch.from_numpy(Zones(anatomy).fraction("lateral_ventricles"))[None, None]
    after = field.warp(ventricles, field.exponential(-lesion.velocity))
    x = field.identity(GRID_2MM.shape)[None, :1] * side_of(lesion)
    own, other = (float(after[on].sum() / ventricles[on].sum()) for on in (x > 0, x < 0))
    assert own > 1.05 and own > other + 0.04


def ml(subject: Subject, name: str) -> float:
    lesion = subject.lesion(Health(lesion=name))
    assert lesion is not None
    return float(lesion.tissues.sum()) * field.voxel_ml(lesion.tissues)


def test_a_tumour_enhances_around_a_dead_core_in_oedema(grown: Aged) -> None:
    dead, rim, oedema = (part(grown, name) for name in ("necrosis", "enhancing", "oedema"))
    enhanced, flair = grown.image("T1ce")[0, 0], grown.image("FLAIR")[0, 0]
    assert float(enhanced[rim].median()) > 1.4 > 0.7 > float(enhanced[dead].median())
    assert float(flair[oedema].median()) > 1.4
    assert 20 < grown.lesion_ml() < 200


def test_a_tumour_pushes_the_midline_away_without_a_fold(anatomy: Anatomy, family: Family) -> None:
    for index in (3, 4):
        lesion = family.draw(11, index).lesion(Health(lesion="tumour"))
        assert lesion is not None and lesion.velocity is not None
        pulled, pushed = field.exponential(-lesion.velocity), field.exponential(lesion.velocity)
        assert float(field.jacobian(pulled).min()) > 0.1, "space folds"
        # Where the septum and the third ventricle stand.
        middle = pushed[0, 0, 19:21, 14:34, 16:30] * -side_of(lesion)
        assert float(middle.mean()) > 0.3 and 1.0 < float(middle.max()) < 15
        core = lesion.tissues[:, [LESION_TISSUES.index("necrosis"), LESION_TISSUES.index("enhancing")]]
        assert field.warp(core, pulled).sum() > 1.8 * core.sum()
        ventricles = torch.from_numpy(Zones(anatomy).fraction("lateral_ventricles"))[None, None]
        assert field.warp(ventricles, pulled).sum() < 0.98 * ventricles.sum()


def test_lesions_stay_in_the_skull_and_in_their_place_when_age_changes(subject: Subject, grown: Aged) -> None:
    older = subject.at(80.0, Health(lesion="tumour"))
    assert torch.equal(grown.image() > 0, older.image() > 0)
    places = [part(aged, "necrosis", "enhancing").nonzero().float().mean(0) for aged in (grown, older)]
    assert float((places[0] - places[1]).norm()) < 4, "voxels"


def test_two_kinds_of_lesion_at_once(subject: Subject) -> None:
    both = subject.at(AGE, Health(diagnosis="AD", load="low", lesion="stroke"))
    lesions = both.lesions
    assert lesions is not None and float(lesions.sum(1).max()) <= 1 + 1e-5
    kinds = lesions[0].sum((1, 2, 3)) > 0
    assert kinds[LESION_TISSUES.index("plaque")] and kinds[LESION_TISSUES.index("cavity")]


def test_flow_gains_volume_where_it_is_asked_to(anatomy: Anatomy) -> None:
    """And almost nowhere else: what is far away moves, and is not squeezed."""
    inside, window = skull_window(anatomy)
    points = field.identity(tuple(window.shape[2:]))[None]
    ball = ((points - torch.tensor([30.0, 0, 20]).view(1, 3, 1, 1, 1)).square().sum(1, keepdim=True) < 15**2).float()
    away = ((points - torch.tensor([-30.0, 0, 20]).view(1, 3, 1, 1, 1)).square().sum(1, keepdim=True) < 15**2).float()
    velocity = flow(0.5 * ball, window)
    gained = field.warp(ball, field.exponential(-velocity)).sum() / ball.sum()
    beyond = field.warp(away, field.exponential(-velocity)).sum() / away.sum()
    assert float(gained) == pytest.approx(1.5, abs=0.08)
    assert float(beyond) == pytest.approx(1.0, abs=0.03)
    assert float(velocity[:, :, ~inside[0, 0]].abs().max()) == 0


def test_strokes_take_the_shape_of_a_mask(anatomy: Anatomy, tmp_path: Path) -> None:
    """The mask is where the lesion is, and masks of no use are passed over."""
    x, y, z = Zones(anatomy).points
    ball = np.sqrt((x - 40) ** 2 + (y + 20) ** 2 + (z - 20) ** 2) < 14
    for name, values in (("small", ball & (x < 27)), ("whole", z > -40), ("ball", ball)):
        Volume.from_array(values.astype(np.float32), GRID_2MM.affine, code=4).save(tmp_path / f"{name}.nii.gz")
    masks = sorted(tmp_path.glob("*.nii.gz"))
    lesion = stroke(Zones(anatomy), np.random.default_rng(0), masks)
    assert lesion.source == "ball.nii.gz"
    found = lesion.tissues[0].sum(0).numpy() > 0.5
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.9
    with pytest.raises(InputError, match="none of 1 masks"):
        stroke(Zones(anatomy), np.random.default_rng(0), [tmp_path / "whole.nii.gz"])


def test_a_head_holds_the_brain(subject: Subject, well: Aged) -> None:
    grid = with_margin(GRID_2MM)
    head = subject.head
    image = head.around(well.image(), subject.cranium, subject.scanner)[0, 0]
    assert tuple(image.shape) == grid.shape == head.materials.shape
    start = tuple(np.round(np.linalg.inv(grid.affine) @ GRID_2MM.affine[:, 3]).astype(int)[:3])
    box = tuple(slice(low, low + n) for low, n in zip(start, GRID_2MM.shape, strict=True))
    kept = subject.cranium[0, 0] > 0.5
    assert torch.equal(image[box][kept], well.image()[0, 0][kept])
    brain = well.brain().bool()
    assert bool(kept[brain].all()) and 0.6 < float(brain.sum() / kept.sum()) < 0.99
    assert float(image[:3].median()) < 0.1, "air around"
    assert float(image[head.materials == MATERIALS.index("fat")].median()) > 1
    litres = float((head.materials > 0).sum() + kept.sum()) * 8e-6
    assert 2.5 < litres < 6


def test_cohort_of_effects_is_bids(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "effects"
    twins: list[Twin] = [Change.parse("load", "none"), (Change.parse("lesion", "stroke"), Change.parse("age", "+10"))]
    design = Design({"load": ("low",), "diagnosis": ("MCI",)}, ("FLAIR", "T1ce"), skull=True)
    write_cohort(out, family, GRID_2MM, 1, 3, twins, (40.0, 60.0), design=design)
    assert {path.name for path in (out / "sub-0001" / "anat").glob("*.nii.gz")} == {
        "sub-0001_FLAIR.nii.gz",
        "sub-0001_ce-gadolinium_T1w.nii.gz",
    }
    truth = out / "derivatives" / "truth"
    assert {path.name for path in (truth / "sub-0001" / "anat").glob("*.nii.gz")} == {
        "sub-0001_desc-loadNone_FLAIR.nii.gz",
        "sub-0001_ce-gadolinium_desc-loadNone_T1w.nii.gz",
        "sub-0001_desc-agePlus10LesionStroke_FLAIR.nii.gz",
        "sub-0001_ce-gadolinium_desc-agePlus10LesionStroke_T1w.nii.gz",
        "sub-0001_desc-structures_dseg.nii.gz",
        "sub-0001_desc-loadNonestructures_dseg.nii.gz",
        "sub-0001_desc-agePlus10LesionStrokestructures_dseg.nii.gz",
        "sub-0001_label-lesion_mask.nii.gz",
        "sub-0001_label-lesion_desc-agePlus10LesionStroke_mask.nii.gz",
        "sub-0001_desc-brain_mask.nii.gz",
        "sub-0001_desc-loadNoneBrain_mask.nii.gz",
        "sub-0001_desc-agePlus10LesionStrokeBrain_mask.nii.gz",
    }
    (person,) = csv.DictReader((out / "participants.tsv").open(), delimiter="\t")
    assert (person["diagnosis"], person["load"], person["lesion"]) == ("MCI", "low", "none")
    now, without, struck = csv.DictReader((truth / "volumes.tsv").open(), delimiter="\t")
    assert float(without["lesion_ml"]) == 0 < float(now["lesion_ml"]) < float(struck["lesion_ml"])
    assert (struck["lesion"], struck["load"], struck["diagnosis"]) == ("stroke", "low", "MCI")
    mask = Volume.load(truth / "sub-0001" / "anat" / "sub-0001_label-lesion_desc-agePlus10LesionStroke_mask.nii.gz")
    assert mask.array.sum() * mask.voxel_volume / 1000 == pytest.approx(float(struck["lesion_ml"]), rel=0.3)
    scan = Volume.load(out / "sub-0001" / "anat" / "sub-0001_FLAIR.nii.gz")
    mask.check_same_grid(scan)


def test_health_that_cannot_be_is_refused(family: Family, tmp_path: Path) -> None:
    for name, value in (("load", "huge"), ("lesion", "CN"), ("diagnosis", "3")):
        with pytest.raises(UsageError, match=f"--twin {name}="):
            write_cohort(tmp_path / "none", family, GRID_2MM, 1, 0, [Change.parse(name, value)])
    assert not (tmp_path / "none").exists()


def test_command_line(tmp_path: Path) -> None:
    from cftools.cli.phantom import main

    out = tmp_path / "out"
    words = ["--contrast", "FLAIR", "--load", "medium", "--twin", "load=none", "--twin", "load=low,age=+5"]
    assert main([str(out), *words, "--ages", "30,40", "--threads", "1"]) == 0
    truth = out / "derivatives" / "truth" / "sub-0001" / "anat"
    assert {path.name for path in truth.glob("*_FLAIR.nii.gz")} == {
        "sub-0001_desc-loadNone_FLAIR.nii.gz",
        "sub-0001_desc-agePlus5LoadLow_FLAIR.nii.gz",
    }
    for bad in (["--load", "some"], ["--lesion", "stroke,stroke"], ["--lesion-masks", str(truth / "no")]):
        assert main([str(tmp_path / "new"), *bad]) == 2
        assert not (tmp_path / "new").exists()
