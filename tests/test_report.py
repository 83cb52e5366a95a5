"""The HTML report without a browser: what stands in it, where pictures and outlines lie, and what it keeps out."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Path2D
from PIL import Image
from test_view import ball, turned

from cftools.cli.edit import main as edit
from cftools.cli.reports import Reports
from cftools.cli.view import main as view
from cftools.condition import Value
from cftools.errors import OutputError, UsageError, VolumeError
from cftools.panels import Panel, panels
from cftools.prepare import GRID_2MM
from cftools.prepare import resample as to_grid
from cftools.register import template
from cftools.report import ReportedEdit, ScanReport, failure_page, index_page, row_of, scan_page
from cftools.slices import scene_of, to_ras
from cftools.volume import Volume

HOSTILE = "\"'><script>alert(1)</script></script><img src=http://example.org/x onerror=alert(2)>&amp;{{7*7}}"


class Elements(HTMLParser):
    """Every element of a page with its attributes, the words between them, and the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        if tag == "small":
            self.rows[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def sidecar(before: Mapping[str, Value], after: Mapping[str, Value], **more: Any) -> dict[str, Any]:
    """What cf-edit writes beside an image, in short."""
    own = {
        "command": "cf-edit --age +30 scan.nii.gz",
        "condition": {"source": dict(before), "target": dict(after)},
        "details": {"guessed": {}, "registration": {"similarity": 0.71}},
        "preset": {"name": "twin", "method": "flow", "carry": "field", "sampling": {"steps": 2}},
        "seed": 0,
        "versions": {"cftools": "0.1.0", "SimpleITK": "2.5.7"},
        "weights": {"flow": {"name": "twin-age-2mm", "sha256": "38543399612345" + "0" * 50}},
    }
    return {"SkullStripped": True, "cftools": {**own, **more}}


def aged(volume: Volume, age: float, **more: Any) -> ReportedEdit:
    """The same scan, brighter the older it is."""
    brighter = volume.with_array(volume.array * (1 + age / 1000))
    return ReportedEdit(brighter, sidecar({"age": 50.0, "sex": "F"}, {"age": age, "sex": "F"}), **more)


def report(**more: Any) -> ScanReport:
    volume = ball()
    edits = [aged(volume, age) for age in (80.0, 20.0, 60.0)]
    return ScanReport(**{"name": "scan.nii.gz", "before": volume, "edits": edits, "similarity": 0.712, **more})


def picture_of(uri: str) -> np.ndarray:
    """(rows, columns, 4) of a data URI."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image.convert("RGBA")).astype(int)


def box(path: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of an SVG path."""
    points = np.array([point.split() for point in re.findall(r"[\d.-]+ [\d.-]+", path)], float)
    return (*points.min(axis=0), *points.max(axis=0))


def overlap(panel: Panel) -> float:
    """Dice overlap of what the outline of the mask encloses with what changed, in the picture beneath."""
    bright = picture_of(panel.change[0])[..., 3] > 0
    rows, columns = bright.shape
    y, x = (np.indices(bright.shape).reshape(2, -1).T + 0.5).T
    middles = np.stack([panel.x + x * panel.across / columns, panel.y + y * panel.up / rows], axis=1)
    enclosed = np.zeros(bright.size, bool)
    for line in panel.mask.split("M")[1:]:
        points = np.array([point.split() for point in line.split("L")], float)
        enclosed |= Path2D(points).contains_points(middles)
    return float(2 * (bright.ravel() & enclosed).sum() / (bright.sum() + enclosed.sum()))


def panels_of(volume: Volume, radiological: bool = False, to_mni: np.ndarray | None = None) -> list[Panel]:
    array, _ = to_ras(volume.array, volume.affine)
    edits = [array * 1.1, array * 0.9, array]
    scene = scene_of(volume, [array, *edits], radiological=radiological)
    return panels(scene, array, edits, array > 0, to_mni)


@pytest.mark.parametrize("radiological", [False, True])
@pytest.mark.parametrize("axes", ["RAS", "LPI", "ASR"])
def test_the_outline_of_a_mask_lies_on_the_picture(axes: str, radiological: bool) -> None:
    # Two octants are missing, so that no plane looks the same when mirrored.
    volume = ball()
    lacking = volume.array.copy()
    lacking[10:, 10:, 8:] = lacking[:8, 8:, 12:] = 0
    volume = turned(volume.with_array(lacking), axes)
    for panel in panels_of(volume, radiological):
        assert overlap(panel) == 1, panel.plane
    expected = panels_of(turned(volume, "RAS"), radiological)
    assert [panel.before for panel in panels_of(volume, radiological)] == [panel.before for panel in expected]


def test_radiological_pictures_are_mirrored_with_their_letters() -> None:
    plain, mirrored = (panels_of(ball(), radiological)[0] for radiological in (False, True))
    assert (plain.sides, mirrored.sides) == (("L", "R"), ("R", "L"))
    np.testing.assert_array_equal(picture_of(plain.before)[:, ::-1], picture_of(mirrored.before))


def test_template_edges_lie_on_the_template() -> None:
    whole = template()
    brain = to_grid((whole.array > 0).astype(np.float32), whole.affine, GRID_2MM) > 0.5
    volume = Volume.from_array(brain * 1.0, GRID_2MM.affine)
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 8)
    for panel, moved in zip(panels_of(volume, to_mni=np.eye(4)), panels_of(volume, to_mni=shift), strict=True):
        assert box(panel.template) == pytest.approx(box(panel.mask), abs=3)
        if panel.plane != "axial":  # 8 mm up in MNI152 is what lies 8 mm lower in the template
            assert box(moved.template)[1] == pytest.approx(box(panel.template)[1] + 8, abs=1)
    assert panels_of(volume, to_mni=shift)[0].place != panels_of(volume, to_mni=np.eye(4))[0].place


