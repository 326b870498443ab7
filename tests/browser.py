"""A page in headless Chromium: what it looks like, and what its own DOM says."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
_NO_NETWORK = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--enable-logging=stderr"),
    *_NO_NETWORK,
)
LIGHT, DARK = 1, 0


@dataclass(frozen=True)
class Browser:
    """A Chromium, with a profile of its own."""

    program: str
    folder: Path

    def screenshot(self, page: Path, width: int, height: int, scheme: int = LIGHT) -> NDArray[np.uint8]:
        """The top of a page as RGB; fails where the page says anything on the console."""
        out = self.folder / "screenshot.png"
        said = self._run(page, f"--screenshot={out}", f"--window-size={width},{height}", scheme)[1]
        assert "CONSOLE" not in said, said
        with Image.open(out) as image:
            return np.asarray(image.convert("RGB"))

    def evaluate(self, page: Path, script: str, width: int = 1280) -> Any:
        """The JSON value of a script in a copy of the page, which is allowed to run it."""
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
        probe = f"<script>document.title=JSON.stringify((()=>{{{script}}})())</script></body>"
        copy = self.folder / "probe.html"
        copy.write_text(text.replace("</body>", probe), encoding="utf-8")
        out = self._run(copy, "--dump-dom", f"--window-size={width},1000", LIGHT)[0]
        found = re.search(r"<title>(.*?)</title>", out, re.DOTALL)
        assert found, out[:500]
        return json.loads(html.unescape(found[1]))

    def _run(self, page: Path, what: str, size: str, scheme: int) -> tuple[str, str]:
        own = (f"--user-data-dir={self.folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}")
        command = [self.program, *QUIET, *own, what, size, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout, done.stderr


def find_browser(folder: Path) -> Browser:
    """Skips where there is none; EDGEKIT_REQUIRE_DEVICES says that there must be."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        reason = f"no {NAMES[0]} here: apt-get install chromium"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Browser(program, folder)
