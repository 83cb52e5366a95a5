"""Where cf-score's tables, facts and plots go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli import terminal
from cftools.cli.jobs import check_files, check_folder, check_tables
from cftools.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cftools.score.table import Score

COLUMNS = ("set", "change", "metric", "score", "low", "high", "doing nothing", "people")
# The same columns where programs read them.
FIELDS = ("method", "setting", "metric", "ours", "low", "high", "nothing", "n")


@dataclass(frozen=True)
class Outputs:
    """What is written beside the table on stdout; None for what is not.

    Attributes:
        summary: a line for each image. plots: folder of pictures.
    """

    json: str | None = None
    tsv: str | None = None
    summary: Path | None = None
    plots: Path | None = None
    force: bool = False

    def check(self, inputs: Iterable[str | None]) -> None:
        """Refuse before any work what cannot be written, or would replace an input."""
        if self.tsv == "-":
            raise UsageError("--tsv -: the table on stdout is tab-separated as it is, when piped")
        if self.summary is not None:
            tables = [Path(one) for one in (self.json, self.tsv) if one and one != "-"]
            check_files({self.summary: (".tsv",)}, [], self.force, tables)
        check_tables([self.json, self.tsv], inputs, self.force)
        if self.plots is not None:
            check_folder(self.plots, self.force)

    def table(
        self,
        columns: Sequence[str],
        fields: Sequence[str],
        shown: Sequence[Sequence[str]],
        exact: Sequence[Sequence[str]],
    ) -> None:
        """The table for eyes, and with all digits for --tsv."""
        terminal.table(columns, shown)
        if self.tsv:
            from cftools.volume import write_atomic

            text = "".join("\t".join(line) + "\n" for line in (fields, *exact))
            write_atomic(Path(self.tsv), text.encode(errors="surrogateescape"), force=self.force)

    def scores(self, scores: Sequence[Score]) -> None:
        """The table of sets."""
        rows = [[_cells(one, digits) for one in scores] for digits in (4, 9)]
        self.table(COLUMNS, FIELDS, *rows)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """The JSON, where it is asked for."""
        if self.json:
            terminal.write_json(facts, self.json, self.force)

    def pictures(self, figures: Mapping[str, Figure]) -> None:
        """The plots, by name, where they are asked for."""
        if self.plots is None:
            return
        from cftools.picture import save_picture
        from cftools.volume import make_folder

        make_folder(self.plots)
        for name, figure in figures.items():
            path = self.plots / f"{name}.png"
            save_picture(figure, path, force=self.force)
            terminal.result(path)


def _cells(score: Score, digits: int) -> list[str]:
    """A score as text, n/a where there is no number."""
    import math

    numbers = (score.ours, score.low, score.high, score.nothing)
    texts = ["n/a" if math.isnan(number) else f"{number:.{digits}g}" for number in numbers]
    return [score.method, score.setting, score.metric, *texts, str(score.n)]
