"""The diffusion engine in figures: each solver's measured order, and each law's worst error.

    python benchmarks/engine.py --json docs/results/engine.json

On data whose diffusion is known in closed form (tests/gaussians.py), in double precision. No weights, a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from gaussians import Mixture
from test_diffusion_solver import COSINE, DATA, FLOW, GRID, INVERSIONS, ORDERED, SCALED, measured_order

from cftools.diffusion import moves, noise, start
from cftools.diffusion.constraint import Repaint
from cftools.diffusion.denoiser import Inputs, bind
from cftools.diffusion.guidance import Guided
from cftools.diffusion.integrate import integrate
from cftools.diffusion.inversion import Bdia, FixedPoint
from cftools.diffusion.path import Path as DiffusionPath
from cftools.diffusion.solver import Ddim, Ddpm
from cftools.errors import CftoolsWarning
from cftools.nets import wavelet

PATHS = {"rectified flow": FLOW, "scaled linear": SCALED, "cosine": COSINE}


def orders() -> list[dict[str, object]]:
    """Slopes of the error against the number of moves, down and up."""
    rows: list[dict[str, object]] = []
    for name, solver in {**ORDERED, **INVERSIONS}.items():
        for path_name, path in PATHS.items():
            row: dict[str, object] = {"solver": name, "path": path_name, "declared": solver.order}
            for way, upwards in (("down", False), ("up", True)):
                if upwards or name in ORDERED:
                    row[way] = round(measured_order(solver, path, upwards), 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def laws() -> dict[str, float]:
    """The worst error of each law over paths."""
    found: dict[str, float] = {}

    def note(law: str, error: torch.Tensor) -> None:
        found[law] = max(found.get(law, 0.0), float(error.abs().max()))

    other = Mixture((1.0,), (0.7,), (0.4,))
    draws = noise.Draws(0, (0,))
    for path in PATHS.values():
        times = moves.times(path, 50)
        for name, solver in (("fixed point", FixedPoint(Ddim(), 60, 1e-13)), ("bdia", Bdia())):
            top, state = start.inverted(solver, DATA.denoise(path), path, GRID, moves.up(times))
            down = Bdia() if name == "bdia" else Ddim()
            state = state if name == "bdia" else None
            back, _ = integrate(
                down, DATA.denoise(path), path, top, moves.down(times), noise.zero, noise.NO_DRAWS, state=state
            )
            note(f"round trip, {name}, 50 steps", back - GRID)
        tape_top, tape = start.recorded(Ddpm(), DATA.denoise(path), path, GRID, moves.down(times), draws)
        played, _ = integrate(Ddpm(), DATA.denoise(path), path, tape_top, moves.down(times), tape, draws)
        note("a tape ends on the scan", played - GRID)
        free = GRID > 0
        held = Repaint(path, GRID, free)
        end, _ = integrate(Ddpm(), other.denoise(path), path, GRID, moves.down(times, 3), noise.fresh, draws, held)
        note("repaint leaves what is known", (end - GRID)[~free])
        note("guidance of 1 is the conditional", _guided(path, 1.0) - _guided(path, None))
    image = torch.randn(1, 2, 8, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    note("the wavelet comes back", wavelet.inverse(wavelet.forward(image)) - image)
    for law, error in found.items():
        print(f"{law}: {error:.1e}")
    return found


def _guided(path: DiffusionPath, scale: float | None) -> torch.Tensor:
    """A sample under guidance, or under the plain conditional."""

    def denoiser(x: torch.Tensor, t: float, inputs: Inputs):  # type: ignore[no-untyped-def]
        return DATA.denoise(path)(x, t)

    chosen = denoiser if scale is None else Guided(denoiser, scale)
    times = moves.down(moves.times(path, 20))
    end, _ = integrate(Ddim(), bind(chosen, Inputs()), path, GRID, times, noise.zero, noise.NO_DRAWS)
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", CftoolsWarning)
    facts = {"orders": orders(), "laws": laws()}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
