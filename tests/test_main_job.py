"""The main job with the bundled weights: `cf-edit --age +30 scan.nii.gz` does what a brain would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from cftools import field, weights
from cftools.cli.edit import main
from cftools.condition import Condition
from cftools.methods import FlowMethod
from cftools.phantom.anatomy import STRUCTURES, template_anatomy
from cftools.prepare import GRID_2MM, Prepared, intensity_scale, resample
from cftools.register import template
from cftools.volume import Volume


def test_the_average_brain_ages_in_the_right_direction() -> None:
    scan = template()
    image = resample(scan.array, scan.affine, GRID_2MM)
    image = image / intensity_scale(image)
    prepared = Prepared(Volume.from_array(image, GRID_2MM.affine), image, GRID_2MM, np.eye(4), image > 0, 0.0, 1.0)
    method = FlowMethod(weights.load("twin-age-2mm"))
    regions = template_anatomy().regions
    here = Condition({"age": 40.0, "sex": "F"})
    growth = {}
    with torch.inference_mode():
        for age in (20.0, 70.0):
            u = torch.from_numpy(method.edit(prepared, here, here.do(age=age)).displacement)[None]
            after = field.warp(regions, u)[0].sum((1, 2, 3)) / regions[0].sum((1, 2, 3))
            growth[age] = dict(zip(STRUCTURES, after.tolist(), strict=True))
            assert float(field.jacobian(u).min()) > 0, "space folds"
    for fluid in ("lateral_ventricles", "third_ventricle", "sylvian_fissure"):
        assert growth[70.0][fluid] > 1.15 and growth[20.0][fluid] < 0.99
    for tissue in ("cortex", "hippocampus", "deep_grey"):
        assert growth[70.0][tissue] < 0.97 and growth[20.0][tissue] > 1.01


@pytest.mark.real
def test_a_real_scan_thirty_years_older(data_dir: Path, tmp_path: Path) -> None:
    scan = data_dir / "oasis/sub-1107/anat/sub-1107_T1w.nii.gz"
    out = tmp_path / "out.nii.gz"
    assert main(["--age", "+30", "--from", "age=38,sex=F", str(scan), str(out)]) == 0
    before: Any = nib.load(scan)
    after: Any = nib.load(out)
    assert before.shape == after.shape
    np.testing.assert_array_equal(before.affine, after.affine)
    for code in ("qform_code", "sform_code"):
        assert int(before.header[code]) == int(after.header[code])
    old, new = (np.asarray(image.dataobj, dtype=np.float32).squeeze() for image in (before, after))
    labels = next((data_dir / "oasis/derivatives").glob("*/sub-1107/anat/*neuromorphometrics_dseg.nii.gz"))
    structures: Any = nib.load(labels)
    ventricles = np.isin(np.asarray(structures.dataobj).squeeze(), (49, 50, 51, 52))
    # A wall that moves outward turns white matter around the ventricle dark.
    around = ndimage.binary_dilation(ventricles, iterations=2) & ~ventricles
    assert new[around].mean() < 0.93 * old[around].mean()
    outside = ndimage.binary_dilation(old > 0, iterations=3) == 0
    np.testing.assert_array_equal(new[outside], old[outside])
    inner = ndimage.binary_erosion(old > 0, iterations=6)
    sharpness = [float((ndimage.laplace(image)[inner] ** 2).mean()) for image in (old, new)]
    assert sharpness[1] > 0.9 * sharpness[0]
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert "twin-age-2mm" in json.dumps(sidecar)
