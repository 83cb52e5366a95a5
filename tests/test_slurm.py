"""cf-edit as an array job, and cf-train as tasks of a step, of a real SLURM: `make test-slurm`, as root on Debian."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slurm_cluster import Cluster, running_cluster, wait_for

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parent.parent
SUBJECTS = 3
WORDS = ["--age", "+20", "--threads", "1"]
TRAINED = [
    *("--preset", "score-age", "--real", "bids", "--source", "simulated", "--licence", "CC0", "--dtype", "float32"),
    *("--set", "training.steps=30", "--set", "network.channels=[4,4,8,8]", "--set", "data.subjects=1"),
    *("--set", "training.batch=2", "--device", "cpu", "--threads", "1", "--workers", "0"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    """A folder with a simulated cohort, bids/, its edits made without a cluster, serial/, and the docs' script."""
    folder = tmp_path_factory.mktemp("slurm")
    cohort = ["cf-phantom", "bids", "-n", str(SUBJECTS), "--seed", "7", "--ages", "30,60", "--threads", "1"]
    for words in (cohort, ["cf-edit", *WORDS, "bids", "serial"]):
        subprocess.run(words, cwd=folder, env=_environment(cluster), check=True, timeout=600)
    scripts = re.findall(r"^```(?:ba)?sh\n(#!/bin/bash\n.*?)^```", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
    for name, script in zip(("aged.sh", "train.sh"), scripts, strict=True):
        (folder / name).write_text(script)
    return folder


def _environment(cluster: Cluster) -> dict[str, str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    return {**cluster.environment, "PATH": programs, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _submit(cluster: Cluster, place: Path, *words: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *words], cwd=place, env=_environment(cluster), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _processes(job: str, task: int) -> list[int]:
    """The cf-edit of a task: as when memory runs out, it alone is killed, and its script ends with an error."""
    marks = {f"SLURM_ARRAY_JOB_ID={job}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_tasks = marks <= set((folder / "environ").read_bytes().split(b"\0"))
            if is_tasks and b"cf-edit" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    assert found, "the task's process is gone: it cannot be killed"
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_docs_script_killed_and_requeued_makes_the_serial_bytes(cluster: Cluster, place: Path) -> None:
    job = _submit(cluster, place, "aged.sh", "bids/", "array/")
    # Task 1 has the first and the third subject; it is killed between the two.
    first, last = (place / f"array/sub-000{n}/anat/sub-000{n}_desc-agePlus20_T1w.nii.gz" for n in (1, 3))
    wait_for(first.exists, 600, lambda: f"{cluster.states(job)} {_logs(place)}")
    for process in _processes(job, task=1):
        os.kill(process, signal.SIGKILL)
    cluster.until(job, lambda states: states.get("1") == "FAILED")
    assert not last.exists(), "the task ended before it was killed: nothing was tested"

    cluster.ask("scontrol", "requeue", f"{job}_1")
    cluster.until(job, lambda states: set(states.values()) == {"COMPLETED"})
    assert len(_files(place / "serial")) == 2 * SUBJECTS + 1
    assert _files(place / "array") == _files(place / "serial"), _logs(place)

    rows = [
        line.split("\t") for path in sorted(place.glob("aged_shard-*.tsv")) for line in path.read_text().splitlines()
    ]
    status = {Path(row[0]).name: row[1] for row in rows if row[0] != "scan"}
    done = {f"sub-000{n}_T1w.nii.gz": "skipped" if n == 1 else "done" for n in range(1, SUBJECTS + 1)}
    assert status == done


def test_two_parts_make_the_serial_bytes(cluster: Cluster, place: Path) -> None:
    parts = [["cf-edit", *WORDS, "--shard", f"{n}/2", "bids", "parts"] for n in (1, 2)]
    running = [subprocess.Popen(words, cwd=place, env=_environment(cluster)) for words in parts]
    assert [one.wait(timeout=600) for one in running] == [0, 0]
    assert _files(place / "parts") == _files(place / "serial")


def test_an_array_with_gaps_is_refused(cluster: Cluster, place: Path) -> None:
    job = _submit(cluster, place, "--array=1,3", "--output=gaps-%a.log", "aged.sh", "bids/", "gaps/")
    cluster.until(job, lambda states: set(states.values()) == {"FAILED"})
    assert "has gaps" in (place / "gaps-1.log").read_text()
    assert not (place / "gaps").exists()


def test_the_docs_training_preempted_and_requeued_trains_as_one_process(cluster: Cluster, place: Path) -> None:
    alone = ["cf-train", *TRAINED, "--out", "one"]
    subprocess.run(alone, cwd=place, env=_environment(cluster), check=True, timeout=600)
    smaller = ["--cpus-per-task=1", "--mem=4G", "--gres=none"]  # than the script asks: this node has two CPUs
    job = _submit(cluster, place, *smaller, "train.sh", *TRAINED, "--out", "two")
    log = place / "two" / "log.jsonl"
    wait_for(lambda: log.exists() and bool(log.read_text()), 600, lambda: f"{cluster.states(job)} {_logs(place)}")
    cluster.ask("scancel", "--signal=TERM", job)  # what preemption sends
    cluster.until(job, lambda states: states.get("") in ("COMPLETED", "FAILED", "CANCELLED"))
    assert "JobState=COMPLETED" in (told := cluster.ask("scontrol", "show", "job", job)), _logs(place)
    assert "Restarts=1" in told, "it was not requeued: nothing was tested"

    ours, theirs = ([json.loads(line) for line in (place / out / "log.jsonl").open()] for out in ("two", "one"))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)
    one = load_file(place / "one" / "weights.safetensors")
    for name, tensor in load_file(place / "two" / "weights.safetensors").items():
        torch.testing.assert_close(tensor.float(), one[name].float(), rtol=1e-2, atol=1e-3, msg=name)


def _logs(place: Path) -> str:
    return "\n".join(path.read_text() for path in place.glob("*.log"))
