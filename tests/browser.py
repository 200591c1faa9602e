"""A headless Chromium for tests of pages, driven by its DevTools protocol over a websocket on this machine.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It shall ask nobody anything: what a test sees on the network then comes from the page.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--no-default-browser-check", "--remote-debugging-address=127.0.0.1", "--remote-debugging-port=0"),
)
START_SECONDS, ANSWER_SECONDS = 60.0, 60.0


def find_chromium() -> str | None:
    """Path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Seen:
    """What happened while a page was open."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One running Chromium with one page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop = socket, loop
        self._number, self._session = 0, ""
        self._waiting: list[dict[str, Any]] = []
        self.seen = Seen()

    def attach(self) -> None:
        """Make a page, and listen to everything that it reports."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, arguments), ANSWER_SECONDS))

    async def _call(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        own = self._number
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": own, "method": method, "params": arguments, **session})
        while (answer := await self._next()).get("id") != own:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._socket.receive_str())
        return message

    def _note(self, event: dict[str, Any]) -> None:
        """Remember errors and requests; what else happens is kept for whoever waits for it."""
        name, what = event.get("method", ""), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.seen.errors.append(str(what["exceptionDetails"].get("text")))
        elif name == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.seen.errors.append(str([each.get("value") for each in what["args"]]))
        elif name == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.seen.errors.append(what["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.seen.requests.append(what["request"]["url"])
        self._waiting.append(event)

    def open(self, page: Path, width: int = 1280, height: int = 900) -> Seen:
        """Load a file in a window of this size in CSS pixels, and return what happened until all of it was there."""
        self.seen, self._waiting = Seen(), []
        self.resize(width, height)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._loop.run_until_complete(asyncio.wait_for(self._until("Page.loadEventFired"), ANSWER_SECONDS))
        self.evaluate("document.fonts.ready.then(() => 1)")
        return self.seen

    async def _until(self, name: str) -> None:
        while not any(event.get("method") == name for event in self._waiting):
            self._note(await self._next())

    def resize(self, width: int, height: int = 900) -> None:
        """Another size of the window; below 600 pixels it is that of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(content["data"]))

    def print_pdf(self) -> bytes:
        """The page as it is printed."""
        content = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(content["data"])


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A Chromium with its profile in ``folder``; it ends with the block. Skips the test where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path; on Debian apt-get install chromium")
    # HOME: nothing is read or left outside the folder.
    environment = {**os.environ, "HOME": str(folder)}
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    loop = asyncio.new_event_loop()
    try:
        session, socket = loop.run_until_complete(_connect(_address(folder, process)))
        try:
            browser = Browser(socket, loop)
            browser.attach()
            yield browser
        finally:
            loop.run_until_complete(session.close())
    finally:
        loop.close()
        process.terminate()
        process.wait(30)


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it listens, which it writes into its profile once it does."""
    file, end = folder / "profile" / "DevToolsActivePort", time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        lines = file.read_text().splitlines() if file.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start: {(folder / 'chromium.log').read_text('utf-8', 'replace')[-2000:]}")


async def _connect(address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    return session, await session.ws_connect(address, max_msg_size=0)
