"""The HTML report in a browser: headless Chromium moves the slider, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, aged, report
from test_view import ball

from cftools.report import failure_page, index_page, scan_page

pytest.importorskip("selenium", reason="selenium is not installed: pip install -e .[dev]")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# So high that nothing scrolls: what stays at the top would cover what is looked at.
DESKTOP, PHONE = (1280, 2400), (390, 1600)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium, with an empty profile."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def opened(request: pytest.FixtureRequest, chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page from file:// in a window of a desk or a phone; nothing may go wrong in it, or scroll sideways."""
    width, height = request.param

    def open_(html: str, name: str = "page.html") -> Any:
        path = tmp_path / name
        path.write_text(html, encoding="utf-8")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 640}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        chromium.get(path.as_uri())
        return chromium

    yield open_
    assert chromium.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert chromium.execute_script("return window.innerWidth") == width
    # Neither the network, nor anything that the page's own policy or an error in its script stopped.
    loaded = chromium.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert chromium.get_log("browser") == []


def seen(chromium: Any, column: str) -> list[bytes]:
    """What a column's three panels look like, as PNG."""
    panels = chromium.find_elements(By.CSS_SELECTOR, f".panel.{column} svg")
    assert len(panels) == 3
    return [panel.screenshot_as_png for panel in panels]


def said(chromium: Any) -> str:
    return str(chromium.find_element(By.ID, "shown").text)


def test_the_slider_shows_another_edit(opened: Open) -> None:
    volumes = {"brain": 1200.0}
    edits = [aged(ball(), age, volumes=volumes) for age in (80.0, 20.0, 60.0)]
    chromium = opened(scan_page(report(edits=edits, volumes=volumes)))
    assert said(chromium) == "age 80 (+30)"
    first = {column: seen(chromium, column) for column in ("before", "after", "difference")}
    slider = chromium.find_element(By.ID, "edit")
    slider.send_keys(Keys.ARROW_LEFT)
    assert (said(chromium), slider.get_attribute("aria-valuetext")) == ("age 60 (+10)",) * 2
    slider.send_keys(Keys.HOME)
    assert said(chromium) == "age 20 (−30)"
    assert seen(chromium, "before") == first["before"]
    for column in ("after", "difference"):
        pairs = zip(seen(chromium, column), first[column], strict=True)
        assert all(now != then for now, then in pairs), column
    current = chromium.find_elements(By.CSS_SELECTOR, "tr.current th")
    assert [row.text for row in current] == ["age 20 (−30)"]
    # And by the mouse or a finger, which set the value.
    chromium.execute_script("arguments[0].value = 2; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert seen(chromium, "after") == first["after"]


def test_holding_shows_the_scan_in_place_of_the_edit(opened: Open) -> None:
    chromium = opened(scan_page(report()))
    before, after = seen(chromium, "before"), seen(chromium, "after")
    button = chromium.find_element(By.ID, "compare")
    ActionChains(chromium).click_and_hold(button).perform()
    assert seen(chromium, "after") == before != after
    ActionChains(chromium).release().perform()
    assert seen(chromium, "after") == after
    ActionChains(chromium).key_down("b").perform()
    assert seen(chromium, "after") == before
    ActionChains(chromium).key_up("b").perform()
    assert seen(chromium, "after") == after


@pytest.mark.parametrize("outline", ["mask", "template"])
def test_outlines_come_and_go_in_every_column(opened: Open, outline: str) -> None:
    volume = ball()
    to_mni = volume.affine * 0
    to_mni[:3, :3], to_mni[3, 3] = 3 * volume.affine[:3, :3] / 2, 1
    to_mni[:3, 3] = (-30, 60, -90)  # the ball fills the template's brain
    chromium = opened(scan_page(report(mask=volume.array > 0, to_mni=to_mni)))
    columns = ("before", "after", "difference")
    bare = {column: seen(chromium, column) for column in columns}
    box = chromium.find_element(By.ID, outline)
    box.send_keys(Keys.SPACE)
    for column in columns:
        assert all(now != then for now, then in zip(seen(chromium, column), bare[column], strict=True)), column
    box.send_keys(Keys.SPACE)
    assert {column: seen(chromium, column) for column in columns} == bare


def test_a_click_enlarges_a_picture_and_another_one_brings_all_back(opened: Open) -> None:
    chromium = opened(scan_page(report()))
    panel = chromium.find_elements(By.CSS_SELECTOR, ".panel.difference")[0]
    small = panel.size["width"]
    panel.click()
    assert [each.is_displayed() for each in chromium.find_elements(By.CSS_SELECTOR, ".panel")].count(True) == 1
    assert panel.size["width"] > 2.5 * small
    chromium.find_element(By.ID, "edit").send_keys(Keys.HOME)
    assert said(chromium) == "age 20 (−30)"
    panel.click()
    assert all(each.is_displayed() for each in chromium.find_elements(By.CSS_SELECTOR, ".panel"))


def test_one_edit_needs_no_slider(opened: Open) -> None:
    chromium = opened(scan_page(report(edits=[aged(ball(), 80.0)])))
    assert not chromium.find_elements(By.ID, "edit")
    assert said(chromium) == "age 80 (+30)"


def test_what_comes_from_files_runs_nothing(opened: Open) -> None:
    edits = [aged(ball(), age, label=f"{HOSTILE}{age}") for age in (20.0, 80.0)]
    chromium = opened(scan_page(report(name=HOSTILE, edits=edits, warnings=[HOSTILE], command=HOSTILE)))
    assert chromium.find_element(By.TAG_NAME, "h1").text == HOSTILE.replace("  ", " ")
    chromium.find_element(By.ID, "edit").send_keys(Keys.HOME)
    assert said(chromium) == f"{HOSTILE}20.0"


def test_the_index_sorts_by_the_column_that_is_clicked(opened: Open, tmp_path: Path) -> None:
    for name, similarity in (("b", 0.7), ("a", 0.5), ("c", 0.9)):
        (tmp_path / f"{name}.html").write_text(scan_page(report(name=f"{name}.nii.gz", similarity=similarity)))
    (tmp_path / "d.html").write_text(failure_page("d.nii.gz", f"d.nii.gz: is damaged {'x' * 200}"))
    chromium = opened(index_page(tmp_path), "index.html")

    def names() -> str:
        return "".join(link.text for link in chromium.find_elements(By.CSS_SELECTOR, "td:nth-child(2) a"))

    assert names() == "dabc"
    scan, likeness = (chromium.find_elements(By.CSS_SELECTOR, "th button")[place] for place in (0, 2))
    scan.click()
    assert names() == "abcd"
    scan.click()
    assert names() == "dcba"
    likeness.click()
    likeness.click()
    assert names() == "cbad"
    chromium.find_elements(By.CSS_SELECTOR, "td:nth-child(2) a")[0].click()
    assert chromium.current_url.endswith("/c.html")
    assert said(chromium) == "age 80 (+30)"
    chromium.back()
