"""Slices of scans as images that a web page holds within itself, and outlines over them as paths."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from contourpy import contour_generator
from PIL import Image
from scipy import ndimage

from cftools.register import template
from cftools.slices import PLANES, Scene, axes_of, cut, place

#: Longest side of an image, in pixels: finer scans are averaged down to it.
LARGEST = 256
#: Side of a thumbnail, in pixels.
THUMBNAIL = 112
#: Colours of a change by its size from 0 to 1: (size, red, green, blue, opacity); what did not change is clear.
DARKER = ((0.0, 56, 150, 255, 0), (0.5, 56, 150, 255, 235), (1.0, 207, 232, 255, 255))
BRIGHTER = ((0.0, 255, 140, 40, 0), (0.5, 255, 140, 40, 235), (1.0, 255, 235, 200, 255))
_STEP_MM = 1.0  # between the points at which the template is looked up


@dataclass(frozen=True)
class Panel:
    """One plane of a page: what its pictures share. Millimetres run from the top left corner.

    Attributes:
        plane, place: its name, and where it is cut.
        width, height: mm shown.
        x, y, across, up: where a slice's image goes, and how large it is, mm.
        before: image of the scan; after, change: of each edit; all as data URIs.
        mask: outline of the brain mask, template: edges of the template; SVG paths, empty for none.
        sides: letters at the left and the right.
    """

    plane: str
    place: str
    width: float
    height: float
    x: float
    y: float
    across: float
    up: float
    before: str
    after: tuple[str, ...]
    change: tuple[str, ...]
    mask: str
    template: str
    sides: tuple[str, str]


def panels(
    scene: Scene,
    before: np.ndarray,
    edits: Sequence[np.ndarray],
    mask: np.ndarray | None = None,
    to_mni: np.ndarray | None = None,
) -> list[Panel]:
    """Each plane with all its pictures.

    Args:
        scene: where to cut, and the greys.
        before, edits: in RAS order, on one grid.
        mask: the brain, in RAS order, bool.
        to_mni: native world mm -> MNI152 world mm, (4, 4).
    """
    return [_panel(scene, plane, before, edits, mask, to_mni) for plane in PLANES]


def thumbnail(scene: Scene, array: np.ndarray) -> str:
    """A small axial picture as a data URI."""
    slice_ = _as_seen(scene, "axial", cut(scene, "axial", array))
    image = Image.fromarray(_greys(scene, slice_))
    across, up = np.array(slice_.shape[::-1]) * scene.voxel_sizes[[0, 1]]
    largest = THUMBNAIL / max(across, up)
    image = image.resize((max(1, round(across * largest)), max(1, round(up * largest))), Image.Resampling.LANCZOS)
    return _data_uri(image, "WEBP", quality=80)


def _panel(
    scene: Scene,
    plane: str,
    before: np.ndarray,
    edits: Sequence[np.ndarray],
    mask: np.ndarray | None,
    to_mni: np.ndarray | None,
) -> Panel:
    across, up = axes_of(plane)
    slices = [_as_seen(scene, plane, cut(scene, plane, array)) for array in (before, *edits)]
    width, height = scene.size[[across, up]]
    extent = np.array(before.shape)[[across, up]] * scene.voxel_sizes[[across, up]]
    flipped = scene.radiological and across == 0
    left = scene.corner[across] + width - extent[0] if flipped else -scene.corner[across]
    greys = [_data_uri(Image.fromarray(_greys(scene, slice_)), "PNG") for slice_ in slices]
    sides = ("L", "R") if across == 0 else ("P", "A")
    return Panel(
        plane=plane,
        place=place(scene, plane, to_mni),
        width=float(width),
        height=float(height),
        x=float(left),
        y=float(scene.corner[up] + height - extent[1]),
        across=float(extent[0]),
        up=float(extent[1]),
        before=greys[0],
        after=tuple(greys[1:]),
        change=tuple(_coloured((slice_ - slices[0]) / scene.limit) for slice_ in slices[1:]),
        mask="" if mask is None else _mask_outline(scene, plane, mask),
        template="" if to_mni is None else _template_edges(scene, plane, to_mni),
        sides=sides[::-1] if flipped else sides,
    )


def _as_seen(scene: Scene, plane: str, slice_: np.ndarray) -> np.ndarray:
    """A slice as rows from the top and columns from the left, no side longer than LARGEST; float32."""
    seen = slice_.T[::-1]
    if scene.radiological and axes_of(plane)[0] == 0:
        seen = seen[:, ::-1]
    seen = np.ascontiguousarray(seen, np.float32)
    shrink = LARGEST / max(seen.shape)
    if shrink >= 1:
        return seen
    rows, columns = (max(1, round(side * shrink)) for side in seen.shape)
    return np.asarray(Image.fromarray(seen).resize((columns, rows), Image.Resampling.BOX))


def _greys(scene: Scene, slice_: np.ndarray) -> np.ndarray:
    low, high = scene.window
    return np.rint(np.clip((slice_ - low) / ((high - low) or 1.0), 0, 1) * 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    """Red, green, blue and opacity of 255 changes from -1 to 1, (255, 4) uint8."""
    halves = []
    for knots, sizes in ((DARKER, np.linspace(1, 0, 128)[:-1]), (BRIGHTER, np.linspace(0, 1, 128))):
        size, *channels = np.array(knots).T
        halves.append(np.stack([np.interp(sizes, size, channel) for channel in channels], axis=1))
    return np.rint(np.concatenate(halves)).astype(np.uint8)


def _coloured(change: np.ndarray) -> str:
    """A change, from -1 to 1, in colours over a clear ground, as a data URI."""
    image = Image.fromarray(np.rint((np.clip(change, -1, 1) + 1) * 127).astype(np.uint8)).convert("P")
    image.putpalette(_palette()[:, :3].tobytes())
    return _data_uri(image, "PNG", transparency=_palette()[:, 3].tobytes())


def _data_uri(image: Image.Image, kind: str, **settings: object) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, optimize=True, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _mask_outline(scene: Scene, plane: str, mask: np.ndarray) -> str:
    slice_ = np.pad(cut(scene, plane, mask).astype(np.float32), 1)
    sizes = scene.voxel_sizes[list(axes_of(plane))]
    # Voxel 0 of the padded slice has its middle half a voxel outside the scan.
    return _path(scene, plane, slice_, sizes, -0.5 * sizes)


@lru_cache(maxsize=1)
def _template_tissues() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's brain and white matter, 0 to 1, (X, Y, Z), and world mm -> indices, (4, 4)."""
    whole, white = template("t1"), template("wm")
    return (whole.array > 0).astype(np.float32), white.array, np.linalg.inv(whole.affine)


