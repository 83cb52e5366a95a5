"""Volumes: millilitres of the scan itself, a table of them beside the edits, and a network that learns tissues."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import Elements
from torch import Tensor
from torch.utils.data import Dataset

from cftools import weights
from cftools.cli.edit import main as edit
from cftools.cli.view import main as view
from cftools.errors import WeightsError
from cftools.nets.segmenter import Segmenter, SegmenterArchitecture, places
from cftools.phantom.anatomy import STRUCTURES, template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, Prepared, prepare
from cftools.prepare import resample as to_grid
from cftools.register import template
from cftools.train.loop import Schedule, train
from cftools.train.recipes import grid_facts
from cftools.train.segmenter import Segmented, SegmenterObjective
from cftools.volume import Volume
from cftools.volumes import TEMPERATURE, VOLUMES, TissueReader

SMALL = SegmenterArchitecture(STRUCTURES, (8, 8))


def checkpoint(architecture: SegmenterArchitecture = SMALL) -> weights.Checkpoint:
    torch.manual_seed(0)
    facts = weights.Facts(
        architecture="segmenter",
        architecture_arguments=asdict(architecture),
        variables={},
        grid=grid_facts(GRID_2MM),
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
    )
    return weights.Checkpoint("toy", dict(Segmenter(architecture).state_dict()), facts, "0" * 64)


class AllOf(torch.nn.Module):
    """Stands in for a network: everything is one structure."""

    def __init__(self, structure: str) -> None:
        super().__init__()
        self.index = STRUCTURES.index(structure) + 1

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros(len(image), len(STRUCTURES) + 1, *image.shape[2:])
        logits[:, self.index] = 50
        return logits


def scan(stretch: float = 1.0) -> Prepared:
    """The template, larger or smaller than it is."""
    whole = template()
    affine = np.diag([2 * stretch] * 3 + [1.0]) @ np.linalg.inv(np.diag([2.0, 2, 2, 1])) @ GRID_2MM.affine
    return prepare(Volume.from_array(900 * to_grid(whole.array, whole.affine, GRID_2MM), affine))


def test_millilitres_are_those_of_the_scan() -> None:
    reader, found = TissueReader(checkpoint()), []
    reader.network = AllOf("white_matter")  # type: ignore[assignment]
    for stretch in (0.8, 0.95):
        prepared = scan(stretch)
        volumes = reader.volumes(prepared)
        native = prepared.mask.sum() * prepared.volume.voxel_volume / 1000
        assert volumes["white"] == pytest.approx(native, rel=0.12)  # voxels at the rim are in it whole
        assert volumes["brain"] == pytest.approx(volumes["white"])
        assert max(volumes["grey"], volumes["ventricles"], volumes["hippocampi"]) < 1e-6
        found.append(volumes["white"])
    assert found[1] / found[0] == pytest.approx((0.95 / 0.8) ** 3, rel=0.02)


class Unsure(torch.nn.Module):
    """Stands in for a network: everything is white matter, and a tenth as likely a ventricle or a hippocampus."""

    def forward(self, image: Tensor) -> Tensor:
        odds = torch.full((1 + len(STRUCTURES),), 1e-12)
        for name, share in (("white_matter", 1.0), ("lateral_ventricles", 0.1), ("hippocampus", 0.1)):
            odds[STRUCTURES.index(name) + 1] = share
        return odds.log().view(1, -1, 1, 1, 1).expand(len(image), -1, *image.shape[2:])


def test_what_is_unlikely_everywhere_is_counted_less() -> None:
    reader, prepared = TissueReader(checkpoint()), scan()
    reader.network = Unsure()  # type: ignore[assignment]
    volumes = reader.volumes(prepared)
    assert volumes["hippocampi"] / volumes["white"] > 0.08, "by its odds"
    sharp = 0.1 ** (1 / TEMPERATURE)
    assert volumes["ventricles"] / volumes["white"] == pytest.approx(sharp, rel=1e-3)


def test_weights_that_lack_a_structure_are_refused() -> None:
    with pytest.raises(WeightsError, match="hippocampus"):
        TissueReader(checkpoint(SegmenterArchitecture(tuple(name for name in STRUCTURES if name != "hippocampus"))))


class Middles(Dataset[dict[str, Tensor]]):
    """Scans in turn, cut to 10 cm in the middle, to be quick."""

    def __init__(self, items: list[dict[str, Tensor]]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = self.items[index % len(self.items)]
        return {name: values[..., 16:64, 24:72, 20:68] for name, values in item.items()}


def test_a_network_learns_what_a_scan_is_made_of(tmp_path: Path) -> None:
    family = Family([template_anatomy(GRID_2MM)], load_law("normative"), varied=True)
    subjects = Segmented(family, 0, cohort=1)
    first = subjects[0]
    assert first["fractions"].shape == (1, 10, *GRID_2MM.shape)
    torch.testing.assert_close(first["fractions"].sum(1), torch.ones(1, *GRID_2MM.shape), atol=2e-2, rtol=0)
    assert float(first["fractions"][:, 1:][:, :, first["image"][0, 0] == 0].max()) == 0
    seen = set()
    items = [subjects[index] for index in range(4)]
    for item in items:
        mirrored = torch.equal(item["fractions"], first["fractions"].flip(2))
        assert mirrored or torch.equal(item["fractions"], first["fractions"])
        mask = first["image"].flip(2) if mirrored else first["image"]
        assert torch.equal(item["image"] > 0, mask > 0), "image and fractions are mirrored together"
        seen.add(mirrored)
    assert seen == {False, True}
    made = SegmenterObjective(SMALL, Middles(items), 0, {})
    lines: list[float] = []
    schedule = Schedule(16, learning_rate=1e-2, workers=0, ema=0.5, log_every=1, dtype="float32")
    train(made, schedule, tmp_path, lambda done, total, losses: lines.append(losses["loss"]))
    assert np.mean(lines[-3:]) < 0.8 * lines[0]


def test_volumes_are_asked_for_as_ratios_inside_the_mask() -> None:
    fractions = torch.zeros(1, len(STRUCTURES) + 1, 8, 8, 8)
    fractions[:, 1:, :4] = 1 / len(STRUCTURES)
    fractions[:, 0, 4:] = 1
    item = {"image": fractions[:, 1:].sum(1, keepdim=True), "fractions": fractions}

    class Says(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, image: Tensor) -> Tensor:
            said = fractions.clone()
            said[:, 1:] *= self.factor
            said[:, 0] = 1 - said[:, 1:].sum(1)
            said[:, :, 4:] = fractions[:, 1:].mean()  # outside the mask, where nobody asks
            return said.clamp_min(1e-9).log()

    made = SegmenterObjective(SMALL, Segmented(None, 0, 1), 0, {}, dice=0.0, volume=1.0)  # type: ignore[arg-type]
    right, half = (made.losses(Says(factor), item) for factor in (1.0, 0.5))
    assert float(right["volume"]) < 1e-6 and float(half["volume"]) == pytest.approx(np.log(2) ** 2, rel=1e-3)
    assert float(half["loss"]) == pytest.approx(float(half["entropy"] + half["volume"])) and "dice" not in half
    assert "dice" in SegmenterObjective(SMALL, made.subjects, 0, {}).losses(Says(1.0), item)


def test_a_network_that_sees_places_is_told_them_alike_on_both_sides() -> None:
    image = torch.zeros(2, 1, 6, 4, 8)
    seen = places(image)
    assert seen.shape == (1, 3, 6, 4, 8) and torch.equal(seen[:, 0], seen[:, 0].flip(1))
    assert float(seen[0, 1, 0, 0, 0]) == -1 and float(seen[0, 2, 0, 0, -1]) == 1
    network = Segmenter(SegmenterArchitecture(STRUCTURES, (8, 8), places=True)).eval()
    with torch.inference_mode():
        said = network(torch.zeros(1, 1, 16, 16, 16))[0, 0, 4:-4:2, 8, 8]
        blind = Segmenter(SMALL).eval()(torch.zeros(1, 1, 16, 16, 16))[0, 0, 4:-4:2, 8, 8]
    assert float(said.std()) > 1e-4 > float(blind.std()), "a blank image is not blank to it"


def test_cf_edit_measures_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    ours = weights.load("twin-age-2mm")
    weights.save(bundle / "twin-age-2mm.safetensors", ours.tensors, ours.facts)
    weights.add_to_index("twin-age-2mm", bundle / "twin-age-2mm.safetensors", "flow", ("twin",))
    monkeypatch.setattr(weights, "bundled_dir", lambda: bundle)
    scan().volume.save("in.nii")
    words = ["--age", "40,80", "--from", "age=20", "in.nii", "-o", "out", "--volumes", "ml.tsv"]
    assert edit(words) != 0
    assert "tissues-2mm" in capsys.readouterr().err and not Path("out").exists(), "said before any work"
    tissues = checkpoint()
    weights.save(bundle / "tissues-2mm.safetensors", tissues.tensors, tissues.facts)
    weights.add_to_index("tissues-2mm", bundle / "tissues-2mm.safetensors", "tissues", ("tissues",))
    assert edit(words) == 0
    rows = [line.split("\t") for line in Path("ml.tsv").read_text().splitlines()]
    assert rows[0] == ["scan", "image", "age", "sex", *(f"{name}_ml" for name in VOLUMES)]
    assert [row[2] for row in rows[1:]] == ["20", "40", "80"] and {row[3] for row in rows[1:]} == {"n/a"}
    assert [row[1] for row in rows[1:]] == ["in.nii", "out/in_desc-age40.nii", "out/in_desc-age80.nii"]
    values = np.array([[float(cell) for cell in row[4:]] for row in rows[1:]])
    assert (values > 0).all() and len({tuple(row) for row in values}) == 3
    assert edit([*words, "--force"]) == 0 and edit([*words[:-1], "none/ml.tsv", "--force"]) != 0
    # A page has the same numbers, without being asked, whether it comes with the edits or later from the files.
    assert edit([*words[:-2], "--force", "--report", "made.html"]) == 0
    assert view(["--html", "found.html", "in.nii", "out/in_desc-age40.nii", "out/in_desc-age80.nii"]) == 0
    expected = [[f"{value:.1f}" for value in row] for row in values]
    for page in ("made.html", "found.html"):
        table = Elements(Path(page).read_text()).rows
        assert table[0] == ["ml", *VOLUMES]
        assert [[cell.split()[0] for cell in row[1:]] for row in table[1:]] == expected
