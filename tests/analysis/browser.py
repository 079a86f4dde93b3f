"""A headless Chromium, driven over its pipe: one start for many pages, no driver to install."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 120.0  # seconds for an answer; the first one waits for the start
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root may not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def find() -> str:
    """Return the path of the program. Raises AssertionError with the package to install."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"none of {', '.join(NAMES)} is there: apt-get install --no-install-recommends chromium"
    return found


class Tab:
    """A page of the browser, and the events it has sent so far."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._sent = write, read, b"", 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return the answer. Raises AssertionError with its error."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda m: m.get("id") == self._sent)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Show a file and wait until it is loaded; forgets earlier events."""
        self.events.clear()
        loader = self.call("Page.navigate", url=path.as_uri())["loaderId"]

        def loaded(message: dict[str, Any]) -> bool:
            params = message.get("params", {})
            return message.get("method") == "Page.lifecycleEvent" and (params["loaderId"], params["name"]) == (
                loader,
                "load",
            )

        if not any(map(loaded, self.events)):
            self._until(loaded)

    def run(self, script: str) -> Any:
        """Evaluate an expression of JavaScript (or its promise) despite the page's policy."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({where}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, text: str) -> None:
        """Press and release a key."""
        code = {"Enter": 13, " ": 32, "Tab": 9}[key]
        keys = {"key": key, "code": key.strip() or "Space", "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def show(self, width: int, *, scheme: str = "light", media: str = "") -> None:
        """Look at the page in a window of a width, in light or dark, on a screen or on paper."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def requests(self) -> list[str]:
        """Return the addresses requested since the page was opened, without embedded data."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return the browser's log, uncaught errors included."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e["method"] == "Log.entryAdded"]
        return logged + [str(e["params"]) for e in self.events if e["method"] == "Runtime.exceptionThrown"]

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while True:
            while b"\0" in self._rest:
                line, self._rest = self._rest.split(b"\0", 1)
                message: dict[str, Any] = json.loads(line)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "the browser is silent"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start a browser with one page; its profile and messages are in `folder`."""
    theirs, write = _pipe()
    read, ours = _pipe()
    # It reads from file 3 and writes to file 4.
    actions = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, ours, 4)]
    log = (os.POSIX_SPAWN_OPEN, 2, str(folder / "messages"), os.O_WRONLY | os.O_CREAT, 0o600)
    program = find()
    command = [program, *_FLAGS, f"--user-data-dir={folder / 'profile'}"]
    process = os.posix_spawn(program, command, os.environ, file_actions=[*actions, log], setpgroup=0)
    os.close(theirs)
    os.close(ours)
    try:
        yield Tab(write, read)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(write)
        os.close(read)


def _pipe() -> tuple[int, int]:
    """Open a pipe whose descriptors differ from those of the browser's ends."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
