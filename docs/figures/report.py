"""Makes report.png: the top of the page of the MNI152 average, edited to other ages.

    python docs/figures/report.py

Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from cftools.cli.edit import main as edit
from cftools.register import template

WIDTH, HEIGHT = 1000, 1290


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "average_T1w.nii.gz"
        template().save(scan)
        page = Path(folder) / "page.html"
        edit(["--age", "-15,+15,+35,+55", "--from", "age=25", str(scan), "-o", f"{folder}/out", "--report", str(page)])
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get(page.as_uri())
        picture = chrome.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
        chrome.quit()
    Image.open(io.BytesIO(base64.b64decode(picture))).quantize(256).save(
        Path(__file__).parent / "report.png", optimize=True
    )


if __name__ == "__main__":
    main()
