"""Pictures of scans: before, after, and what changed, in up to three planes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cftools.errors import OutputError, UsageError
from cftools.nifti import printable
from cftools.slices import PLANES, Scene, axes_of, cut, place, scene_of, to_ras
from cftools.volume import Volume, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
PANEL = 2.5  # inches
DIFFERENCES = "RdBu_r"


def picture(
    before: Volume,
    after: Sequence[Volume] = (),
    labels: Sequence[str] = (),
    at: tuple[float, float, float] | None = None,
    planes: Sequence[str] = tuple(PLANES),
    radiological: bool = False,
    limit: float | None = None,
) -> Figure:
    """Draw a scan, a pair with its difference, or a sweep with a row of differences under each plane.

    A column is a file (of a single scan, a plane). The grey window is the 0.5-99.5 percentiles of the
    foreground of `before`, the same everywhere; differences are after - before, on one scale symmetric
    about 0.

    Args:
        before, after: scans on one grid, of any orientation: shown in RAS order.
        labels: a title for each; by default their file names.
        at: world mm (RAS) through which the planes pass; by default the centre of the foreground.
        planes: which of axial, coronal, sagittal, from top to bottom.
        radiological: show the subject's left on the right.
        limit: largest difference on the colour scale; by default its 99.5th percentile in the foreground.
    Returns:
        a matplotlib figure that belongs to no window.
    Raises:
        VolumeError: the scans are not on one grid.
        UsageError: a position outside the scan, an unknown plane, labels too few or too many.
    """
    scans = [before, *after]
    for other in after:
        before.check_same_grid(other)
    titles = list(labels) or [_title(scan) for scan in scans]
    if len(titles) != len(scans):
        raise UsageError(f"{len(titles)} labels for {len(scans)} images: give each its own")
    for plane in planes:
        if plane not in PLANES:
            raise UsageError(f"plane {plane}: choose from {', '.join(PLANES)}")
    arrays = [to_ras(scan.array, scan.affine)[0] for scan in scans]
    scene = scene_of(before, arrays, at, radiological, limit)
    if not after:
        return _draw_single(scene, arrays[0], titles[0], planes)
    return _draw_comparison(scene, arrays, titles, planes)


def save_picture(figure: Figure, path: Path, dpi: int = 150, force: bool = False) -> None:
    """Write a figure as PNG, PDF or SVG, as its name says, whole or not at all."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path}: a picture's name ends in {', '.join(FORMATS)}")

    def write(stream: BinaryIO) -> None:
        figure.savefig(stream, format=path.suffix[1:].lower(), dpi=dpi)

    write_atomic(path, write, force=force)


