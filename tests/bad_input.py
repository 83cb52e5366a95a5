"""Bad input at the level of commands: every bad file given to commands that read such files.

`CASES` are made from the corpora of images, latents, weights and tables, and from masks, streams and outputs that
cannot be. Of the commands that read a kind of file, the first gets every bad one, and the others take turns.
`outcome` runs a case in an empty folder, once, and says what came of it; the tests judge that, and docs/bad_input.py
makes a page of it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

import bad_latents
import bad_nifti
import bad_tables
import bad_weights
import numpy as np

from cftools import weights
from cftools.volume import Volume

#: Seconds after which a command is taken to wait for ever, as it would on a FIFO.
PATIENCE = 10
INPUT_REFUSED, USAGE = 3, 2

BAD = "bad.safetensors"
TABLE = "bids/participants.tsv"
SCAN = "bids/sub-01/anat/sub-01_T1w.nii.gz"
AGED = ("--age", "79", "--from", "age=49,sex=F")
COMPARED = ("--truth", "sound.nii", "--before", "sound.nii", "--metric", "psnr")


Words = tuple[str, ...]
Build = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One command line that must be refused.

    Attributes:
        kind, name: what is bad, and in which way.
        command: without cf-; words: what follows it.
        code: with which it ends; reason: words that the error must contain; subject: the file that it must name.
        build: makes the bad file in the working folder, beside the sound ones that the words name.
        stdin: bytes on standard input.
    """

    kind: str
    name: str
    command: str
    words: Words
    code: int
    reason: str
    subject: str
    build: Build
    stdin: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: cf-{self.command}"


