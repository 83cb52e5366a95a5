"""cf-score --axioms: a preset edits scans there and back, and is held to what any counterfactual must satisfy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cftools.cli import terminal
from cftools.cli.batch import Record, Stages
from cftools.cli.score_outputs import Outputs
from cftools.cli.summary import summarised
from cftools.errors import ConditionError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cftools.condition import Condition
    from cftools.editing import Editor, Ready
    from cftools.imagesets import Member
    from cftools.methods import ScalarReader
    from cftools.planning import Changes
    from cftools.score.table import Value

#: The paper's changes (Table 2).
AGES = ("-60", "-30", "-10", "+10", "+30", "+60")


@dataclass(frozen=True)
class Tried:
    """What to try a preset with.

    Attributes:
        ages: the changes, as of cf-edit --age; empty for the paper's.
        readers: weights by variable that read an edit; without those of a variable it is not asked.
        cycles: edits to the scan's own condition, and round trips. count: scans at most, spread over ages.
    """

    preset: str
    weights: str | None
    ages: tuple[str, ...]
    readers: Mapping[str, str]
    cycles: int
    count: int | None
    contrast: str
    subjects: tuple[str, ...]
    seed: int
    threads: int
    device: Callable[[], torch.device]


def score_axioms(folders: Sequence[str], tried: Tried, outputs: Outputs) -> int:
    """The axioms' scores of a preset on the scans of a folder, printed and written; the exit code."""
    from cftools.condition import Condition
    from cftools.editing import Editor
    from cftools.imagesets import find_members, real, spread_over_ages
    from cftools.planning import parse_sweep, plan
    from cftools.preset import load_preset
    from cftools.score.looking import open_readers
    from cftools.score.table import averaged

    if len(folders) != 1:
        raise UsageError("--axioms: name one folder of scans")
    sweep = parse_sweep(tried.ages or AGES, ())
    method = plan(load_preset(tried.preset), sweep, Condition(), tried.weights)
    outputs.check([folders[0]])
    members = real(find_members(Path(folders[0]), tried.contrast, tried.subjects))
    aged = spread_over_ages(members, tried.count or len(members))
    if not aged:
        raise ConditionError(f"{folders[0]}: no age is known of any scan: participants.tsv or a JSON must say it")
    if len(members) > len(aged) and tried.count is None:
        terminal.warning(f"{len(members) - len(aged)} scans of unknown age are left out")
    readers = {name: reader for name, (reader, _) in open_readers(tried.readers, tried.device()).items()}
    editor = Editor(method, tried.device, tried.seed)
    work = _Trial(editor, sweep, readers, tried.cycles)
    with (
        terminal.progress("editing") as report,
        summarised(outputs.summary, (), aged, [], outputs.force, False) as batch,
    ):
        total = len(aged) * (1 + len(sweep))
        code = batch.work_through(aged, Stages(work.read, work.make, work.write), report=report, total=total)
    if not work.values:
        return code
    rows = averaged(tried.preset, [*work.values, *work.minimal()], tried.seed)
    outputs.scores(rows)
    from cftools.provenance import command_line
    from cftools.score.table import known

    outputs.facts(
        {
            "command": command_line(["cf-score", *sys.argv[1:]]),
            "preset": method.preset.resolved(),
            "readers": {name: reader.weights for name, reader in readers.items()},
            "cohort": {"seed": tried.seed, "n": len({one.subject for one in aged}), "left_out": work.left_out},
            "cycles": tried.cycles,
            "rows": [{name: known(value) for name, value in asdict(row).items()} for row in rows],
        }
    )
    if outputs.plots is not None:
        from cftools.charts import errors

        labels = {
            "effectiveness_age_mae": "error of the age read off the edit, years",
            "reversibility_1": "left after there and back, parts of the brightness",
            "minimality": "from its own scan over from others",
        }
        figures = {name.replace("_", "-"): errors(rows, name, label) for name, label in labels.items()}
        outputs.pictures({name: figure for name, figure in figures.items() if figure is not None})
    return code


@dataclass(eq=False)
class _Trial:
    """What is done with one scan after another, and what came out.

    Attributes:
        left_out: changes that lead to no age that the weights know, or out of 0 to 100.
        shown: scans and edits on the model's grid, for minimality, in half precision.
    """

    editor: Editor
    sweep: Sequence[Changes]
    readers: Mapping[str, ScalarReader]
    cycles: int
    values: list[Value] = field(default_factory=list)
    left_out: int = 0
    shown: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def read(self, member: Member) -> Ready:
        """The scan on the model's grid."""
        from cftools.condition import Condition
        from cftools.volume import Volume

        told = {name: member.told.get(name) for name in self.editor.plan.facts.variables}
        return self.editor.ready(Volume.load(member.path), Condition(told), [])

    def make(self, member: Member, ready: Ready) -> Iterator[list[Value]]:
        """The values of the unchanged scan, then those of each change."""
        from cftools.condition import Condition, check
        from cftools.score.axioms import UNCHANGED, soundness
        from cftools.score.counterfactual import mean_absolute_inside
        from cftools.score.looking import read as look

        prepared = ready.prepared
        told = check(ready.known, self.editor.plan.facts.variables)
        image = prepared.volume.array

        def edit(array: np.ndarray, source: Condition, target: Condition) -> np.ndarray:
            return self.editor.once_more(ready, array, source, target)

        def distance(one: np.ndarray, other: np.ndarray) -> float:
            return mean_absolute_inside(one, other, prepared.mask, image)

        def read(array: np.ndarray) -> Condition:
            seen = self.editor.preparer.again(prepared, array).image
            return Condition({name: look(reader, seen) for name, reader in self.readers.items()})

        self.shown[member.subject, ""] = prepared.image.astype("float16")
        targets = self._targets(told)
        found = soundness(
            member.subject, image, told, targets, edit, distance, read if self.readers else None, self.cycles
        )
        for setting, made, values in found:
            if setting != UNCHANGED and made is not None:
                self.shown[member.subject, setting] = self.editor.preparer.again(prepared, made).image.astype("float16")
            yield values

    def write(self, record: Record[Member], values: list[Value]) -> None:
        """Keep what came out."""
        self.values += values

    def minimal(self) -> Iterator[Value]:
        """Minimality of every edit, once all scans are known."""
        from cftools.score.axioms import minimality

        scans = {subject: image for (subject, setting), image in self.shown.items() if not setting}
        for (subject, setting), made in self.shown.items():
            if setting:
                others = [image.astype("float32") for name, image in scans.items() if name != subject]
                own = scans[subject].astype("float32")
                yield from minimality(subject, setting, made.astype("float32"), own, others)

    def _targets(self, told: Condition) -> dict[str, Condition]:
        """The conditions that the changes lead to, by name; those that nobody can have are left out."""
        from cftools.condition import apply, check, entity
        from cftools.score.adherence import AGES as POSSIBLE

        targets = {}
        for changes in self.sweep:
            target = apply(changes, told)
            age = target.get("age")
            try:
                possible = not isinstance(age, float) or POSSIBLE[0] <= age <= POSSIBLE[1]
                if possible:
                    targets[entity(changes)] = check(target, self.editor.plan.facts.variables)
            except ConditionError:
                possible = False
            self.left_out += not possible
        return targets
