"""Several processes train as one does: who is who, and the same losses at the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import SCHEDULE, Line

from cftools.errors import UsageError
from cftools.train.loop import Schedule, train
from cftools.train.processes import Place, place_of

BATCH = Schedule(20, learning_rate=0.05, ema=0.9, dtype="float32", workers=0, save_every=10, log_every=5, batch=4)
SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_distributed import BATCH
from test_train import Line
from cftools.train.loop import train
train(Line(), BATCH, Path({out!r}), lambda step, total, losses: print("line", step, flush=True))
"""


def in_two_processes(text: str, out: Path) -> str:
    """Run a script under torchrun, which leaves what it trains in a folder; what it printed."""
    script = out.with_suffix(".py")
    script.write_text(text.format(tests=str(Path(__file__).parent), out=str(out)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        start, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    one, two = tmp_path / "one", tmp_path / "two"
    train(Line(), BATCH, one)
    said = in_two_processes(SCRIPT, two)
    assert said.splitlines() == [f"line {step}" for step in (5, 10, 15, 20)], "the first process speaks alone"
    logs = [[json.loads(line) for line in (out / "log.jsonl").open()] for out in (one, two)]
    assert [line["step"] for line in logs[1]] == [5, 10, 15, 20]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["absolute"] == pytest.approx(theirs["absolute"], rel=1e-4)
    ours, theirs = (load_file(out / "state.safetensors") for out in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_batch_is_the_mean_over_its_items(tmp_path: Path) -> None:
    """One step of plain descent in the loop's own words: gradients of the items, averaged, clipped, stepped."""
    schedule = replace(BATCH, steps=1, batch=3, weight_decay=0.0)
    line = Line()
    network = line.network()
    expected: list[torch.Tensor] = [torch.zeros_like(one) for one in network.parameters()]
    for number in range(3):
        torch.manual_seed(number)
        loss = line.losses(network, line.dataset()[number])["loss"]
        for total, part in zip(expected, torch.autograd.grad(loss, list(network.parameters())), strict=True):
            total += part / 3
    train(line, schedule, tmp_path)
    state = load_file(tmp_path / "state.safetensors")
    norm = torch.stack([one.norm() for one in expected]).norm()
    for index, gradient in enumerate(expected):
        # AdamW's first moment after one step is 0.1 of the gradient.
        torch.testing.assert_close(state[f"optimiser.{index}.exp_avg"], 0.1 * gradient / max(1.0, float(norm)))


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Place()),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"}, Place()),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}, Place(3, 4, 2, "srun")),
        (
            {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            Place(1, 2, 1, "torchrun"),
        ),
    ],
)
def test_place_is_what_the_launcher_says(environment: dict[str, str], place: Place) -> None:
    assert place_of(environment) == place


def test_one_process_needs_no_fabric(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_train import Line, SCHEDULE\n"
        f"from cftools.train.loop import train; train(Line(), SCHEDULE, Path({str(tmp_path)!r}))\n"
        "assert not [name for name in sys.modules if name.startswith('lightning_fabric')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, timeout=120)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cftools.train import loop, processes

    three = processes.Alone("cpu")
    three.place = Place(0, 3)
    monkeypatch.setattr(loop, "processes_on", lambda device: three)
    with pytest.raises(UsageError, match="multiple"):
        train(Line(), replace(SCHEDULE, batch=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()
