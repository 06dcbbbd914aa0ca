"""config.json: each value is checked, and an error names the file, the key and the value."""

import importlib
import json

import pytest
from conftest import FIXTURES, ROOT

from models import FAMILIES
from models.hf_config import HFConfig

CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
INVALID = [
  None,
  True,
  "",
  "x" * 10_000,
  "\0\ud800",
  -1,
  0,
  0.5,
  1.0,
  float("nan"),
  float("inf"),
  1e308,
  10**4000,
  2**31,
  2**63,
  [],
  [[]],
  [1, "a", None],
  {},
  {"": {"": None}},
  {"0": 1},
]


def from_hf(values):
  """Return the config of the architecture that the original values name."""
  module = FAMILIES[values["model_type"]].split(".")[0]
  return importlib.import_module(f"models.{module}").from_hf(HFConfig(values, "config.json"))


def changed(values):
  """Yield (key, values) with each value replaced by invalid ones, also in a nested object."""
  for key, value in values.items():
    for new in INVALID:
      yield key, values | {key: new}
    if isinstance(value, dict):
      for _, section in changed(value):
        yield key, values | {key: section}


@pytest.mark.parametrize("case", CASES)
def test_a_config_with_any_value_is_read_or_raises_an_error_that_names_the_key(case):
  original = json.loads((FIXTURES / case / "config.json").read_text())
  from_hf(original)
  for key, values in changed(original):
    if key == "model_type":
      continue
    try:
      from_hf(values)
    except ValueError as e:
      message = str(e)
      assert message.startswith("config.json: "), message
      assert "\n" not in message and "\0" not in message, message
      assert len(message) < 300, message


@pytest.mark.parametrize(
  "method, arguments, value",
  [
    ("size", (), 0),
    ("size", (), True),
    ("size", (), 7.0),
    ("size", (), 10**12),
    ("size", (None, 12), 5),
    ("integer", (), -1),
    ("integer", (0, 0, 9), 10),
    ("number", (1.0, 0.0, 2.0), float("nan")),
    ("number", (1.0, 0.0, 2.0), 10**400),
    ("number", (1.0, 0.0, 2.0), "1"),
    ("epsilon", (1e-5,), 0),
    ("epsilon", (1e-5,), float("inf")),
    ("flag", (False,), 1),
    ("flag", (False,), "false"),
    ("text", ("",), ["gelu"]),
    ("choice", (("a", "b"),), "c"),
    ("activation", ("gelu",), {}),
    ("texts", (), "one"),
    ("texts", (), [1]),
    ("integers", (), 1),
    ("integers", (), [1, -1]),
    ("integers", (1,), [0, 2]),
    ("integers", (1,), [True]),
    ("section", (), [1]),
  ],
)
def test_an_invalid_value_raises_an_error_that_names_the_file_the_key_and_the_value(
  method, arguments, value
):
  hf = HFConfig({"key": value}, "x/config.json")
  with pytest.raises(ValueError, match=r"^x/config\.json: key must .*, not ."):
    getattr(hf, method)("key", *arguments)


def test_a_missing_or_null_value_has_the_default():
  for hf in (HFConfig({}), HFConfig({"a": None})):
    assert hf.size("a", 3) == 3
    assert hf.optional_size("a") is None
    assert hf.number("a", 0.5, 0, 1) == 0.5
    assert hf.flag("a", True) is True
    assert hf.texts("a") == []
    assert hf.integers("a") is None
    assert hf.section("a").values == {}
    with pytest.raises(ValueError, match=r"config\.json: a must be an integer"):
      hf.size("a")


def test_a_section_is_read_from_the_first_key_that_has_a_value():
  hf = HFConfig({"new": None, "old": {"factor": -1}})
  assert hf.section("new", "old").values == {"factor": -1}
  with pytest.raises(ValueError, match=r"config\.json: old: factor must .* not -1"):
    hf.section("new", "old").number("factor", 1.0, 1, 9)


def test_no_architecture_reads_a_config_without_checking_it():
  """HFConfig is no dictionary, so only an access to `values` could circumvent its checks."""
  for path in (ROOT / "models").glob("*.py"):
    assert "hf.get(" not in path.read_text()
    assert "hf[" not in path.read_text()
