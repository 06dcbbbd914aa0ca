"""Every method follows a change of a loaded model, and models that are loaded later do not."""

from functools import partial

import pytest
from conftest import ROOT

import tinyformer
from layers.attention import grouped_attention
from tinyformer.kernels import module_structure
from tinyformer.kernels.attention import attention

PROMPT = "The man took his hat and"


@pytest.fixture
def load(tmp_path, monkeypatch):
  """Return a function that loads weights/tiny. Steps are cached in an empty folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return lambda: tinyformer.load(ROOT / "weights" / "tiny")


def generate(model) -> str:
  return model.generate(PROMPT, max_new_tokens=4, temperature=0)


def zero(fn):
  """Return a function that returns 0 times the result of another."""
  return lambda *args, **kwargs: fn(*args, **kwargs) * 0


def ablate_attention(model) -> None:
  for block in model.module.blocks:
    block.attn.attention_fn = zero(block.attn.attention_fn)


def test_generation_follows_a_change_and_a_later_model_does_not(load, tmp_path):
  original = generate(load())
  cached = set(tmp_path.rglob("*"))
  assert cached
  changed = load()
  ablate_attention(changed)
  assert changed.key is None
  assert generate(changed) != original
  assert set(tmp_path.rglob("*")) == cached
  assert generate(load()) == original


def test_generation_follows_a_change_after_the_first_text(load):
  model = load()
  original = generate(model)
  functions = [block.attn.attention_fn for block in model.module.blocks]
  ablate_attention(model)
  assert generate(model) != original
  for block, function in zip(model.module.blocks, functions, strict=True):
    block.attn.attention_fn = function
  assert generate(model) == original


def test_generation_follows_a_replaced_weight(load):
  model = load()
  original = generate(model)
  weight = model.module.norm.weight
  weight.replace((-weight).realize())
  assert generate(model) != original


def test_generation_follows_a_weight_changed_in_place(load):
  """The head has a copy of this weight. An optimizer changes weights in place, too."""
  model = load()
  original = generate(model)
  weight = model.module.tokens.weight
  for _ in range(2):
    weight.assign(-weight).realize()
    changed = generate(model)
    model._runner = None
    assert changed == generate(model)
    weight.assign(-weight).realize()
    assert generate(model) == original


def test_inspection_follows_a_change_and_restores_it(load):
  model = load()
  original = tinyformer.inspect(model, PROMPT)
  block = model.module.blocks[-1]
  function = block.attn.attention_fn = zero(block.attn.attention_fn)
  block.ff = zero(block.ff)
  changed = tinyformer.inspect(model, PROMPT)
  assert block.attn.attention_fn is function
  attn, ff = changed.inspection.activations.sublayers[-2:]
  assert not attn.heads.any() and not ff.output.any()
  # The change comes after the last layer's scores, so the weights are those of the original.
  assert abs(changed.attention - original.attention).max() < 1e-6


def test_a_description_names_the_functions_of_a_module(load):
  module = load().module
  described = module_structure.describe(module)
  assert described == module_structure.describe(load().module)
  attn = module.blocks[0].attn
  assert attn.attention_fn is attention
  for other in (grouped_attention, partial(attention, similarity=sum)):
    attn.attention_fn = other
    assert module_structure.describe(module) not in (None, described)


def test_a_module_with_a_function_from_elsewhere_has_no_description(load, monkeypatch):
  module = load().module
  monkeypatch.setattr(type(module.norm), "__call__", lambda self, x: x)
  assert module_structure.describe(module) is None


@pytest.mark.parametrize("value", [0.5, "gelu", None, (1, 2), {"a": [3]}])
def test_a_changed_setting_is_seen(load, value):
  module = load().module
  state = module_structure.snapshot(module)
  assert module_structure.is_unchanged(module, state)
  module.blocks[1].setting = value
  assert not module_structure.is_unchanged(module, state)
  state = module_structure.snapshot(module)
  assert module_structure.is_unchanged(module, state)
