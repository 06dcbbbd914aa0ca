"""The Python API: loading, errors, streams, and results that equal those of the commands."""

import subprocess
import sys
import weakref

import numpy as np
import pytest
from conftest import ROOT
from tinygrad import Tensor

import gpt
import tinyformer

PROMPT = "The old man"


@pytest.fixture(scope="module")
def model():
  return tinyformer.load("tiny")


def test_importing_the_package_imports_nothing_else_and_is_fast():
  """The limit is generous; on an idle machine the import takes about 15 ms."""
  code = """
import sys, time
start = time.perf_counter()
import tinyformer
seconds = time.perf_counter() - start
print(seconds, [name for name in ("numpy", "tinygrad", "models") if name in sys.modules])
assert tinyformer.load
"""
  output = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  seconds, imported = output.stdout.split(maxsplit=1)
  assert imported.strip() == "[]"
  assert float(seconds) < 1


def test_generate_returns_what_the_command_prints(model, capsys):
  gpt.main(["-m", str(model.folder), "-p", PROMPT, "-n", "12", "-s", "3", "-q"])
  text = model.generate(PROMPT, max_new_tokens=12, seed=3)
  assert capsys.readouterr().out == f"{PROMPT}{text}\n"


def test_the_pieces_of_a_stream_are_the_text(model):
  pieces = list(model.stream(PROMPT, max_new_tokens=12, seed=3))
  assert len(pieces) > 5
  assert "".join(pieces) == model.generate(PROMPT, max_new_tokens=12, seed=3)


def test_the_same_seed_gives_the_same_text_after_other_calls(model):
  first = model.generate(PROMPT, max_new_tokens=12, seed=3)
  assert model.generate("Another prompt", max_new_tokens=5, temperature=0)
  assert model.generate(PROMPT, max_new_tokens=12, seed=3) == first
  assert model.generate(PROMPT, max_new_tokens=12, seed=4) != first


def test_another_number_of_candidates_frees_the_memory_of_the_last_engine(model):
  model.generate("Once", 1, temperature=0)
  engine = weakref.ref(model._runner[2].engine)
  model.generate("Once", 1, temperature=1)
  assert engine() is None


def test_generation_stops_before_a_stop_text(model):
  text = model.generate(PROMPT, max_new_tokens=30, temperature=0)
  stop = text[10:14]
  assert (
    model.generate(PROMPT, max_new_tokens=30, temperature=0, stop=[stop])
    == (text[: text.index(stop)])
  )


def test_a_stream_that_another_call_interrupted_raises_an_error(model):
  stream = model.stream(PROMPT, max_new_tokens=12, seed=3)
  next(stream)
  model.generate(PROMPT, max_new_tokens=2)
  with pytest.raises(RuntimeError, match="read one stream at a time"):
    list(stream)


def test_a_prompt_that_does_not_fit_raises_an_error(model):
  with pytest.raises(tinyformer.InputError, match="no tokens"):
    model.generate("")
  with pytest.raises(tinyformer.InputError, match="no room for new ones"):
    model.generate("word " * 600)


def test_perplexity_is_the_exponential_of_the_mean_loss(model):
  text = "The old man took his hat and went out."
  ids = [model.tokenizer.end, *model.tokenizer.encode(text)]
  log_probs = model.module(Tensor([ids[:-1]])).log_softmax(-1).numpy()[0]
  losses = -log_probs[np.arange(len(ids) - 1), ids[1:]]
  assert model.perplexity(text) == pytest.approx(np.exp(losses.mean()), rel=1e-4)


def test_a_method_for_another_task_names_the_right_one(model):
  for method in ("fill_mask", "classify", "tag", "translate", "classify_image"):
    with pytest.raises(tinyformer.InputError, match=f"use generate instead of {method}"):
      getattr(model, method)("text")
  with pytest.raises(tinyformer.InputError, match="use generate instead of answer"):
    model.answer("who?", "Ann.")
  with pytest.raises(tinyformer.InputError, match="use generate instead of embed"):
    model.embed(["text"])


def test_a_single_text_to_embed_is_refused(model):
  with pytest.raises(tinyformer.InputError, match=r"pass \[text\] for one"):
    model.embed("text")


def test_module_maps_ids_to_logits(model):
  logits = model.module(Tensor([[1, 2, 3]]))
  assert logits.shape == (1, 3, model.module.vocab_size)


def test_a_missing_model_raises_an_error():
  with pytest.raises(OSError):
    tinyformer.load("./no-such-folder", offline=True)


def test_an_inspected_run_scores_its_heads_and_has_all_activations(model):
  run = tinyformer.inspect(model, "The man took his hat.")
  scores = run.head_types()
  assert list(scores) == ["previous", "first", "duplicate", "induction"]
  for values in scores.values():
    assert values.shape == run.attention.shape[:2]
    assert values.min() >= 0 and values.max() <= 1
  np.testing.assert_array_equal(run.activations.attention_weights(), run.attention)


def test_an_inspected_run_has_attention_weights_and_can_be_saved(model, tmp_path):
  run = tinyformer.inspect(model, "The man took his hat.")
  assert run.attention.shape == (4, 4, 6, 6)
  np.testing.assert_allclose(run.attention.sum(-1), 1, atol=1e-5)
  assert not np.triu(run.attention, 1).any()
  run.save(tmp_path / "hat.html")
  assert "<html" in (tmp_path / "hat.html").read_text(encoding="utf-8")
  run.save(tmp_path / "hat.png")
  assert (tmp_path / "hat.png").read_bytes()[:4] == b"\x89PNG"
  with pytest.raises(ValueError, match=r"must be \.html or \.png"):
    run.save(tmp_path / "hat.pdf")
  with pytest.raises(tinyformer.InputError, match="omit the target"):
    tinyformer.inspect(model, "text", target="text")


def test_inspecting_a_model_does_not_change_it(model):
  text = model.generate(PROMPT, max_new_tokens=8, temperature=0)
  tinyformer.inspect(model, PROMPT)
  assert model.generate(PROMPT, max_new_tokens=8, temperature=0) == text