def picture_bytes(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def _title(volume: Volume) -> str:
    return printable(volume.path.name.removesuffix(".gz").removesuffix(".nii")) if volume.path else "-"


def _draw_single(scene: Scene, array: np.ndarray, title: str, planes: Sequence[str]) -> Figure:
    sizes = [np.delete(scene.size, PLANES[plane]) for plane in planes]
    height = max(size[1] for size in sizes)
    figure, axes = _panels([size[0] for size in sizes], [height])
    for panel, plane, (width, _) in zip(axes[0], planes, sizes, strict=True):
        _draw_slice(panel, scene, plane, array, (width, height))
        panel.set_xlabel(_position_label(scene, plane), fontsize=8)
    figure.suptitle(title, fontsize=9, parse_math=False, y=0.98)
    _footnote(figure, scene)
    return figure


def _draw_comparison(
    scene: Scene, arrays: Sequence[np.ndarray], titles: Sequence[str], planes: Sequence[str]
) -> Figure:
    """Columns are the scans, rows the planes; one difference is a column, several are rows."""
    pair = len(arrays) == 2
    sizes = [np.delete(scene.size, PLANES[plane]) for plane in planes]
    width = max(size[0] for size in sizes)
    rows_per_plane = 1 if pair else 2
    heights = [float(size[1]) for size in sizes for _ in range(rows_per_plane)]
    figure, axes = _panels([width] * (3 if pair else len(arrays)), heights)
    for row, plane in enumerate(planes):
        images = axes[row * rows_per_plane]
        frame = (width, float(sizes[row][1]))
        for column, array in enumerate(arrays):
            _draw_slice(images[column], scene, plane, array, frame)
        images[0].set_ylabel(_position_label(scene, plane), fontsize=8)
        changed = images[2:] if pair else axes[row * rows_per_plane + 1][1:]
        for panel, array in zip(changed, arrays[1:], strict=True):
            shades = _draw_slice(panel, scene, plane, array - arrays[0], frame, is_difference=True)
    change = "difference" if any(np.any(array != arrays[0]) for array in arrays[1:]) else "no difference"
    for panel, title in zip(axes[0], [*titles, change] if pair else titles, strict=True):
        panel.set_title(_wrapped(title), fontsize=8, parse_math=False)
    beside = axes[-1][2] if pair else axes[1][0]
    if pair:
        bar = beside.inset_axes((0.1, -0.07, 0.8, 0.035))
    else:
        for row in range(1, len(heights), 2):
            axes[row][0].set_axis_off()
        bar = beside.inset_axes((0.1, 0.5, 0.8, 0.04))
    legend = figure.colorbar(
        shades, cax=bar, orientation="horizontal", ticks=[-scene.limit, 0, scene.limit], format="{x:.3g}"
    )
    legend.ax.tick_params(labelsize=7)
    if not pair:
        legend.ax.set_title(f"{change} from the first", fontsize=8)
    _footnote(figure, scene)
    return figure


def _panels(widths: Sequence[float], heights: Sequence[float]) -> tuple[Figure, list[list[Axes]]]:
    """A page of bare panels, rows by columns, in proportion to what they show in mm, and their figure."""
    from matplotlib.figure import Figure

    inches = PANEL / max(widths)
    gap, top, bottom, left = 0.06, 0.45, 0.45, 0.35
    width = sum(widths) * inches + gap * (len(widths) - 1) + left + gap
    height = sum(heights) * inches + gap * (len(heights) - 1) + top + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    axes: list[list[Axes]] = []
    upper = height - top
    for row_height in heights:
        upper -= row_height * inches
        axes.append([])
        start = left
        for column_width in widths:
            shares = (
                start / width,
                upper / height,
                column_width * inches / width,
                row_height * inches / height,
            )
            axes[-1].append(figure.add_axes(shares))
            start += column_width * inches + gap
        upper -= gap
    return figure, axes


def _draw_slice(
    panel: Axes,
    scene: Scene,
    plane: str,
    array: np.ndarray,
    frame: tuple[float, float],
    is_difference: bool = False,
) -> Any:
    """One slice in its panel, which shows `frame` mm (across, up) around the head's middle."""
    across, up = axes_of(plane)
    slice_ = cut(scene, plane, array)
    extent = np.array(slice_.shape) * scene.voxel_sizes[[across, up]]
    low, high = (-scene.limit, scene.limit) if is_difference else scene.window
    image = panel.imshow(
        slice_.T,
        origin="lower",
        extent=(0, extent[0], 0, extent[1]),
        aspect="auto",
        cmap=DIFFERENCES if is_difference else "gray",
        vmin=low,
        vmax=high,
    )
    x, y = (scene.corner + scene.size / 2)[[across, up]]
    flip = -1 if scene.radiological and across == 0 else 1
    panel.set_xlim(x - flip * frame[0] / 2, x + flip * frame[0] / 2)
    panel.set_ylim(y - frame[1] / 2, y + frame[1] / 2)
    panel.set(xticks=[], yticks=[], facecolor=image.cmap(0.5 if is_difference else 0.0))
    panel.spines[:].set_visible(False)
    if not is_difference:
        sides = "LR"[::flip] if across == 0 else "PA"
        for place, side in zip((0.05, 0.95), sides, strict=True):
            panel.text(place, 0.05, side, color="white", fontsize=7, ha="center", transform=panel.transAxes)
    return image


def _position_label(scene: Scene, plane: str) -> str:
    return f"{plane}, {place(scene, plane)}"


def _footnote(figure: Figure, scene: Scene) -> None:
    side = "right: radiological" if scene.radiological else "left: neurological"
    low, high = scene.window
    text = f"The subject's left is on the {side} convention. Grey from {low:.3g} to {high:.3g}."
    figure.text(0.01, 0.06 / figure.get_figheight(), text, fontsize=7, color="0.35", ha="left", va="bottom")


def _wrapped(title: str, width: int = 34) -> str:
    """A long file name in lines of at most `width` letters."""
    return "\n".join(title[start : start + width] for start in range(0, len(title), width))
