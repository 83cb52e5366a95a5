"""Faults around a command: a full disk, a read-only folder, a kill at any moment, two that write one file at once."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_input import AGED, COMPARED, USAGE, contents, furnish, run
from bad_latents import sound_state
from bad_nifti import AFFINE, nifti_bytes
from writers import NOISE, ROUNDS, made_by

from cftools import described, volume
from cftools.described import save_described
from cftools.errors import OutputError
from cftools.latent import Latent
from cftools.volume import Volume, write_atomic

ROOT = Path(__file__).parent.parent
WRITERS = ROOT / "tests" / "writers.py"


def _python(*words: object) -> subprocess.Popen[str]:
    """A process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_keeps_what_was_there(small_disk: Path) -> None:
    large = Volume.from_array(NOISE, AFFINE)
    save_described(Volume.from_array(NOISE[:8, :8, :8], AFFINE), made_by("cf-edit"), small_disk / "out.nii.gz")
    sound_state().save(small_disk / "latent.safetensors")
    before = contents(small_disk)
    for path in (small_disk / "out.nii.gz", small_disk / "new.nii.gz"):
        with pytest.raises(OutputError, match=rf"{path.name}: cannot be written \(No space left on device\)"):
            save_described(large, made_by("cf-edit --more"), path, force=True)
    for name in ("latent.safetensors", "new.tsv"):
        with pytest.raises(OutputError, match="No space left"):
            write_atomic(small_disk / name, bytes(1 << 17), force=True)
    assert contents(small_disk) == before


def test_a_command_on_a_full_disk_ends_with_one_line(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "sound.nii").write_bytes(nifti_bytes())
    (small_disk / "others").write_bytes(bytes(60 << 10))
    before = contents(small_disk)
    code, out, err = run("view", ("sound.nii", "-o", str(small_disk / "a.png")), tmp_path)
    assert (code, out, err.count("\n")) == (USAGE, "", 1) and "a.png: cannot be written (No space left" in err
    assert contents(small_disk) == before


def test_a_limit_on_files_is_a_full_disk_too(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(OutputError, match="File too large"):
            save_described(Volume.from_array(NOISE, AFFINE), made_by("cf-edit"), tmp_path / "out.nii")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("command", "words", "output"),
    [
        ("edit", (*AGED, "sound.nii"), "out.nii.gz"),
        ("edit", (*AGED, "sound.nii", "-o"), "new/"),
        ("encode", ("--from", "age=49,sex=F", "sound.nii"), "out.safetensors"),
        ("invert", ("state.safetensors",), "out.safetensors"),
        ("resample", ("--age", "+20", "state.safetensors"), "out.safetensors"),
        ("decode", ("edited.safetensors",), "out.nii.gz"),
        ("decode", ("edited.safetensors",), "new/"),
        ("prep", ("sound.nii", "grid.nii", "--transform"), "out.txt"),
        ("view", ("sound.nii", "-o"), "out.png"),
        ("view", ("sound.nii", "-o"), "new/"),
        ("score", (*COMPARED, "sound.nii", "--json"), "facts.json"),
        ("weights", ("list", "--json"), "facts.json"),
        ("phantom", ("-n", "1"), "new"),
        ("synth", ("--age", "50"), "new"),
        ("train", ("--preset", "twin", "--out"), "new"),
    ],
)
def test_a_read_only_folder_is_refused_before_any_work(
    command: str, words: tuple[str, ...], output: str, read_only: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    furnish(place, words)
    before = contents(tmp_path)
    code, out, err = run(command, (*words, f"{read_only}/{output}"), place)
    assert (code, out, err.count("\n")) == (USAGE, "", 1), err
    assert f"{read_only}" in err and "can be written to" in err
    assert contents(tmp_path) == before


def test_a_read_only_scan_needs_a_folder_for_the_result(read_only: Path, tmp_path: Path) -> None:
    """The default name would stand beside the scan."""
    code, _, err = run("edit", (*AGED, f"{read_only}/kept.nii.gz"), tmp_path)
    assert code == USAGE and "can be written to" in err


def test_a_kill_at_any_moment_leaves_whole_files(tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(4):
        with _python(WRITERS, "forever", tmp_path) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.05, 0.3))
            writer.send_signal(signal.SIGKILL)
        images = [path for path in tmp_path.glob("*.nii.gz") if not path.name.startswith(".")]
        assert images
        for image in images:
            Volume.load(image)
            json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
        for latent in tmp_path.glob("[!.]*.safetensors"):
            Latent.load(latent)
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert all(name.startswith(".cftools-") and name.endswith(".part") for name in leftovers)


