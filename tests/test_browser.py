"""The page of attend.py in a headless Chromium: .ci/run brings one (or CHROME names it)."""

import json

import browser
import numpy as np
import pytest
from conftest import ROOT
from test_attend import shown
from test_page import told

from models import gpt2

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not browser.found(),
    reason="there is no Chromium: apt install chromium-headless-shell, or name one in CHROME",
  ),
]
SENTENCE = "The man took his hat and the woman took her coat."
HOSTILE = "</script><script>document.title='taken'</script> <img src=x onerror=alert(1)> \u202eשלום 😀 \x1b[31m &lt; {{x}}"


@pytest.fixture(scope="module")
def chrome():
  opened = browser.Browser()
  yield opened
  opened.close()


def made(folder, *argv):
  """The page of these arguments."""
  import attend

  assert attend.main([*argv, "--html", str(folder / "page.html"), "-q"]) == 0
  return folder / "page.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  return made(tmp_path_factory.mktemp("small"), "-p", SENTENCE)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """12 layers of 12 heads that attend here and there, on 40 tokens."""
  folder = tmp_path_factory.mktemp("large")
  model, draw = gpt2.GPT2(8192, 64, 96, 12, 12), np.random.default_rng(0)
  from tinygrad import Tensor, nn

  for name, t in nn.state.get_state_dict(model).items():
    if name.endswith(("q.weight", "k.weight")):
      t.replace(Tensor(draw.normal(0, 0.3, t.shape).astype(np.float32)))
  gpt2.save(model, folder / "model")
  for name in ("vocab.json", "merges.txt"):
    (folder / "model" / name).write_bytes((ROOT / "weights" / "tiny" / name).read_bytes())
  return made(
    folder, "-m", str(folder / "model"), "-p", "the man and the woman " * 20, "--last", "40"
  )


def fits(chrome):
  return chrome.run(
    "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"
  )


def test_a_page_of_40_tokens_and_144_heads_is_small_and_opens_in_under_a_second(chrome, large):
  assert (
    shown(told(large.read_text())).shape == (12, 12, 40, 40) and large.stat().st_size < 1_000_000
  )
  assert any(chrome.open(large) < 1 for _ in range(20)), (
    "the machine may be slow for a while, not for so long"
  )
  assert chrome.run("document.querySelectorAll('#grid button').length") == 144 and not chrome.told


def test_no_request_leaves_the_page(chrome, small):
  chrome.open(small)
  chrome.run("new Promise(done => setTimeout(done, 300))")
  assert [r for r in chrome.requests if not r.startswith("data:")] == [
    small.resolve().as_uri()
  ] and not chrome.told
  blocked = chrome.run("fetch('https://example.org/').then(() => 'sent', () => 'blocked')")
  assert blocked == "blocked"


def test_a_token_under_the_pointer_is_lit_by_what_it_attends_to(chrome, small):
  chrome.open(small)
  data = told(small.read_text())
  start, weights = data["start"], shown(data)
  row = weights[start["layer"], start["head"], 8].astype(int)
  chrome.hover("document.querySelectorAll('#texts .t')[8]")
  chrome.run(
    "new Promise(done => requestAnimationFrame(() => Promise.allSettled(document.getAnimations().map(a => a.finished)).then(() => done())))"
  )  # colours fade in
  numbers = chrome.run("[...document.querySelectorAll('#texts .t small')].map(e => +e.textContent)")
  np.testing.assert_allclose(numbers, np.where(row > 1, row / 2.55, 0), atol=0.51)
  inks = chrome.run(
    "[...document.querySelectorAll('#texts .t')].map(e => +(getComputedStyle(e).backgroundColor.match(/[\\d.]+/g)[3] ?? 1))"
  )
  assert np.argsort(inks)[-1] == row.argmax() and not any(inks[9:])
  label, most = (
    data["texts"]["text"]["labels"][8].strip(),
    data["texts"]["text"]["labels"][row.argmax()].strip(),
  )
  assert chrome.text("#say").startswith(
    f"Layer {start['layer']} head {start['head']}: “{label}” attends {round(row.max() / 2.55)}% to “{most}”"
  )
  assert chrome.run("document.querySelector('#texts .query').textContent").startswith(label)
  chrome("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
  assert "“.”" in chrome.text("#say")  # back to the last token, which was chosen


def test_the_large_map_tells_a_weight_under_the_pointer(chrome, small):
  chrome.open(small)
  data = told(small.read_text())
  weights, names = shown(data), data["texts"]["text"]["labels"]
  layer, head = data["start"]["layer"], data["start"]["head"]
  chrome.run("document.querySelector('#map').scrollIntoView({block: 'center'})")
  x, y = chrome.run(
    "(() => { const b = canvas.getBoundingClientRect(); return [b.x + shape.margin + 3.5 * shape.wide, b.y + shape.margin + 5.5 * shape.tall] })()"
  )
  chrome("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
  share = weights[layer, head, 5, 3] / 2.55
  assert (
    chrome.text("#say")
    == f"Layer {layer} head {head}: “{names[5].strip()}” attends {round(share)}% to “{names[3].strip()}”."
  )


def test_arrow_keys_move_between_layers_and_heads(chrome, small):
  chrome.open(small)
  data = told(small.read_text())
  layers, heads, _, _ = shown(data).shape
  chrome.click("document.getElementById('h-0-0')")
  for key, want in (
    ("ArrowDown", (1, 0)),
    ("ArrowRight", (1, 1)),
    ("ArrowUp", (0, 1)),
    ("ArrowUp", (0, 1)),
    ("ArrowLeft", (0, 0)),
    ("ArrowLeft", (0, 0)),
  ):
    chrome.press(key)
    assert (
      chrome.run("document.activeElement.id") == f"h-{want[0]}-{want[1]}"
      and chrome.run("document.querySelector('[aria-pressed=true]').id") == f"h-{want[0]}-{want[1]}"
    )
    assert chrome.text("#say").startswith(f"Layer {want[0]} head {want[1]}: ")
  for _ in range(heads + 2):
    chrome.press("ArrowRight")
  for _ in range(layers + 2):
    chrome.press("ArrowDown")
  assert chrome.run("document.activeElement.id") == f"h-{layers - 1}-{heads - 1}"


def test_tokens_too_are_reached_by_keys(chrome, small):
  chrome.open(small)
  chrome.click("document.querySelectorAll('#texts .t')[4]")
  chrome.press("ArrowLeft")
  names = told(small.read_text())["texts"]["text"]["labels"]
  assert f": “{names[3].strip()}” attends" in chrome.text(
    "#say"
  ) and f"After “{names[3].strip()}”" in chrome.text("#lens-say")


def test_a_screen_reader_is_told_in_words(chrome, small):
  chrome.open(small)
  chrome("Accessibility.enable")
  nodes = chrome("Accessibility.getFullAXTree")["nodes"]
  names = [
    (n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")
  ]
  layers, heads, _, _ = shown(told(small.read_text())).shape
  assert {(f"layer {i} head {h}") for i in range(layers) for h in range(heads)} <= {
    name for role, name in names if role in ("button", "ToggleButton", "toggle button")
  }
  assert all(
    name
    for role, name in names
    if role in ("button", "ToggleButton", "image", "radio", "group", "region")
  )
  assert {
    "Who attends to whom",
    "What each layer would predict",
    "What adds to the prediction",
    "Heads of a known kind",
  } <= {name for role, name in names if role == "heading"}
  assert chrome.run("document.getElementById('say').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("page", ["small", "large"])
def test_a_narrow_screen_needs_no_scrolling_sideways(chrome, request, page):
  chrome.open(request.getfixturevalue(page), width=390, height=844, touch=True)
  assert fits(chrome)
  smallest = chrome.run(
    "Math.min(...[...document.querySelectorAll('#grid button')].map(e => e.getBoundingClientRect().width))"
  )
  assert smallest >= 20
  chrome.run("document.getElementById('more').click()")
  assert fits(chrome)


def test_the_dark_has_light_letters_on_a_dark_ground(chrome, small):
  grounds = []
  for dark in (False, True):
    chrome.open(small, dark=dark)
    ground, letters = (
      chrome.run(
        f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
      )
      for name in ("backgroundColor", "color")
    )
    thumbnail = chrome.run(
      "[...document.querySelector('#grid canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
    )
    grounds.append((ground, letters, sum(thumbnail[:3])))
  (paper, ink, _), (night, light, _) = grounds
  assert paper > 700 and ink < 200 and night < 100 and light > 500 and grounds[0][2] < grounds[1][2]
  chrome(
    "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}]
  )  # while it is open
  dark = (
    "document.querySelector('#grid canvas').getContext('2d').getImageData(0, 0, 1, 1).data[0] < 60"
  )
  assert chrome.run(
    f"new Promise(done => {{ const look = () => {dark} ? done(true) : requestAnimationFrame(look); look() }})"
  )


def test_a_hostile_sentence_stays_a_sentence(chrome, tmp_path):
  page = made(tmp_path, "-p", HOSTILE)
  chrome.open(page, width=390, height=844)
  assert (
    chrome.run("document.title").startswith("Who attends to whom")
    and not chrome.told
    and fits(chrome)
  )
  assert chrome.run("document.querySelectorAll('img, script').length") == 2
  said = chrome.run("[...document.querySelectorAll('#texts .t')].map(e => e.firstChild.data)")
  data = told(page.read_text())
  assert said == [name.strip() or "␣" for name in data["texts"]["text"]["labels"]]
  assert [r for r in chrome.requests if not r.startswith("data:")] == [page.resolve().as_uri()]


def test_a_text_from_the_right_runs_from_the_right(chrome, tmp_path):
  chrome.open(made(tmp_path, "-p", "שלום עולם"))
  first, last = (
    chrome.run(f"document.querySelectorAll('#texts .t')[{n}].getBoundingClientRect().x")
    for n in ("0", "document.querySelectorAll('#texts .t').length - 1")
  )
  assert first > last


def test_what_adds_to_a_prediction_changes_with_the_prediction(chrome, small):
  chrome.open(small)
  first = chrome.text("#sum")
  chrome.click("document.querySelectorAll('#choices button')[1]")
  second = chrome.text("#sum")
  logits = told(small.read_text())["parts"]["logits"][-1]
  for said, logit in ((first, logits[0]), (second, logits[1])):
    assert f"is {logit:.3f}." in said
  total = float(second.split("add up to ")[1].split(";")[0])
  assert (
    abs(total - logits[1]) < 2e-3
    and chrome.run("document.querySelectorAll('#bars li').length") == 15
  )


def test_a_head_is_opened_from_the_parts_and_from_the_kinds(chrome, small):
  chrome.open(small)
  for where in ("#bars button", "#known button"):
    name = chrome.text(where)
    layer, head = [int(n) for n in name.replace("layer ", "").replace(" head ", ".").split(".")]
    chrome.click(f"document.querySelector('{where}')")
    assert chrome.text("#say").startswith(f"Layer {layer} head {head}: ")


def test_cross_attention_is_a_part_of_its_own(chrome, capsys, tmp_path):
  from test_attend import with_words

  page = made(
    tmp_path,
    "-m",
    str(with_words("bart-a", tmp_path / "model")),
    "-p",
    "who lives in rome?",
    "--target",
    "ann lee",
  )
  chrome.open(page, width=390, height=844)
  assert chrome.run("[...document.querySelectorAll('#texts h3')].map(e => e.textContent)") == [
    "target",
    "source",
  ] and fits(chrome)
  chrome.hover("document.querySelectorAll('#texts .text')[0].querySelectorAll('.t')[1]")
  numbers = chrome.run(
    "[...document.querySelectorAll('#texts .text')].map(line => [...line.querySelectorAll('small')].reduce((a, e) => a + +e.textContent, 0))"
  )
  assert numbers[0] == 0 and 95 <= numbers[1] <= 105
  chrome.click("document.querySelectorAll('#maps button')[0]")
  assert chrome.run("[...document.querySelectorAll('#texts h3')].map(e => e.textContent)") == [
    "source"
  ]


def test_a_patch_is_chosen_on_the_picture(chrome, tmp_path):
  Image = pytest.importorskip("PIL.Image")
  import shutil

  from conftest import FIXTURES

  from tinyformer.vision.image_processor import Preprocessor

  Preprocessor({"size": 12}).save(shutil.copytree(FIXTURES / "vit-a", tmp_path / "vit"))
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(
    tmp_path / "cat.png"
  )
  chrome.open(made(tmp_path, "-m", str(tmp_path / "vit"), "-p", str(tmp_path / "cat.png")))
  assert (
    ": the class token attends" in chrome.text("#say")
    and chrome.run("document.getElementById('photo').naturalWidth") == 12
  )
  x, y = chrome.run(
    "(() => { canvas.scrollIntoView({block: 'center'}); const b = canvas.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height * 5 / 6] })()"
  )
  for kind in ("mousePressed", "mouseReleased"):
    chrome("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
  assert "the patch in row 3, column 2 attends" in chrome.text("#say")
  assert json.dumps(chrome.told) == "[]"
