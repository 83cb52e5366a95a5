"""What cf-train says beside its result: a dry run's numbers, pictures while it learns, TensorBoard."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli import terminal
from cftools.errors import CftoolsWarning

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from cftools.train.recipes import Planned


def terminate_on_both_signals() -> None:
    """Let SIGUSR1, too, end the command cleanly until there is a training that has something to save."""
    try:
        signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGTERM))
    except ValueError:
        return  # only the main thread may set handlers


def tell(plan: Planned, conditions: Sequence[str], anatomies: Sequence[str], scans: int, json: str | None) -> None:
    """A dry run's answer: what would be learned from, and what it would take."""
    from cftools.train.estimate import estimate

    found = estimate(plan.objective, plan.schedule)
    if json:
        facts = {"conditions": list(conditions), "anatomies": list(anatomies), "real_scans": scans, **found.plain()}
        terminal.write_json(facts, json, force=True)
        return
    item = ", ".join(f"{name} {'x'.join(str(n) for n in shape) or '1'}" for name, shape in found.item.items())
    rows = {
        "conditions": ", ".join(conditions) or "none",
        "anatomies": f"{len(anatomies)} ({', '.join(anatomies[:3])}{', ...' if len(anatomies) > 3 else ''})",
        "real scans": scans,
        "item": item,
        "steps": f"{found.steps}, each of {found.batch}",
        "parameters": f"{found.parameters} ({found.kept} kept)",
        "weights, gradients, average, optimiser": f"{found.weights_mib:.0f} MiB",
        "activations of an item": f"{found.activations_mib:.0f} MiB",
        "operations of an item": f"{found.teraflop:.3g} Tflop",
    }
    terminal.table(("what", "value"), list(rows.items()))


class Watch:
    """A run's pictures in `previews`, and what TensorBoard shows of it in `tensorboard`.

    Args:
        out: the run's folder; tensorboard: whether to write that; without the package a warning says so.
    """

    def __init__(self, out: Path, tensorboard: bool) -> None:
        self._out, self._asked = out, tensorboard
        self._writer: SummaryWriter | None = None

    def losses(self, step: int, losses: dict[str, float]) -> None:
        if events := self._events(step):
            for name, value in losses.items():
                events.add_scalar(name, value, step)

    def images(self, step: int, images: Tensor) -> None:
        """A contact sheet of volumes, (rows, columns, X, Y, Z) in 0..1.5."""
        from PIL import Image

        from cftools.volume import make_folder

        sheet = contact_sheet(images.numpy())
        path = self._out / "previews" / f"step-{step:06d}.png"
        make_folder(path.parent)
        Image.fromarray(sheet).save(path)
        if events := self._events(step):
            events.add_image("preview", sheet[None], step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _events(self, step: int) -> Any:
        """TensorBoard's writer, from the first step that there is something to write of."""
        if self._asked and self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                warnings.warn(
                    "--tensorboard: it is not installed, so nothing is written for it: pip install 'cftools[train]'",
                    CftoolsWarning,
                    stacklevel=2,
                )
                self._asked = False
                return None
            # What a killed run wrote after its last state is written again.
            self._writer = SummaryWriter(str(self._out / "tensorboard"), purge_step=step)
        return self._writer


def contact_sheet(volumes: np.ndarray) -> np.ndarray:
    """Three middle slices of each volume side by side, uint8; a row for each of volumes (rows, columns, X, Y, Z)."""
    import numpy as np

    side = max(volumes.shape[2:])

    def tile(volume: np.ndarray) -> np.ndarray:
        tiles = np.zeros((3, side, side), np.float32)
        for number in range(3):
            cut = np.take(volume, volume.shape[number] // 2, axis=number).T[::-1]
            top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
            tiles[number, top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        return np.concatenate(tiles, axis=1)

    sheet = np.block([[tile(volume) for volume in row] for row in volumes])
    return (np.clip(sheet / 1.2, 0, 1) * 255).round().astype(np.uint8)
