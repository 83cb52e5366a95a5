"""Carrying a deformation to the scan: what must not change does not, and the rest moves right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cftools.carry import carry_field, move_fractions
from cftools.prepare import GRID_2MM, Grid, Prepared, prepare
from cftools.volume import Volume

COARSE = Grid("4 mm", (40, 48, 44), GRID_2MM.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
COARSE.affine[:3, 3] += 1  # the same outer faces


def affine(linear: np.ndarray, centre: tuple[float, float, float], shape: tuple[int, ...]) -> np.ndarray:
    """The affine with this linear part whose middle voxel lies at `centre`."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(centre) - linear @ ((np.array(shape) - 1) / 2)
    return matrix


def prepared(
    array: np.ndarray,
    to_world: np.ndarray,
    mask: np.ndarray | None = None,
    to_mni: np.ndarray | None = None,
    grid: Grid = COARSE,
    scale: float = 100.0,
) -> Prepared:
    return Prepared(
        volume=Volume.from_array(array, to_world),
        image=np.zeros(grid.shape, np.float32),
        grid=grid,
        to_mni=np.eye(4) if to_mni is None else to_mni,
        mask=np.ones(array.shape, bool) if mask is None else mask,
        offset=0.0,
        scale=scale,
    )


def constant(vector: tuple[float, float, float], grid: Grid = COARSE) -> np.ndarray:
    return np.broadcast_to(np.array(vector, np.float32).reshape(3, 1, 1, 1), (3, *grid.shape)).copy()


def noise(shape: tuple[int, ...], sigma: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(1).standard_normal(shape)
    return (500 + 100 * ndimage.gaussian_filter(random, sigma)).astype(np.float32)


STRAIGHT = np.diag([2.0, 2.0, 2.0])
SHAPE = (30, 32, 28)


def test_no_change_gives_the_very_bits_back() -> None:
    array = noise(SHAPE)
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), SHAPE))
    carried = carry_field(scan, constant((0, 0, 0)), np.zeros((2, *COARSE.shape), np.float32))
    assert carried.dtype == np.float32
    assert carried.tobytes() == array.tobytes()
    assert carry_field(scan, constant((0, 0, 0))).tobytes() == array.tobytes()


def test_whole_voxels_move_exactly() -> None:
    array = noise(SHAPE)
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), SHAPE))
    carried = carry_field(scan, constant((4, -2, 6)))
    np.testing.assert_allclose(carried[:-2, 1:, :-3], array[2:, :-1, 3:], rtol=1e-5)


def test_threads_change_no_bit() -> None:
    shape = (80, 40, 36)  # five pieces
    scan = prepared(noise(shape, 1.0), affine(np.eye(3), (0, -16, 4), shape), to_mni=np.diag([1.1, 0.9, 1.0, 1.0]))
    random = np.random.default_rng(2).standard_normal((5, *COARSE.shape))
    smooth = np.stack([ndimage.gaussian_filter(one, 3) for one in random]).astype(np.float32)
    once = carry_field(scan, 60 * smooth[:3], smooth[3:])
    assert np.abs(once - scan.volume.array).mean() > 10
    assert carry_field(scan, 60 * smooth[:3], smooth[3:], threads=3).tobytes() == once.tobytes()


