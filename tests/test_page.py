"""The page, labels and terminal output of attend.py. test_browser.py tests the page's behavior."""

import html.parser
import itertools
import json
import re

import numpy as np
import pytest
from conftest import ROOT

from tinyformer.interpret import inspection, page
from tinyformer.interpret.labels import printable, right_to_left, token_labels
from tinyformer.interpret.page import most_focused_head, quantize_rows
from tinyformer.interpret.scale import LINEAR, SCALES, SQRT
from tinyformer.interpret.terminal import SHADES, legend, shades, terminal_label

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


def read_data(text, element="data"):
  """Return the data of a page, which is in a script element."""
  parser = PageParser(text)
  scripts = [attributes for tag, attributes in parser.tags if tag == "script"]
  [index] = [i for i, attributes in enumerate(scripts) if attributes.get("id") == element]
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
  assert len(hostile.scripts) == 3
  assert page.render_page({"texts": HOSTILE}).lower().count("</script") == 3


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


@pytest.mark.parametrize("scale, power", [(LINEAR, 1), (SQRT, 2)])
def test_a_shade_is_proportional_to_the_weight_or_to_its_square_root(scale, power):
  weights = np.linspace(0, 1, 11)
  np.testing.assert_allclose(scale.shade(weights) ** power, weights)
  np.testing.assert_allclose(scale.shade(weights / 5, largest=0.2) ** power, weights)
  np.testing.assert_allclose([scale.weight(s) for s in scale.shade(weights)], weights)
  assert not scale.shade(np.zeros(2), largest=0).any()


def test_a_character_of_the_terminal_stands_for_a_quarter_of_the_shades():
  assert shades(np.array([0, 0.01, 0.25, 0.26, 0.5, 0.51, 0.75, 0.76, 1])) == " ░░▒▒▓▓██"
  largest_float = np.float32(1) + np.finfo(np.float32).eps  # a rounded sum of weights
  assert shades(np.array([largest_float])) == "█"


@pytest.mark.parametrize("scale", SCALES.values())
def test_the_legend_names_the_scale_and_the_largest_weight_of_each_character(scale):
  line = legend(scale)
  assert line.startswith(f"attention weight, {scale.title}: ")
  ranges = re.findall(r"(\S) ≤(\S+)", line)
  assert [character for character, _ in ranges] == list(SHADES[1:])
  for (character, largest), next_character in itertools.zip_longest(ranges, SHADES[2:]):
    weight = float(largest)
    assert shades(scale.shade(np.array([0.95 * weight]))) == character
    if next_character:
      assert shades(scale.shade(np.array([1.05 * weight]))) == next_character
  assert "largest weight of a patch" in legend(scale, is_image=True)


def test_the_page_has_the_scales_of_the_other_views():
  scales = read_data(page.render_page({}), "shading")["scales"]
  assert [scale["name"] for scale in scales] == ["linear", "sqrt"]
  for scale in scales:
    expected = SCALES[scale["name"]]
    assert scale["exponent"] == expected.exponent
    assert scale["ticks"] == list(expected.ticks)
    assert scale["label"] == f"attention weight, {expected.title}"


def css_variables(mode):
  """Return the variables of page.css in light or dark mode."""
  css = (ROOT / "tinyformer/interpret/page.css").read_text()
  light, dark = re.findall(r":root \{(.*?)\}", css, re.S)
  variables = dict(re.findall(r"--([\w-]+): ([^;]+);", light))
  return variables | (dict(re.findall(r"--([\w-]+): ([^;]+);", dark)) if mode == "dark" else {})


def rgb(color):
  """Return the red, green and blue of "#fffefb" or "28, 74, 128", from 0 to 1."""
  if color.startswith("#"):
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return np.array([int(part) / 255 for part in color.split(",")])


def contrast(first, second):
  """Return the contrast ratio of two colors. Source: WCAG 2.2, "contrast ratio"."""

  def luminance(color):
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  lighter, darker = sorted([luminance(first), luminance(second)], reverse=True)
  return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_marks_contrast_with_their_background(mode):
  """At least 4.5 for text and 3 for marks. Source: WCAG 2.2, 1.4.3 and 1.4.11."""
  variables = css_variables(mode)
  background = rgb(variables["background"])
  assert contrast(background, rgb(variables["text"])) >= 4.5
  assert contrast(background, rgb(variables["muted"])) >= 4.5
  for name in ("positive", "negative", "highlight"):
    assert contrast(background, rgb(variables[name])) >= 3
  opacity = float(variables["text-background-opacity"])
  strongest = opacity * rgb(variables["positive"]) + (1 - opacity) * background
  assert contrast(strongest, rgb(variables["text"])) >= 4.5