def test_a_change_is_orange_where_brighter_blue_where_darker_and_clear_where_none() -> None:
    brighter, darker, same = (picture_of(uri) for uri in panels_of(ball())[0].change)
    middle = tuple(np.array(brighter.shape[:2]) // 2)
    assert brighter[middle][0] > brighter[middle][2] and brighter[middle][3] > 100
    assert darker[middle][0] < darker[middle][2] and darker[middle][3] > 100
    assert not same[..., 3].any() and not brighter[0, 0, 3]


def test_the_table_has_each_volume_with_its_change() -> None:
    volume = ball()
    edits = [
        aged(volume, 80.0, volumes={"brain": 1080.0, "ventricles": 30.0}),
        aged(volume, 20.0, volumes={"brain": 1260.0, "ventricles": 15.04}),
    ]
    page = Elements(scan_page(report(edits=edits, volumes={"brain": 1200.0, "ventricles": 20.0})))
    assert page.rows == [
        ["ml", "brain", "ventricles"],
        ["before", "1200.0", "20.0"],
        ["age 20 (−30)", "1260.0 +5.0 %", "15.0 −24.8 %"],
        ["age 80 (+30)", "1080.0 −10.0 %", "30.0 +50.0 %"],
    ]


def test_edits_stand_in_the_order_of_their_age() -> None:
    page = scan_page(report())
    assert re.findall(r"<summary>(.*?)</summary>", page) == ["age 20 (−30)", "age 60 (+10)", "age 80 (+30)"]
    # 80 differs most from the scan, and is shown first.
    assert 'value="2"' in page and '<output id="shown" for="edit">age 80 (+30)</output>' in page


def test_edits_without_a_number_keep_their_order() -> None:
    volume = ball()
    edits = [ReportedEdit(volume, sidecar({"diagnosis": "CN"}, {"diagnosis": name})) for name in ("MCI", "AD")]
    edits.append(ReportedEdit(volume, label="by hand"))
    page = scan_page(report(edits=edits))
    assert re.findall(r"<summary>(.*?)</summary>", page) == ["diagnosis MCI", "diagnosis AD", "by hand"]


def test_methods_paragraph_and_provenance_are_what_the_sidecars_say() -> None:
    page = "".join(
        Elements(scan_page(report(warnings=["odd scan"], command="cf-edit --age 20,60,80 scan.nii.gz"))).words
    )
    for words in (
        "cftools 0.1.0 (preset twin; flow weights twin-age-2mm, sha256 385433996123, seed 0)",
        "SimpleITK 2.5.7; similarity 0.71",
        "diffeomorphism (steps: 2)",
        "taken to show age 50, sex F, and was edited to age 20 (−30), age 60 (+10), age 80 (+30)",
        "the cftools authors, cftools: the twin flow",
        "cf-edit --age 20,60,80 scan.nii.gz",
        "cf-edit --age +30 scan.nii.gz",
        "1 warning",
        "odd scan",
        "likeness to the template 0.71",
    ):
        assert words in " ".join(page.split()), words


def test_a_guessed_age_is_called_a_guess() -> None:
    details = {"guessed": {"age": 50.0}}
    edit = ReportedEdit(ball(), sidecar({"age": 50.0}, {"age": 80.0}, details=details))
    page = scan_page(report(edits=[edit]))
    assert "age 50 (age guessed from the image)" in page and "(age estimated from the image by a network)" in page


@pytest.mark.parametrize(
    "content", [{}, {"cftools": 3}, {"cftools": {"condition": [], "weights": {"a": 1}, "seed": "x"}}]
)
def test_a_sidecar_of_any_form_makes_a_page(content: dict[str, Any]) -> None:
    assert "<h2>For the methods section" not in scan_page(report(edits=[ReportedEdit(ball(), content)]))


def assert_self_contained(html: str) -> None:
    page = Elements(html)
    for _, attributes in page.found:
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")) or ":" not in target, target
        assert not [name for name in attributes if name.startswith("on")]
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == 1 and "url(" not in styles[0] and "@import" not in styles[0]
    assert "default-src 'none'; img-src data:" in str(page.of("meta")[1]["content"])


def test_pages_load_nothing(tmp_path: Path) -> None:
    page = scan_page(report(warnings=["http://example.org"]))
    assert_self_contained(page)
    (tmp_path / "scan.html").write_text(page)
    assert_self_contained(index_page(tmp_path))
    assert_self_contained(failure_page("scan.nii.gz", "damaged"))


def test_what_comes_from_files_stays_text(tmp_path: Path) -> None:
    hostile = {
        "command": HOSTILE,
        "condition": {"source": {"age": 50.0, HOSTILE: HOSTILE}, "target": {"age": 80.0, HOSTILE: "x"}},
        "weights": {HOSTILE: {"name": HOSTILE, "sha256": HOSTILE}},
        "preset": {"name": "twin", "method": "flow", "carry": HOSTILE, "sampling": {"steps": HOSTILE}},
        "versions": {"cftools": HOSTILE},
    }
    edits = [aged(ball(), 60.0, volumes={HOSTILE: 1.0}, label=HOSTILE), ReportedEdit(ball(), {"cftools": hostile})]
    plain = Elements(scan_page(report(edits=[aged(ball(), 60.0), aged(ball(), 70.0)], warnings=["x"], command="x")))
    html = scan_page(report(name=HOSTILE, edits=edits, warnings=[HOSTILE], command=HOSTILE, volumes={HOSTILE: 1.0}))
    page = Elements(html)
    assert_self_contained(html)
    assert len(page.of("script")) == len(plain.of("script")) == 2
    assert not page.of("img")
    assert HOSTILE in page.words and "49" not in "".join(page.words)
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text(failure_page(HOSTILE, HOSTILE, HOSTILE))
    index = index_page(tmp_path)
    assert_self_contained(index)
    assert len(Elements(index).of("img")) == 2 and len(Elements(index).of("script")) == 1
    found = row_of(tmp_path / "a.html")
    assert found is not None and found.name == HOSTILE and HOSTILE in found.edits


def test_the_same_scan_gives_the_same_bytes() -> None:
    assert scan_page(report()) == scan_page(report())


def test_five_edits_of_a_noisy_head_stay_below_three_megabytes() -> None:
    rng = np.random.default_rng(0)
    head = Volume.from_array(rng.normal(100, 20, (320, 300, 280)).astype(np.float32), np.diag([0.8, 0.8, 0.8, 1]))
    edits = [aged(head, age) for age in (20.0, 40.0, 60.0, 80.0, 100.0)]
    mask = np.zeros(head.array.shape, bool)
    mask[60:260, 50:250, 40:240] = True
    assert len(scan_page(report(before=head, edits=edits, mask=mask))) < 3_000_000


def test_an_edit_on_another_grid_is_refused() -> None:
    volume = ball()
    other = Volume.from_array(volume.array[:, :, :20], volume.affine)
    with pytest.raises(VolumeError, match="not on the grid"):
        scan_page(report(edits=[ReportedEdit(other)]))


def test_the_index_has_the_worst_first(tmp_path: Path) -> None:
    for name, similarity, warnings in (("good", 0.8, []), ("poor", 0.5, []), ("doubtful", 0.8, ["odd"])):
        page = scan_page(report(name=f"{name}.nii.gz", similarity=similarity, warnings=warnings))
        (tmp_path / f"{name}.html").write_text(page)
    (tmp_path / "broken.html").write_text(failure_page("broken.nii.gz", "broken.nii.gz: is damaged"))
    (tmp_path / "index.html").write_text("an index of old")
    (tmp_path / "other.html").write_text("<p>not ours</p>")
    index = Elements(index_page(tmp_path))
    assert [row[1] for row in index.rows[1:]] == ["brokenbroken.nii.gz: is damaged", "poor", "doubtful", "good"]
    assert [row[5] for row in index.rows[1:]] == ["failed", "done", "look", "done"]
    assert [row[3] for row in index.rows[2:]] == ["0.50", "0.80", "0.80"]
    links = {attributes["href"] for attributes in index.of("a")}
    assert links == {"broken.html", "poor.html", "doubtful.html", "good.html"}


def test_a_page_that_lies_about_its_pictures_gives_the_index_none(tmp_path: Path) -> None:
    page = scan_page(report())
    facts = json.loads(re.findall(r'id="row">(.*?)</script>', page)[0])
    forged = json.dumps({**facts, "before": "http://example.org/x.png", "similarity": "nan?"})
    (tmp_path / "a.html").write_text(f'<script type="application/json" id="row">{forged}</script>')
    assert row_of(tmp_path / "a.html") is None
    forged = json.dumps({**facts, "before": "http://example.org/x.png"})
    (tmp_path / "a.html").write_text(f'<script type="application/json" id="row">{forged}</script>')
    assert "example.org" not in index_page(tmp_path)


@pytest.fixture(scope="module")
def average(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template at 2 mm."""
    whole = template()
    path = tmp_path_factory.mktemp("average") / "sub-01_T1w.nii"
    Volume.from_array(1000 * to_grid(whole.array, whole.affine, GRID_2MM), GRID_2MM.affine).save(path)
    return path


@pytest.mark.slow
def test_cf_edit_writes_a_page_for_a_sweep(average: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    words = ["--age", "+40,+20,-10", "--from", "age=30", str(average), "-o", f"{tmp_path}/out", "--report", str(page)]
    assert edit(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    html = page.read_text()
    assert_self_contained(html)
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["age 20 (−10)", "age 50 (+20)", "age 70 (+40)"]
    assert "cf-edit --age +40,+20,-10 --from age=30" in html
    assert 'id="mask-axial"' in html and 'class="outline template"' in html
    assert len(html) < 1_000_000
    # The same page, as far as files tell, from the files.
    again = tmp_path / "again.html"
    images = sorted((tmp_path / "out").glob("*.nii"))
    assert view(["--html", str(again), str(average), *map(str, images)]) == 0
    parts = [re.sub(r"<pre.*?</pre>", "", text, count=1, flags=re.DOTALL) for text in (html, again.read_text())]
    assert parts[0] == parts[1]


@pytest.mark.slow
def test_a_folder_has_a_page_for_each_scan_also_for_one_that_failed(
    average: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "sub-02_T1w.nii"
    bad.write_text("no image")
    words = ["--age", "+20", "--from", "age=30", str(average), str(bad), "-o", f"{tmp_path}/out"]
    words += ["--report", f"{tmp_path}/pages"]
    assert edit(words) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/pages/index.html"
    index = Elements((tmp_path / "pages" / "index.html").read_text())
    assert [row[5] for row in index.rows[1:]] == ["failed", "done"]
    assert "sub-02_T1w.nii" in (tmp_path / "pages" / "sub-02_T1w.html").read_text()
    # Pages are kept as images are.
    assert edit([*words, "--skip-existing"]) == 3
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert edit(words) == 2
    assert "sub-01_T1w.html: exists already" in capsys.readouterr().err


def test_pages_go_nowhere_they_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="several scans have a page each"):
        Reports(tmp_path / "a.html", ["a.nii", "b.nii"], False, False)
    with pytest.raises(OutputError, match="does not exist"):
        Reports(tmp_path / "no" / "a.html", ["a.nii"], False, False)
    with pytest.raises(UsageError, match="two scans have one name"):
        Reports(tmp_path, ["a/scan.nii", "b/scan.nii"], False, False)
    with pytest.raises(OutputError, match="is no folder"):
        (tmp_path / "a.txt").write_text("a file")
        Reports(tmp_path / "a.txt", ["a.nii"], False, False)
    with monkeypatch.context() as readonly:
        readonly.setattr("os.access", lambda *_: False)
        with pytest.raises(OutputError, match="can be written to"):
            Reports(tmp_path / "new", ["a.nii"], False, False)
    (tmp_path / "index.html").write_text("somebody's home page")
    with pytest.raises(OutputError, match=r"index\.html: exists already"):
        Reports(tmp_path, ["a.nii"], False, False)
    (tmp_path / "index.html").unlink()
    (tmp_path / "a.html").write_text("somebody's page")
    for skip_existing in (False, True):
        with pytest.raises(OutputError, match=r"a\.html: exists already"):
            Reports(tmp_path, ["a.nii"], False, skip_existing)
    (tmp_path / "a.html").write_text(failure_page("a.nii", "damaged"))
    Reports(tmp_path, ["a.nii"], False, skip_existing=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--html", "a.htm", "scan.nii", "scan.nii"], "ends in .html"),
        (["--html", "a.html", "scan.nii"], "name one AFTER at least"),
        (["--html", "a.html", "scan.nii", "scan.nii", "-o", "a.png"], "leave them out"),
        (["--html", "a.html", "scan.nii", "scan.nii", "--plane", "axial"], "leave them out"),
        (["--html", "a.html", "scan.nii", "scan.nii", "--label", "one"], "1 labels for 2 images"),
    ],
)
def test_cf_view_refuses_what_makes_no_page(
    words: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ball().save("scan.nii")
    assert view(words) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_a_scan_that_cannot_be_prepared_has_a_page_without_outlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ball().save("scan.nii")
    assert view(["--html", "a.html", "scan.nii", "scan.nii", "--label", "now", "--label", "later"]) == 0
    html = Path("a.html").read_text()
    assert "Without outlines: scan.nii: 0.01 litres" in html and 'id="mask"' not in html
    assert "<h1>now</h1>" in html and "<summary>later</summary>" in html
