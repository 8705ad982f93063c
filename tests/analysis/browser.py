"""A headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1200, 800


def find() -> str | None:
    """The browser's program, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of the browser. What went wrong in its scripts is in `errors`, what it asked for in
    `requests`."""

    def __init__(self, read: int, write: int) -> None:
        self._read = os.fdopen(read, "rb", buffering=0)
        self._write = os.fdopen(write, "wb", buffering=0)
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=WIDTH,
            height=HEIGHT,
            deviceScaleFactor=1,
            mobile=False,
        )

    def close(self) -> None:
        self._read.close()
        self._write.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method, and wait for its answer."""
        self._last += 1
        number = self._last
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, (method, found)
                answer: dict[str, Any] = found["result"]
                return answer
            self._note(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._read.read(1 << 20)
            assert more, "the browser has gone"
            self._rest += more
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        else:
            self._events.append(message)

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, and wait until it is drawn."""
        self.call("Page.navigate", url="about:blank")
        self._events.clear()
        self.requests.clear()
        self.call("Page.navigate", url=f"{path.as_uri()}{fragment}")
        while not any(each.get("method") == "Page.loadEventFired" for each in self._events):
            self._note(self._next())
        self.drawn()

    def drawn(self) -> None:
        """Wait for two frames: what was asked for before is drawn then."""
        self.value(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        )

    def value(self, expression: str) -> Any:
        """What an expression amounts to in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, key: str, shift: bool = False) -> None:
        """Press and let go of a key."""
        code = {"Escape": 27, "Enter": 13, "Backspace": 8}.get(key, 0)
        text: dict[str, Any] = (
            {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        )
        more = {"key": key, "modifiers": 8 * shift, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **more, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)
        self.drawn()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the mouse at a place of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)
        self.drawn()


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """A page of a new browser."""
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    # The browser has 3 and 4; so these must be others.
    inner, outer = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser))

    def place() -> None:
        os.dup2(inner, 3)
        os.dup2(outer, 4)

    process = subprocess.Popen(
        [
            program,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
            *("--disable-component-update", f"--user-data-dir={profile}"),
            "about:blank",
        ],
        pass_fds=(3, 4),
        preexec_fn=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (to_browser, from_browser, inner, outer):
        os.close(fd)
    page = Page(read, write)
    try:
        yield page
    finally:
        page.close()
        process.terminate()
        process.wait(timeout=20)
