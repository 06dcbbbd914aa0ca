"""The page, labels and terminal output of attend.py. test_browser.py tests the page's behavior."""

import html.parser
import json

import numpy as np
import pytest

from tinyformer.interpret import inspection, page
from tinyformer.interpret.labels import printable, right_to_left, token_labels
from tinyformer.interpret.page import most_focused_head, quantize_rows
from tinyformer.interpret.terminal import shade, terminal_label

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


class PageParser(html.parser.HTMLParser):
  """The tags of a page, with their attributes, and the contents of its script elements."""

  def __init__(self, text):
    super().__init__()
    self.tags = []
    self.scripts = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "script":
      self.scripts.append("")

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] == "script" and self.scripts:
      self.scripts[-1] += data


def read_data(text):
  """Return the data of a page."""
  parser = PageParser(text)
  scripts = [attributes for tag, attributes in parser.tags if tag == "script"]
  [index] = [i for i, attributes in enumerate(scripts) if attributes.get("id") == "data"]
  return json.loads(parser.scripts[index])


def test_the_data_of_a_page_survives_unchanged():
  data = {"texts": HOSTILE, "title": HOSTILE[0], "numbers": [0.1234, 7]}
  text = page.render_page(data)
  assert read_data(text) == data
  assert len(text.encode()) == len(text.encode("utf-8", "strict"))


def test_no_text_becomes_a_tag():
  plain = PageParser(page.render_page({"texts": ["a"]}))
  hostile = PageParser(page.render_page({"texts": HOSTILE}))
  assert hostile.tags == plain.tags
  assert len(hostile.scripts) == 2
  assert page.render_page({"texts": HOSTILE}).lower().count("</script") == 2


def test_a_page_refers_to_no_other_file_and_may_send_no_request():
  text = page.render_page({})
  tags = PageParser(text).tags
  assert not [a for _, a in tags if "src" in a or a.get("href", "data:").split(":")[0] != "data"]
  assert "url(" not in text
  assert "@import" not in text
  [policy] = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
  assert policy.startswith("default-src 'none'")
  assert "http" not in policy
  assert "lang" in tags[0][1]
  assert [a for _, a in tags if a.get("name") == "viewport"]
  assert [a for _, a in tags if a.get("aria-live") == "polite"]


@pytest.mark.parametrize("S", [1, 3, 40, 256])
def test_quantized_rows_sum_to_255_and_differ_by_less_than_a_step(S):
  weights = np.random.default_rng(S).dirichlet(np.full(S, 0.2), (2, 3, 7)).astype(np.float32)
  actual = quantize_rows(weights)
  assert actual.dtype == np.uint8
  assert (actual.astype(int).sum(-1) == 255).all()
  assert np.abs(actual / 255 - weights).max() < 1 / 255
  uniform = quantize_rows(np.full((1, S), 1 / S))
  assert uniform.astype(int).sum() == 255
  assert uniform.max() - uniform.min() <= 1


def test_a_quantized_row_of_zeros_stays_zero():
  assert not quantize_rows(np.zeros((2, 5))).any()
  actual = quantize_rows(np.array([[0.5, 0.0, 0.5]])).tolist()
  assert actual in ([[128, 0, 127]], [[127, 0, 128]])


def test_the_most_focused_head_has_the_largest_weights_after_the_first_token():
  weights = np.full((2, 3, 4, 4), 0.25)
  weights[0, 1] = np.eye(4)[[0, 0, 0, 0]]
  weights[1, 2] = np.eye(4)[[1, 1, 1, 2]]
  assert most_focused_head(weights) == (1, 2)
  assert most_focused_head(np.ones((2, 2, 1, 1))) == (0, 0)


class ByteTokenizer:
  """A tokenizer with one token per byte; ids above 300 are a space and a byte."""

  def __init__(self):
    self.specials = {"[SEP]": 300}

  def token(self, i):
    return b" " + bytes([i - 256]) if i > 300 else bytes([i])


def test_each_token_of_a_character_is_labeled_with_the_character_and_a_number():
  tokenizer = ByteTokenizer()
  emoji = ["😀 1/4", "😀 2/4", "😀 3/4", "😀 4/4"]
  assert token_labels(tokenizer, "aé😀".encode()) == ["a", "é 1/2", "é 2/2", *emoji]
  assert token_labels(tokenizer, [256 + 0xC3, 0xA9]) == [" é 1/2", " é 2/2"]
  incomplete = "😀".encode()[:-1] + b"a"
  assert token_labels(tokenizer, incomplete) == ["\ufffd", "\ufffd", "\ufffd", "a"]


def test_unprintable_characters_are_labeled_with_a_dot():
  actual = token_labels(ByteTokenizer(), b"\n\t\x1b\0\x7f")
  assert actual == ["⏎", "⇥", "·", "·", "·"]
  assert printable("a\u202eb\u2066\u200f\ud800\u2028") == "a·b····"


def test_special_tokens_are_labeled_with_their_names():
  actual = token_labels(ByteTokenizer(), [300, 0xC3, 0xA9, 300, 0xA9, 0xC3, 300])
  assert actual == ["[SEP]", "é 1/2", "é 2/2", "[SEP]", "\ufffd", "\ufffd", "[SEP]"]


def test_more_than_256_tokens_raise():
  inspection.check_length("text", 256, "")
  message = "the text has 1,257 tokens, but at most 256 can be displayed: use a shorter text"
  with pytest.raises(inspection.TooLongError, match=message):
    inspection.check_length("text", 1257, "use a shorter text")


def test_the_first_letter_determines_the_text_direction():
  assert right_to_left("«שלום» abc")
  assert right_to_left("١ مرحبا")
  assert not right_to_left("abc שלום")
  assert not right_to_left("12 !")


def test_a_terminal_displays_every_label_left_to_right():
  assert terminal_label(" aש b") == "·a··b"


def test_shades_are_relative_to_the_largest_weight_of_the_row():
  assert shade(np.array([0.5, 0.25, 0.25, 0.0])) == "█▒▒ "
  assert shade(np.array([0.01, 0.04])) == "░█"
  assert shade(np.zeros(2)) == "  "
