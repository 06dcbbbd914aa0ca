"""A headless Chromium, driven over the DevTools protocol and two pipes.

It needs no driver, no port and no package.
"""

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

EXECUTABLES = (
  "chromium-headless-shell",
  "chromium",
  "chromium-browser",
  "google-chrome-stable",
  "google-chrome",
)
KEY_CODES = {
  "ArrowLeft": 37,
  "ArrowUp": 38,
  "ArrowRight": 39,
  "ArrowDown": 40,
  "Tab": 9,
  "Enter": 13,
}


def found() -> str | None:
  """Return the Chromium that CHROME names, or else an installed one, or None."""
  if os.environ.get("CHROME"):
    return os.environ["CHROME"]
  paths = (shutil.which(name) for name in EXECUTABLES)
  return next((path for path in paths if path), None)


class Browser:
  """A browser with one page.

  requests: the URLs that the page requested.  messages: errors and console output of the page.
  """

  def __init__(self):
    self.profile = tempfile.mkdtemp()
    chromium_input, self.write = os.pipe()
    self.read, chromium_output = os.pipe()

    def connect_pipes() -> None:  # Chromium reads from descriptor 3 and writes to 4
      # The copies are necessary because a pipe may itself be 3 or 4.
      input_copy = os.dup(chromium_input)
      output_copy = os.dup(chromium_output)
      os.dup2(input_copy, 3)
      os.dup2(output_copy, 4)

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
      preexec_fn=connect_pipes,
      close_fds=False,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(chromium_input)
    os.close(chromium_output)
    self.buffer = b""
    self.ids = itertools.count(1)
    self.session = None
    self.requests = []
    self.messages = []
    self.events = []
    target = self("Target.createTarget", url="about:blank")["targetId"]
    self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self(f"{domain}.enable")

  def receive(self, seconds: float) -> dict:
    """Return the next message of Chromium, and record what it reports about the page."""
    end = time.monotonic() + seconds
    while b"\0" not in self.buffer:
      ready = select.select([self.read], [], [], max(0, end - time.monotonic()))[0]
      data = os.read(self.read, 1 << 20) if ready else b""
      if not data:
        raise TimeoutError(f"Chromium did not answer within {seconds} seconds")
      self.buffer += data
    line, self.buffer = self.buffer.split(b"\0", 1)
    message = json.loads(line)
    method = message.get("method")
    params = message.get("params", {})
    if method == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    if method == "Runtime.exceptionThrown":
      exception = params["exceptionDetails"].get("exception", {})
      self.messages.append(exception.get("description", "error"))
    if method == "Log.entryAdded":
      self.messages.append(params["entry"]["text"])
    if method == "Runtime.consoleAPICalled":
      self.messages.append(str(params["args"]))
    if method:
      self.events.append(method)
    return message

  def __call__(self, method: str, **params) -> dict:
    """Send a command of the protocol and return its result."""
    command = {"id": next(self.ids), "method": method, "params": params}
    if self.session:
      command["sessionId"] = self.session
    os.write(self.write, json.dumps(command).encode() + b"\0")
    while True:
      answer = self.receive(60)
      if answer.get("id") == command["id"]:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

  def open(
    self,
    path: Path,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    touch: bool = False,
    pixel_ratio: int = 1,
  ) -> float:
    """Load a file and return the seconds until two frames after its load event.

    width, height: of the window, in CSS pixels.  pixel_ratio: device pixels per CSS pixel.
    """
    self(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=2 if touch else pixel_ratio,
      mobile=touch,
    )
    self("Emulation.setTouchEmulationEnabled", enabled=touch)
    self.set_color_scheme("dark" if dark else "light")
    self.requests.clear()
    self.messages.clear()
    self.events.clear()
    start = time.monotonic()
    self("Page.navigate", url=path.resolve().as_uri())
    while "Page.loadEventFired" not in self.events:
      self.receive(60)
    self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.monotonic() - start

  def set_color_scheme(self, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    self("Emulation.setEmulatedMedia", features=features)

  def run(self, script: str):
    """Return the value of a JavaScript expression; a promise is awaited."""
    result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in result:
      raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
    return result["result"].get("value")

  def text(self, selector: str) -> str:
    """Return the text of the element with this selector."""
    return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

  def center(self, script: str) -> tuple[float, float]:
    """Scroll to the element that an expression returns, and return the position of its center."""
    x, y = self.run(f"""(() => {{
      const element = {script}
      element.scrollIntoView({{block: "center", behavior: "instant"}})
      const box = element.getBoundingClientRect()
      return [box.x + box.width / 2, box.y + box.height / 2]
    }})()""")
    return x, y

  def hover(self, script: str) -> None:
    self.hover_at(*self.center(script))

  def hover_at(self, x: float, y: float) -> None:
    self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

  def click(self, script: str) -> None:
    self.click_at(*self.center(script))

  def click_at(self, x: float, y: float) -> None:
    for event in ("mousePressed", "mouseReleased"):
      self("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)

  def press(self, key: str) -> None:
    code = KEY_CODES[key]
    for event in ("rawKeyDown", "keyUp"):
      self("Input.dispatchKeyEvent", type=event, key=key, code=key, windowsVirtualKeyCode=code)

  def screenshot(self, path: Path, height: int) -> None:
    """Write a PNG of the top of the page. height: in CSS pixels."""
    width = self.run("innerWidth")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    result = self("Page.captureScreenshot", format="png", clip=clip)
    path.write_bytes(base64.b64decode(result["data"]))

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
