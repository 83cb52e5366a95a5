"""A training that a signal stops ends, when it is started again, with the bits of one that nobody stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import SCHEDULE, Line
from torch import Tensor, nn

from cftools.errors import CftoolsError
from cftools.train.loop import train
from cftools.train.state import State

STEPS = replace(SCHEDULE, steps=120, save_every=1000, log_every=7, workers=1, batch=2)
ROOT = Path(__file__).parent.parent
RUN = """
import os, random, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_train import Line
from test_resume import STEPS
from cftools.errors import Stopped
from cftools.train.loop import train
def ask(number):
    started.wait()
    time.sleep(random.uniform(0, 0.3))
    os.killpg(0, number)
class Slow(Line):
    def losses(self, network, item):
        started.set()
        time.sleep(0.004)
        return super().losses(network, item)
for number in [signal.SIGTERM, signal.SIGUSR1] * 20:
    started = threading.Event()
    asking = threading.Thread(target=ask, args=(number,), daemon=True)
    signal.signal(number, lambda *_: None)
    asking.start()
    try:
        train(Slow(), STEPS, Path({out!r}))
        break
    except Stopped as stopped:
        print(stopped, flush=True)
        asking.join()
"""


def logged(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").open()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _same(ours: Path, theirs: Path) -> None:
    one, other = load_file(ours / "state.safetensors"), load_file(theirs / "state.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert logged(ours) == logged(theirs)


def test_signals_at_any_moment_change_no_bit(tmp_path: Path) -> None:
    """Stopped again and again, at moments that nobody chose, with the process that makes its data."""
    torch.set_num_threads(1)
    train(Line(), STEPS, tmp_path / "whole")
    code = RUN.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("goes on from there") >= 2, done.stdout
    _same(tmp_path / "run", tmp_path / "whole")


def test_a_signal_between_saves_keeps_the_steps_done(tmp_path: Path) -> None:
    class Stopping(Line):
        def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
            found = super().losses(network, item)
            if item["x"][0] == first:
                signal.raise_signal(signal.SIGTERM)
            return found

    schedule = replace(SCHEDULE, save_every=1000, log_every=7)
    first = Line().dataset()[33]["x"][0]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CftoolsError, match="SIGTERM after step 34 of 60") as stopped:
        train(Stopping(), schedule, tmp_path / "run")
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    train(Line(), schedule, tmp_path / "run")
    train(Line(), schedule, tmp_path / "whole")
    _same(tmp_path / "run", tmp_path / "whole")


def test_states_that_take_long_to_write_are_written_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []
    monkeypatch.setattr("cftools.train.loop.time.monotonic", lambda: clock[0])
    save = State.save

    def slow(state: State, path: Path) -> None:
        save(state, path)
        written.append(state.step)
        clock[0] += 2.0  # as long as 20 steps

    def ticking(step: int, total: int, losses: dict[str, float]) -> None:
        clock[0] += 0.1 * SCHEDULE.log_every

    monkeypatch.setattr(State, "save", slow)
    train(Line(), replace(SCHEDULE, steps=1000), tmp_path, ticking)
    assert written == [10, 390, 770, 1000], "19 times as long as writing, to the next tenth step; and the last"


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, broken: str) -> None:
    class Bad(Line):
        def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
            found = super().losses(network, item)
            if item["x"][0] == first:
                if broken == "loss":
                    found["loss"] = found["loss"] * float("nan")
                else:
                    found["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return found

    # The last step before a save: nothing else would see the gradient.
    first = Line().dataset()[39]["x"][0]
    with pytest.raises(CftoolsError, match="not finite"):
        train(Bad(), replace(SCHEDULE, log_every=1000, save_every=20), tmp_path)
    state = load_file(tmp_path / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert state["optimiser.0.step"] == 20


def test_checkpointing_changes_no_gradient_and_keeps_less(tmp_path: Path) -> None:
    from cftools.train.checkpointing import checkpointed

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.SiLU(), nn.Dropout(0.2)) for _ in range(4))
        )

    x, kept, gradients = torch.randn(1, 2, 8, 8, 8), [], []
    for one in (nn.ModuleList([network()])[0], checkpointed(network())):
        torch.manual_seed(1)
        held: list[int] = []

        def note(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = one(x).square().sum()
        kept.append(sum(held))
        gradients.append(torch.autograd.grad(loss, list(one.parameters())))
    assert kept[1] < 0.6 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
    train(Line(), replace(SCHEDULE, dtype="float32"), tmp_path / "plain")
    train(Line(), replace(SCHEDULE, dtype="float32", checkpointing=True), tmp_path / "checkpointed")
    for name, value in load_file(tmp_path / "plain/state.safetensors").items():
        torch.testing.assert_close(value, load_file(tmp_path / "checkpointed/state.safetensors")[name])
