"""A headless Chromium, over the DevTools protocol and two pipes: no driver, no port, no package."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

KEY_MAP = (
  "chromium-headless-shell",
  "chromium",
  "chromium-browser",
  "google-chrome-stable",
  "google-chrome",
)


def found() -> str | None:
  """The Chromium that CHROME names, or that is installed."""
  return os.environ.get("CHROME") or next(
    (path for name in KEY_MAP if (path := shutil.which(name))), None
  )


class Browser:
  """One page. requests: the addresses it asked for, told: errors and what it wrote on the console."""

  def __init__(self):
    self.profile = tempfile.mkdtemp()
    to, self.write = os.pipe()
    self.read, back = os.pipe()

    def pipes() -> None:  # Chromium reads from 3 and answers on 4
      a, b = os.dup(to), os.dup(back)  # away from 3 and 4 themselves
      os.dup2(a, 3)
      os.dup2(b, 4)

    command = [
      found(),
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--disable-background-networking",
      "--hide-scrollbars",
      f"--user-data-dir={self.profile}",
      "--remote-debugging-pipe",
      "about:blank",
    ]
    self.process = subprocess.Popen(
      command,
      preexec_fn=pipes,
      close_fds=False,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to)
    os.close(back)
    self.rest, self.count, self.session = b"", itertools.count(1), None
    self.requests, self.told, self.events = [], [], []
    target = self("Target.createTarget", url="about:blank")["targetId"]
    self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self(f"{domain}.enable")

  def message(self, seconds: float) -> dict:
    end = time.monotonic() + seconds
    while b"\0" not in self.rest:
      ready = select.select([self.read], [], [], max(0, end - time.monotonic()))[0]
      data = os.read(self.read, 1 << 20) if ready else b""
      if not data:
        raise TimeoutError("Chromium does not answer")
      self.rest += data
    line, self.rest = self.rest.split(b"\0", 1)
    said = json.loads(line)
    method, params = said.get("method"), said.get("params", {})
    if method == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    if method == "Runtime.exceptionThrown":
      self.told.append(params["exceptionDetails"].get("exception", {}).get("description", "error"))
    if method == "Log.entryAdded":
      self.told.append(params["entry"]["text"])
    if method == "Runtime.consoleAPICalled":
      self.told.append(str(params["args"]))
    if method:
      self.events.append(method)
    return said

  def __call__(self, method: str, **params) -> dict:
    """A command of the protocol, and its result."""
    number = next(self.count)
    os.write(
      self.write,
      json.dumps(
        {"id": number, "method": method, "params": params}
        | ({"sessionId": self.session} if self.session else {})
      ).encode()
      + b"\0",
    )
    while True:
      said = self.message(60)
      if said.get("id") == number:
        if "error" in said:
          raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

  def open(
    self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
  ) -> float:
    """Loads a file -> seconds from then until two frames after its load are drawn."""
    self(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=2 if touch else 1,
      mobile=touch,
    )
    self("Emulation.setTouchEmulationEnabled", enabled=touch)
    self(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
    )
    self.requests.clear()
    self.told.clear()
    self.events.clear()
    begun = time.monotonic()
    self("Page.navigate", url=path.resolve().as_uri())
    while "Page.loadEventFired" not in self.events:
      self.message(60)
    self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.monotonic() - begun

  def run(self, script: str):
    """The value of a script's expression, awaited."""
    result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in result:
      raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
    return result["result"].get("value")

  def text(self, selector: str) -> str:
    return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

  def middle(self, script: str) -> tuple[float, float]:
    """Where the element that a script gives lies, once it is in view."""
    return tuple(
      self.run(
        f"(() => {{ const e = {script}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect(); return [b.x + b.width/2, b.y + b.height/2] }})()"
      )
    )

  def hover(self, script: str) -> None:
    x, y = self.middle(script)
    self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

  def click(self, script: str) -> None:
    x, y = self.middle(script)
    for kind in ("mousePressed", "mouseReleased"):
      self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

  def press(self, key: str) -> None:
    codes = {
      "ArrowLeft": 37,
      "ArrowUp": 38,
      "ArrowRight": 39,
      "ArrowDown": 40,
      "Tab": 9,
      "Enter": 13,
    }
    for kind in ("rawKeyDown", "keyUp"):
      self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

  def picture(self, path: Path, whole: bool = True) -> None:
    path.write_bytes(
      base64.b64decode(
        self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
      )
    )

  def close(self) -> None:
    with contextlib.suppress(Exception):
      self("Browser.close")
    os.close(self.write)
    os.close(self.read)
    try:
      self.process.wait(20)
    except subprocess.TimeoutExpired:
      self.process.kill()
    shutil.rmtree(self.profile, ignore_errors=True)


if (
  __name__ == "__main__"
):  # python tests/browser.py PAGE PNG: how the README's picture of the page was made, as far as what adds to a prediction
  import sys

  from PIL import Image

  chrome, (page, png) = Browser(), sys.argv[1:]
  chrome.open(Path(page), width=1080)
  chrome.open(
    Path(page),
    width=1080,
    height=int(chrome.run("document.getElementById('parts').getBoundingClientRect().bottom")) + 30,
  )
  chrome.picture(Path(png), whole=False)
  chrome.close()
  Image.open(png).convert("RGB").quantize(200).save(png, optimize=True)