def test_of_two_that_write_one_image_one_wins(tmp_path: Path) -> None:
    racers = [_python(WRITERS, "race", tmp_path, value) for value in (1, 2)]
    won = []
    for racer in racers:
        out, err = racer.communicate(timeout=60)
        assert racer.returncode == 0, err
        won.append({int(number) for number in out.split()})
    assert won[0] | won[1] == set(range(ROUNDS)) and not won[0] & won[1]
    for number in range(ROUNDS):
        winner = 1 if number in won[0] else 2
        assert Volume.load(tmp_path / f"{number}.nii.gz").array.max() == 15 * winner
        assert json.loads((tmp_path / f"{number}.json").read_text())["cftools"]["command"] == f"cf-edit {winner}"
    assert len(list(tmp_path.iterdir())) == 2 * ROUNDS


def test_who_comes_second_leaves_the_sidecar_of_who_came_while_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "out.nii.gz", Volume.from_array(NOISE[:8, :8, :8], AFFINE)
    look = described._content

    def slow(sidecar: Path) -> bytes | None:
        found = look(sidecar)
        monkeypatch.setattr(described, "_content", look)
        save_described(made, made_by("cf-edit first"), path)
        return found

    monkeypatch.setattr(described, "_content", slow)
    with pytest.raises(OutputError, match="exists already"):
        save_described(made, made_by("cf-edit second"), path)
    assert json.loads((tmp_path / "out.json").read_text())["cftools"]["command"] == "cf-edit first"
    assert len(list(tmp_path.iterdir())) == 2


def test_of_two_commands_on_one_output_one_wins(tmp_path: Path) -> None:
    (tmp_path / "sound.nii").write_bytes(nifti_bytes())
    code = "import sys; from cftools.cli.view import main; sys.exit(main(sys.argv[1:]))"
    both = [_python("-c", code, tmp_path / "sound.nii", "-o", tmp_path / "out.png", "--dpi", "40") for _ in range(2)]
    said = sorted((one.wait(60), *one.communicate()) for one in both)
    assert [code for code, _, _ in said] == [0, USAGE]
    assert said[0][1:] == (f"{tmp_path}/out.png\n", "") and said[1][2].count("\n") == 1
    assert "exists already" in said[1][2]
    assert (tmp_path / "out.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert len(list(tmp_path.iterdir())) == 2


def test_without_hard_links_a_file_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(volume.os, "link", refuse)
    write_atomic(tmp_path / "out", b"mine")
    with pytest.raises(OutputError, match="exists already"):
        write_atomic(tmp_path / "out", b"theirs")
    assert contents(tmp_path) == {"out": (0o100000, b"mine")}


@pytest.mark.parametrize("before", [None, b'{"cftools": "of a run that was killed"}', b'{"EchoTime": 1}'])
def test_an_interruption_takes_back_the_sidecar(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        (tmp_path / "out.json").write_bytes(before)
    was = contents(tmp_path)

    def interrupt(temporary: Path, path: Path, force: bool) -> None:
        if path.suffix == ".gz":
            raise KeyboardInterrupt
        shutil.move(temporary, path)

    monkeypatch.setattr(volume, "_move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_described(Volume.from_array(NOISE, AFFINE), made_by("cf-edit"), tmp_path / "out.nii.gz", force=True)
    assert contents(tmp_path) == was


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed: str, tmp_path: Path) -> None:
    code = "from cftools.cli.weights import main; import sys; sys.exit(main(sys.argv[1:]))"
    script = f'"$0" -c "$1" info twin-age-2mm --json facts.json {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", script, sys.executable, code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "facts.json").read_text())["architecture"] == "twin"


def test_a_full_stdout_is_one_line() -> None:
    code = "from cftools.cli.weights import main; import sys; sys.exit(main(['list']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, done.stderr) == (1, "cf-weights: error: No space left on device\n")