TILTED = Rotation.from_euler("xyz", (20, -12, 9), degrees=True).as_matrix()
GRIDS = {
    "anisotropic": (np.diag([1.5, 1.5, 3.0]), (56, 64, 30)),
    "oblique": (TILTED * [2.0, 1.6, 1.8], (46, 58, 50)),
    "LAS": (np.diag([-2.0, 2.0, 2.0]), (44, 50, 46)),
    "PSR": (np.array([[0.0, 0, 2], [-2, 0, 0], [0, 2, 0]]), (50, 46, 44)),
    "left-handed oblique": (TILTED @ np.diag([-2.0, 2.0, 2.0]), (44, 50, 46)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_same_field_moves_every_grid_alike(name: str) -> None:
    """World p gets the scan at p + L^-1 u(A p), whatever the voxels are; A turns, stretches and shifts."""
    linear, shape = GRIDS[name]
    to_mni = np.eye(4)
    to_mni[:3, :3] = TILTED.T @ np.diag([1.2, 1.1, 0.9])
    to_mni[:3, 3] = 100, -220, 310
    centre = np.linalg.solve(to_mni, [3, -14, 6, 1])[:3]

    def intensity(p: np.ndarray) -> np.ndarray:
        x, y, z = (p - centre) / 14
        return 500 + 200 * np.sin(x + 0.3) * np.cos(0.8 * y) + 100 * np.sin(0.9 * z - 0.4 * x)

    def field(y: np.ndarray) -> np.ndarray:
        a, b, c = y / 30
        return np.stack([5 * np.sin(a + b), 4 * np.cos(b - c), -5 * np.sin(c) + a])

    to_world = affine(linear, tuple(centre), shape)
    p = world(to_world, shape)
    centre = centre.reshape(3, 1, 1, 1)
    y = np.einsum("ij,j...->i...", to_mni[:3, :3], p) + to_mni[:3, 3].reshape(3, 1, 1, 1)
    shift = np.einsum("ij,j...->i...", np.linalg.inv(to_mni[:3, :3]), field(y))
    truth = intensity(p + shift)

    scan = prepared(intensity(p), to_world, to_mni=to_mni)
    carried = carry_field(scan, field(world(COARSE.affine, COARSE.shape)).astype(np.float32))
    inner = (slice(7, -7),) * 3
    still = np.abs(scan.volume.array - truth)[inner].mean()
    assert still > 15
    assert np.abs(carried - truth)[inner].max() < 0.6


def world(to_world: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World positions of all voxels, (3, I, J, K)."""
    indices = np.mgrid[tuple(slice(n) for n in shape)].astype(float)
    return np.einsum("ij,j...->i...", to_world[:3, :3], indices) + to_world[:3, 3].reshape(3, 1, 1, 1)


def test_outside_the_brain_nothing_changes() -> None:
    array = noise(SHAPE)
    mask = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(SHAPE), 3) > 0
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), SHAPE), mask)
    carried = carry_field(scan, constant((1, 3, -2)), np.full((2, *COARSE.shape), 0.2, np.float32))
    assert carried[~mask].tobytes() == array[~mask].tobytes()
    assert np.mean(carried[mask] != array[mask]) > 0.99


def test_outside_the_grid_nothing_changes() -> None:
    array = noise((120, 10, 10))
    to_world = affine(STRAIGHT, (0, -16, 4), array.shape)  # 240 mm, the grid has 160
    carried = carry_field(prepared(array, to_world), constant((0.8, 0, 0)), np.ones((2, *COARSE.shape), np.float32))
    inside = np.abs(world(to_world, array.shape)[0]) < 80 + 2  # over the last half voxel the field fades
    np.testing.assert_array_equal(carried[~inside], array[~inside])
    assert (carried[inside] != array[inside]).mean() > 0.95


def test_what_hardly_moves_is_copied() -> None:
    array = noise(SHAPE)
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), SHAPE))
    u = constant((0, 0, 0))
    u[0, :20] = 1.0
    u[0, 20:] = 1e-5
    carried = carry_field(scan, u)
    right = world(scan.volume.affine, SHAPE)[0] > 4
    assert carried[right].tobytes() == array[right].tobytes()
    assert (carried[~right] != array[~right]).mean() > 0.9


def test_half_a_voxel_leaves_folds_sharp() -> None:
    """A texture of 2.4 voxels keeps its gradients, where linear interpolation loses more than a third."""
    array = noise((40, 40, 40), sigma=1.0)
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), array.shape))
    carried = carry_field(scan, constant((1, 1, 1)))

    def energy(image: np.ndarray) -> float:
        return float(sum(np.square(g[5:-5, 5:-5, 5:-5]).mean() for g in np.gradient(image)))

    linear = ndimage.shift(array, -0.5, order=1)
    assert energy(linear) < 0.65 * energy(array)
    assert energy(carried) > 0.95 * energy(array)


def test_an_edge_does_not_ring() -> None:
    array = np.zeros((30, 10, 10), np.float32)
    array[12:18] = 1000
    carried = carry_field(prepared(array, affine(STRAIGHT, (0, -16, 4), array.shape)), constant((1, 0, 0)))
    assert carried.min() == 0
    assert carried.max() == 1000
    assert 300 < carried[11].mean() < 700  # half way over the edge


def test_a_residual_is_added_in_the_scans_units_and_range() -> None:
    array = noise(SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[5:20, 6:20, 7:20] = True
    scan = replace(prepared(array, affine(STRAIGHT, (0, -16, 4), SHAPE), mask, scale=50.0), offset=100.0)
    offset, gain = np.full(COARSE.shape, 0.5, np.float32), np.full(COARSE.shape, -0.1, np.float32)
    carried = carry_field(scan, constant((0, 0, 0)), np.stack([offset, gain]))
    highest = array[1:24, 2:24, 3:24].max()
    changed = array[mask] - 0.1 * (array[mask] - 100) + 25
    np.testing.assert_allclose(carried[mask], np.minimum(changed, highest), rtol=1e-6)
    np.testing.assert_array_equal(carried[~mask], array[~mask])


def test_a_brain_at_the_edge_of_the_image_goes_on_beyond_it() -> None:
    array = np.tile(np.linspace(100, 800, 20, dtype=np.float32)[:, None, None], (1, 10, 10))
    scan = prepared(array, affine(STRAIGHT, (0, -16, 4), array.shape))
    carried = carry_field(scan, constant((20, 0, 0)))  # half the image
    np.testing.assert_allclose(carried[:10], array[10:], rtol=1e-4)
    np.testing.assert_allclose(carried[10:], 800, rtol=1e-2)


def test_labels_and_scan_move_together() -> None:
    shape = (60, 64, 58)
    to_world = affine(TILTED @ np.diag([-1.5, 1.5, 1.5]), (0, -16, 4), shape)
    x, y, z = world(to_world, shape)
    distance = np.sqrt(x**2 + (y + 16) ** 2 + (z - 4) ** 2)
    scan = prepared(1000 / (1 + np.exp(distance - 25)), to_world)
    u = world(COARSE.affine, COARSE.shape) * 0.3  # shrinks by 1.3 about the origin
    labels = (scan.volume.array > 500).astype(np.uint8)
    moved = move_fractions(scan, u.astype(np.float32), labels) > 0.5
    carried = carry_field(scan, u.astype(np.float32)) > 500
    assert labels.sum() / moved.sum() == pytest.approx(1.3**3, rel=0.03)
    assert 2 * (moved & carried).sum() / (moved.sum() + carried.sum()) > 0.97


@pytest.mark.parametrize(
    "work",
    [
        lambda scan: carry_field(scan, np.zeros((3, 4, 4, 4), np.float32)),
        lambda scan: carry_field(scan, constant((0, 0, 0)), np.zeros((4, 4, 4), np.float32)),
    ],
)
def test_another_grid_is_refused(work: Callable[[Prepared], np.ndarray]) -> None:
    scan = prepared(noise(SHAPE), affine(STRAIGHT, (0, -16, 4), SHAPE))
    with pytest.raises(ValueError, match="4, 4, 4"):
        work(scan)


@pytest.mark.real
def test_a_real_scan_comes_back_unchanged_and_is_moved_only_inside(data_dir: Path) -> None:
    scan = prepare(Volume.load(data_dir / "oasis/sub-1107/anat/sub-1107_T1w.nii.gz"))
    still = carry_field(scan, constant((0, 0, 0), GRID_2MM))
    np.testing.assert_array_equal(still, scan.volume.array)
    moved = carry_field(scan, constant((1, 1, 1), GRID_2MM))
    outside = ~scan.mask
    np.testing.assert_array_equal(moved[outside], scan.volume.array[outside])
    assert (moved != scan.volume.array)[scan.mask].mean() > 0.95


def test_fractions_move_by_parts_of_a_voxel() -> None:
    grid = GRID_2MM
    mask = np.zeros(grid.shape, np.float32)
    mask[30:50, 40:60, 40:60] = 1
    volume = Volume.from_array(mask + 0.5 * mask * np.arange(80, dtype=np.float32)[:, None, None] / 80, grid.affine)
    prepared = Prepared(volume, mask, grid, np.eye(4), mask > 0, 0.0, 1.0)
    shift = np.zeros((3, *grid.shape), np.float32)
    assert np.array_equal(move_fractions(prepared, shift, mask), mask)
    shift[0] = 0.5  # a quarter of a voxel
    moved = move_fractions(prepared, shift, mask)
    np.testing.assert_allclose(moved[29:31, 50, 50], [0.25, 1.0], atol=1e-5)
    np.testing.assert_allclose(moved[49:51, 50, 50], [0.75, 0.0], atol=1e-5)
    assert moved.sum() == pytest.approx(mask.sum(), rel=1e-5)


@pytest.mark.parametrize(("rim", "expected"), [(25.0, 25.0), (60.0, 0.0), (100.0, 0.0)])
def test_a_shrinking_brain_uncovers_what_lies_at_its_surface(rim: float, expected: float) -> None:
    shape = (40, 40, 40)
    to_world = affine(STRAIGHT, (0, -16, 4), shape)
    x, y, z = world(to_world, shape)
    distance = np.sqrt(x**2 + (y + 16) ** 2 + (z - 4) ** 2)
    array = np.where(distance < 34, np.where(distance < 31, 100.0, rim), 0).astype(np.float32)
    scan = prepared(array, to_world, array > 0)
    outward = world(COARSE.affine, COARSE.shape) - np.array([0, -16, 4]).reshape(3, 1, 1, 1)
    carried = carry_field(scan, (0.4 * outward).astype(np.float32))
    uncovered = (distance > 28) & (distance < 32)
    np.testing.assert_allclose(carried[uncovered], expected, atol=2)
    assert carried[distance < 18].min() > 99
