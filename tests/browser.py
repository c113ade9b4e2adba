"""A headless Chromium driven over the DevTools protocol through a pipe: nothing to install, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--remote-debugging-pipe", "--hide-scrollbars"),
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def binary() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page; `events` are what the browser told meanwhile."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []

    def open(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next(20)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self.events.append(told)

    def _next(self, within_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reading], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._reading, 1 << 20)
        first, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(first))

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str, within_s: float = 15) -> Any:
        deadline = time.monotonic() + within_s
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"never: {expression}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def theme(self, name: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def enter(self) -> None:
        """The Enter key, with the character that a focused element takes."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requested(self) -> list[str]:
        """Every address that was asked for, over the network or not."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def violations(self) -> list[str]:
        """What axe finds against WCAG 2.1 AA and good practice: rule, what it asks for, the first element."""
        import axe_core_python.base

        self.run(f"{axe_core_python.base.AXE_SCRIPT}; null")
        found = self.run("axe.run(document, {resultTypes: ['violations']}).then((told) => told.violations)")
        return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]

    def complaints(self) -> list[str]:
        found = [event for event in self.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
        return [json.dumps(event["params"]) for event in found]


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, killed afterwards."""
    chromium = binary()
    assert chromium is not None
    to_read, to_write = os.pipe(), os.pipe()  # the browser reads the first and writes the second
    redirected = f'exec "$@" 3<&{to_read[0]} 4>&{to_write[1]}'
    command = ["bash", "-c", redirected, "browser", chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(to_read[0], to_write[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_read[0])
    os.close(to_write[1])
    try:
        browser = Browser(to_write[0], to_read[1])
        browser.open()
        yield browser
    finally:
        process.kill()
        process.wait()
        os.close(to_write[0])
        os.close(to_read[1])
