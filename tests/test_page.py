"""What attend.py makes of a scene: labels, 8-bit weights, a page. How the page behaves is in test_browser.py."""

import html.parser
import json

import numpy as np
import pytest

from tinyformer.interpret import inspection, page
from tinyformer.interpret.labels import labels, leftward, safe
from tinyformer.interpret.page import quantised, sharpest
from tinyformer.interpret.terminal import plain, shaded

HOSTILE = [
  "</script><script>alert(1)</script>",
  "<!--<script>",
  "שלום",
  "\u202eevil",
  "😀 1/2",
  "\u2028",
  "\\u003c",
  '"',
  "&lt;",
  "a\0b",
  "]]>",
  "<img src=http://x.org/y onerror=alert(1)>",
]


class Scripts(html.parser.HTMLParser):
  """A page's tags, and what stands in its scripts."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts = [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "script":
      self.scripts.append("")

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] == "script" and self.scripts:
      self.scripts[-1] += data


def told(text):
  """The data of a page."""
  seen = Scripts(text)
  [where] = [
    n
    for n, (_, a) in enumerate((t, a) for t, a in seen.tags if t == "script")
    if a.get("id") == "data"
  ]
  return json.loads(seen.scripts[where])


def test_whatever_a_page_is_told_stays_what_it_was():
  data = {"texts": HOSTILE, "title": HOSTILE[0], "numbers": [0.1234, 7]}
  text = page.page(data)
  assert told(text) == data and len(text.encode()) == len(text.encode("utf-8", "strict"))


def test_no_text_becomes_a_tag():
  plain, hostile = (Scripts(page.page({"texts": texts})) for texts in (["a"], HOSTILE))
  assert hostile.tags == plain.tags and len(hostile.scripts) == 2
  assert page.page({"texts": HOSTILE}).lower().count("</script") == 2


def test_a_page_needs_nothing_else_and_may_ask_for_nothing():
  text = page.page({})
  tags = Scripts(text).tags
  assert (
    not [a for _, a in tags if "src" in a or a.get("href", "data:").split(":")[0] != "data"]
    and "url(" not in text
    and "@import" not in text
  )
  [policy] = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
  assert policy.startswith("default-src 'none'") and "http" not in policy
  assert (
    "lang" in tags[0][1]
    and [a for _, a in tags if a.get("name") == "viewport"]
    and [a for _, a in tags if a.get("aria-live") == "polite"]
  )


@pytest.mark.parametrize("S", [1, 3, 40, 256])
def test_rows_in_8_bits_still_sum_to_1(S):
  weights = np.random.default_rng(S).dirichlet(np.full(S, 0.2), (2, 3, 7)).astype(np.float32)
  got = quantised(weights)
  assert (
    got.dtype == np.uint8
    and (got.astype(int).sum(-1) == 255).all()
    and np.abs(got / 255 - weights).max() < 1 / 255
  )
  even = quantised(np.full((1, S), 1 / S))
  assert even.astype(int).sum() == 255 and even.max() - even.min() <= 1


def test_a_row_that_sees_nothing_stays_empty():
  assert not quantised(np.zeros((2, 5))).any() and quantised(
    np.array([[0.5, 0.0, 0.5]])
  ).tolist() in ([[128, 0, 127]], [[127, 0, 128]])


def test_it_begins_with_the_head_that_looks_most_at_one_token():
  maps = np.full((2, 3, 4, 4), 0.25)
  maps[0, 1], maps[1, 2] = np.eye(4)[[0, 0, 0, 0]], np.eye(4)[[1, 1, 1, 2]]
  assert sharpest(maps) == (1, 2)
  assert sharpest(np.ones((2, 2, 1, 1))) == (0, 0)


class Bytes:
  """A token for each byte but the blank, which belongs to what follows it."""

  specials = {"[SEP]": 300}

  def token(self, i):
    return b" " + bytes([i - 256]) if i > 300 else bytes([i])


def test_a_character_of_several_tokens_is_shown_whole_by_each():
  assert labels(Bytes(), "aé😀".encode()) == [
    "a",
    "é 1/2",
    "é 2/2",
    "😀 1/4",
    "😀 2/4",
    "😀 3/4",
    "😀 4/4",
  ]
  assert labels(Bytes(), [256 + 0xC3, 0xA9]) == [" é 1/2", " é 2/2"]
  assert labels(Bytes(), "😀".encode()[:-1] + b"a") == [
    "\ufffd",
    "\ufffd",
    "\ufffd",
    "a",
  ]  # the rest of it is missing


def test_what_cannot_be_shown_is_a_dot():
  got = labels(Bytes(), b"\n\t\x1b\0\x7f")
  assert got == ["⏎", "⇥", "·", "·", "·"]
  assert safe("a\u202eb\u2066\u200f\ud800\u2028") == "a·b····"


def test_specials_have_their_names():
  assert labels(Bytes(), [300, 0xC3, 0xA9, 300, 0xA9, 0xC3, 300]) == [
    "[SEP]",
    "é 1/2",
    "é 2/2",
    "[SEP]",
    "\ufffd",
    "\ufffd",
    "[SEP]",
  ]


def test_more_than_256_tokens_are_too_many():
  inspection.short("text", 256, "")
  with pytest.raises(
    inspection.TooLong, match="the text has 1,257 tokens, 256 can be shown: shorten it"
  ):
    inspection.short("text", 1257, "shorten it")


def test_which_way_a_text_runs():
  assert (
    leftward("«שלום» abc")
    and leftward("١ مرحبا")
    and not leftward("abc שלום")
    and not leftward("12 !")
  )


def test_a_terminal_shows_every_label_from_the_left():
  assert plain(" aש b") == "·a··b"


def test_shades_are_of_the_rows_largest():
  assert (
    shaded(np.array([0.5, 0.25, 0.25, 0.0])) == "█▒▒ "
    and shaded(np.array([0.01, 0.04])) == "░█"
    and shaded(np.zeros(2)) == "  "
  )