def _template_edges(scene: Scene, plane: str, to_mni: np.ndarray) -> str:
    """The border of the template's brain and of its white matter, where the registration puts them."""
    across, up = axes_of(plane)
    counts = [math.ceil(side / _STEP_MM) + 1 for side in scene.size[[across, up]]]
    position = np.empty((3, *counts))
    position[PLANES[plane]] = scene.position[PLANES[plane]]
    for axis, millimetres in zip((across, up), np.indices(counts) * _STEP_MM, strict=True):
        # The corner is measured from the edge of voxel 0, indices from its middle.
        position[axis] = (scene.corner[axis] + millimetres) / scene.voxel_sizes[axis] - 0.5
    brain, white, to_index = _template_tissues()
    matrix = to_index @ to_mni @ scene.affine
    index = np.tensordot(matrix[:3, :3], position, 1) + matrix[:3, 3][:, None, None]
    paths = [ndimage.map_coordinates(tissue, index, order=1) for tissue in (brain, white)]
    steps, start = np.array([_STEP_MM, _STEP_MM]), scene.corner[[across, up]]
    return "".join(_path(scene, plane, slice_, steps, start) for slice_ in paths)


def _path(scene: Scene, plane: str, slice_: np.ndarray, steps: np.ndarray, start: np.ndarray) -> str:
    """Where a slice, (across, up), crosses 0.5, as an SVG path in a panel's millimetres.

    Args:
        steps: between its samples, mm; start: of the first, mm from the edge of voxel 0.
    """
    across, up = axes_of(plane)
    width, height = scene.size[[across, up]]
    parts = []
    for line in contour_generator(z=slice_.T).lines(0.5):
        x, y = (np.asarray(line) * steps + start - scene.corner[[across, up]]).T
        if scene.radiological and across == 0:
            x = width - x
        points = [f"{a:.1f} {b:.1f}" for a, b in zip(x, height - y, strict=True)]
        parts.append("M" + "L".join(points))
    return "".join(parts)
