"""Where Chromium is, for tests marked `browser`; the fixture `browser` starts it."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