@dataclass(frozen=True)
class Outcome:
    """What came of a case: exit code, what was printed, and the paths that are not as they were."""

    code: int
    out: str
    err: str
    changed: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether it was refused with one line and nothing else happened."""
        return self.code != 0 and not self.out and not self.changed and self.err.count("\n") == 1

    @property
    def is_crash(self) -> bool:
        """Whether the fault was not foreseen."""
        return "Traceback" in self.err or "this is a bug" in self.err


@functools.cache
def sound_files() -> dict[str, bytes]:
    """Sound files to go with a bad one, by their paths: a scan, latents, a BIDS folder."""
    scan = Volume.from_array(bad_nifti.picture(), bad_nifti.AFFINE)
    state = bad_latents.sound_state()
    edited = state.as_edits(bad_latents.TARGETS[:1], [bad_latents.array(4)])
    return {
        "sound.nii": scan.to_bytes(),
        "state.safetensors": state.to_bytes(),
        "edited.safetensors": edited.to_bytes(),
        SCAN: scan.to_bytes(gz=True),
        TABLE: bad_tables.SOUND,
    }


def furnish(folder: Path, words: Words) -> None:
    """Write those of the sound files that a command line names."""
    for name, data in sound_files().items():
        first = name.partition("/")[0]
        if any(first in word for word in words):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def _nothing(folder: Path) -> None:
    """Leave the folder as it is furnished."""


def _bytes(name: str, data: bytes) -> Build:
    return lambda folder: (folder / name).write_bytes(data)


def _spoilt(spoil: Callable[[bytes], bytes], sound: Callable[[], bytes]) -> Build:
    return lambda folder: (folder / BAD).write_bytes(spoil(sound()))


def _made(name: str, make: Build) -> Build:
    """A builder of what is no ordinary file, under this name."""

    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return build


def _link(name: str, target: str) -> Build:
    return lambda folder: (folder / name).symlink_to(target)


def _in_turn(readers: Sequence[tuple[str, Words]], number: int) -> tuple[tuple[str, Words], tuple[str, Words]]:
    """The first reader, and another one that the number picks."""
    first, *others = readers
    return first, others[number % len(others)]


def _images() -> Iterator[Case]:
    for number, (name, build) in enumerate(bad_nifti.REFUSED.items()):
        with tempfile.TemporaryDirectory() as folder:
            bad = str(build(Path(folder)).relative_to(folder))
        readers: list[tuple[str, Words]] = [
            ("edit", (*AGED, bad, "out.nii.gz")),
            ("encode", ("--from", "age=49,sex=F", bad, "out.safetensors")),
            ("prep", (bad, "out.nii.gz", "--transform", "out.txt", "--save-mask", "out_mask.nii.gz")),
            ("view", (bad, "-o", "new/")),
            ("score", (*COMPARED, bad, "--json", "out.json", "--tsv", "out.tsv")),
            ("decode", ("--onto", bad, "edited.safetensors", "out.nii.gz")),
        ]
        for command, words in _in_turn(readers, number):
            # Named by the first part alone where a pair's other half, or a file taken for a folder, is at fault.
            subject = bad.rpartition(".")[0].partition("/")[0]
            yield Case("image", name, command, words, INPUT_REFUSED, bad_nifti.REASONS[name], subject, build)


def _streams() -> Iterator[Case]:
    readers: list[tuple[str, Words]] = [
        ("edit", (*AGED, "-", "out.nii.gz")),
        ("encode", ("--from", "age=49,sex=F", "-", "out.safetensors")),
        ("prep", ("-", "out.nii.gz")),
        ("view", ("-", "-o", "out.png")),
    ]
    sound = bad_nifti.nifti_bytes()
    for name, data, reason in (
        ("nothing", b"", "empty"),
        ("text", b"<html>not found</html>\n" * 20, "text"),
        ("cut short", sound[:-100], "truncated"),
    ):
        for command, words in readers:
            yield Case("image on stdin", name, command, words, INPUT_REFUSED, reason, "(-)", _nothing, data)
    for command, words in (("invert", ("-", "out.safetensors")), ("decode", ("-", "out.nii.gz"))):
        yield Case("latent on stdin", "nothing", command, words, INPUT_REFUSED, "empty", "(-)", _nothing)
        yield Case("latent on stdin", "an image", command, words, INPUT_REFUSED, "an image", "(-)", _nothing, sound)


#: What is no file, under a name that can be given to any command.
NO_FILES: dict[str, Build] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("annexed"),
}


def _latents() -> Iterator[Case]:
    readers: list[tuple[str, Words]] = [
        ("invert", (BAD, "out.safetensors")),
        ("resample", ("--age", "+20", BAD, "out.safetensors")),
        ("decode", (BAD, "new/")),
    ]
    sound = functools.cache(lambda: bad_latents.sound_state().to_bytes())
    bad = {name: (_spoilt(spoil, sound), reason) for name, (spoil, reason) in bad_latents.BAD.items()}
    for name, make in NO_FILES.items():
        reason = "does not exist" if name in ("missing", "dangling link") else "not an ordinary file"
        bad[name] = (_made(BAD, make), reason)
    for number, (name, (build, reason)) in enumerate(bad.items()):
        for command, words in _in_turn(readers, number):
            yield Case("latent", name, command, words, INPUT_REFUSED, reason, BAD, build)
    for command, words, reason in (
        ("invert", ("state.safetensors", "out.safetensors"), "give what cf-encode writes"),
        ("resample", ("--age", "+20", "edited.safetensors", "out.safetensors"), "give what cf-invert writes"),
        ("decode", ("state.safetensors", "out.nii.gz"), "give what cf-resample writes"),
    ):
        subject = next(word for word in words if word.endswith(".safetensors"))
        yield Case("latent", "of another command", command, words, INPUT_REFUSED, reason, subject, _nothing)


@functools.cache
def _sound_weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.safetensors")
        weights.save(path, bad_weights.tensors(), bad_weights.FACTS)
        return path.read_bytes()


def _weights() -> Iterator[Case]:
    readers: list[tuple[str, Words]] = [
        ("weights", ("add", BAD, "mine", "--description", "bad", "--serves", "twin")),
        ("weights", ("info", BAD, "--json", "out.json")),
        ("edit", ("--weights", BAD, *AGED, "sound.nii", "out.nii.gz")),
    ]
    bad = {name: (_spoilt(spoil, _sound_weights), reason) for name, (spoil, reason) in bad_weights.BAD.items()}
    for name, make in NO_FILES.items():
        bad[name] = (_made(BAD, make), "neither bundled weights")
    for number, (name, (build, reason)) in enumerate(bad.items()):
        for command, words in _in_turn(readers, number):
            if (words[0], name) != ("info", "NaN"):  # it reads the head alone
                yield Case("weights", name, command, words, INPUT_REFUSED, reason, BAD, build)


def _tables() -> Iterator[Case]:
    readers: list[tuple[str, Words]] = [
        ("edit", ("--age", "+30", "bids", "out/")),
        ("edit", ("--age", "+30", SCAN, "out.nii.gz")),
        ("encode", (SCAN, "out.safetensors")),
        ("train", ("--preset", "twin", "--no-template", "--data", "bids", "--source", "ours", "--out", "run")),
        ("phantom", ("--base", "bids", "-n", "1", "out")),
    ]
    bad: dict[str, tuple[Build, str]] = {
        name: (_bytes(TABLE, data), reason) for name, (data, reason) in bad_tables.REFUSED.items()
    }
    for name in ("folder", "fifo", "device"):
        bad[name] = (_made(TABLE, NO_FILES[name]), "is not an ordinary file")
    for name, (build, reason) in bad.items():
        for command, words in readers:
            yield Case("table", name, command, words, INPUT_REFUSED, reason, TABLE, build)


def _masks() -> Iterator[Case]:
    words = ("--preset", "ldm", "--carry", "region", "--region", "mask.nii", *AGED, "sound.nii", "out.nii.gz")
    left = (np.arange(12) < 6)[:, None, None] * np.ones(bad_nifti.SHAPE, np.float32)
    far = bad_nifti.AFFINE.copy()
    far[0, 3] += 5
    for name, array, affine, reason in (
        ("empty", left * 0, bad_nifti.AFFINE, "every voxel is 0"),
        ("not binary", bad_nifti.picture(), bad_nifti.AFFINE, "threshold it first"),
        ("of other sides", left[:, :, :9], bad_nifti.AFFINE, "is not on the grid of sound.nii"),
        ("elsewhere", left, far, "is not on the grid of sound.nii"),
        ("of several volumes", np.stack([left, left], -1), bad_nifti.AFFINE, "--volume"),
        ("of everything", left * 0 + 1, bad_nifti.AFFINE, "every voxel is 1"),
    ):
        data = bad_nifti.nifti_bytes(array.astype(np.float32), affine)
        yield Case("mask", name, "edit", words, INPUT_REFUSED, reason, "mask.nii", _bytes("mask.nii", data))
    yield Case("mask", "missing", "edit", words, INPUT_REFUSED, "does not exist", "mask.nii", _nothing)


def _outputs() -> Iterator[Case]:
    def case(name: str, command: str, words: Words, reason: str, subject: str, build: Build = _nothing) -> Case:
        return Case("output", name, command, words, USAGE, reason, subject, build)

    long = "long" * 99
    writers: dict[str, tuple[Words, str]] = {
        "edit": ((*AGED, "sound.nii"), ".nii.gz"),
        "encode": (("--from", "age=49,sex=F", "sound.nii"), ".safetensors"),
        "invert": (("state.safetensors",), ".safetensors"),
        "resample": (("--age", "+20", "state.safetensors"), ".safetensors"),
        "decode": (("edited.safetensors",), ".nii.gz"),
        "prep": (("sound.nii",), ".nii.gz"),
        "view": (("sound.nii", "-o"), ".png"),
        "score": ((*COMPARED, "sound.nii", "--tsv"), ".tsv"),
    }
    for command, (words, ending) in writers.items():
        out = f"out{ending}"
        yield case("in no folder", command, (*words, f"missing/{out}"), "does not exist", f"missing/{out}")
        yield case("below a file", command, (*words, f"sound.nii/{out}"), "does not exist", f"sound.nii/{out}")
        yield case("there already", command, (*words, out), "exists already", out, _bytes(out, b"mine"))
        yield case("a link to nowhere", command, (*words, out), "exists already", out, _link(out, "nowhere"))
        yield case("a pipe", command, (*words, out, "--force"), "not an ordinary file", out, _made(out, os.mkfifo))
        yield case("a device", command, (*words, out, "--force"), "ordinary file", out, _link(out, "/dev/full"))
        yield case("a name too long", command, (*words, long + ending), "File name too long", "long")
    for command, words in (
        ("edit", (*AGED, "sound.nii", "-o")),
        ("decode", ("edited.safetensors",)),
        ("view", ("sound.nii", "-o")),
        ("phantom", ("-n", "1")),
        ("synth", ("--age", "50")),
        ("train", ("--preset", "twin", "--out")),
    ):
        yield case("a folder below a file", command, (*words, "sound.nii/new/"), "sound.nii", "sound.nii/new")
    for command, words in (
        ("edit", (*AGED, "sound.nii", "sound.nii")),
        ("edit", (*AGED, "sound.nii", "./bids/../sound.nii")),
        ("invert", ("state.safetensors", "state.safetensors")),
        ("decode", ("--onto", "sound.nii", "edited.safetensors", "sound.nii")),
        ("prep", ("sound.nii", "out.nii", "--save-mask", "sound.nii")),
        ("score", (*COMPARED, SCAN, "--tsv", "sound.nii")),
        ("score", (*COMPARED, SCAN, "--json", SCAN)),
    ):
        subject = words[-1].rpartition("/")[2]
        yield case("an input", command, (*words, "--force"), "is an input", subject)
    for command, words, subject in (
        ("edit", (*AGED, "sound.nii", "out.mgz"), "out.mgz"),
        ("encode", ("sound.nii", "out.nii"), "out.nii"),
        ("invert", ("state.safetensors", "out.nii"), "out.nii"),
        ("decode", ("edited.safetensors", "out.png"), "out.png"),
        ("prep", ("sound.nii", "out.nii", "--transform", "out.mat"), "out.mat"),
        ("view", ("sound.nii", "-o", "out.bmp"), "out.bmp"),
    ):
        yield case("of another kind", command, words, "end", subject)
    link = _link("out.nii", "sound.nii")
    yield case("a link to an input", "edit", (*AGED, "sound.nii", "out.nii", "--force"), "is an input", "out.nii", link)
    for command, words in (
        ("edit", (*AGED, "sound.nii", "out.nii")),
        ("score", (*COMPARED, "sound.nii")),
        ("weights", ("list",)),
    ):
        json = ("--json", "missing/facts.json")
        yield case("facts in no folder", command, (*words, *json), "does not exist", "missing/facts.json")
    for command, words in (("phantom", ("-n", "1", "bids")), ("synth", ("--age", "50", "bids"))):
        yield case("a folder in use", command, words, "not empty", "bids")


CASES: tuple[Case, ...] = (
    *_images(),
    *_streams(),
    *_latents(),
    *_weights(),
    *_tables(),
    *_masks(),
    *_outputs(),
)


@functools.cache
def outcome(case: Case) -> Outcome:
    """Run a case, unless it was run before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        furnish(folder, case.words)
        case.build(folder)
        before = contents(folder)
        code, out, err = run(case.command, case.words, folder, case.stdin)
        after = contents(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return Outcome(code, out, err.replace(f"{folder}/", ""), tuple(changed))


def contents(folder: Path) -> dict[str, object]:
    """Everything in a folder by its path: kind of file, and bytes or where it links to."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        inside = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), inside)
    return found


def run(command: str, words: Words, folder: Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in a folder, run in this process.

    What cf-weights would add to the bundled weights would go into the folder.
    """
    main = import_module(f"cftools.cli.{command}").main
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (stdin, b"", b"")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.object(sys, "stdin", streams[0]))
        stack.enter_context(contextlib.redirect_stdout(streams[1]))
        stack.enter_context(contextlib.redirect_stderr(streams[2]))
        if command == "weights":
            stack.enter_context(mock.patch.object(weights, "bundled_dir", lambda: folder))
        stack.enter_context(_patience())
        code = main(words)
    texts = []
    for stream in streams[1:]:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="surrogateescape"))
    return code, texts[0], texts[1]


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """End what waits for ever, with a fault that nobody foresees."""

    def stop(*_: object) -> None:
        raise RuntimeError(f"still running after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
