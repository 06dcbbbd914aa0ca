"""Logits processors, and the settings of generation_config.json that create them."""

import json

import numpy as np
import pytest

from tinyformer.generation import GenerationConfig, process_logits
from tinyformer.generation.logits_processors import (
  forced_token,
  log_softmax,
  min_length,
  no_bad_words,
  no_repeat_ngram,
)

V = 9
SCORES = np.log(np.random.default_rng(0).dirichlet(np.ones(V)))


def finite_tokens(scores):
  return [token for token, score in enumerate(scores) if score > -np.inf]


def allowed(processor, ids):
  """Return the tokens that a processor allows after ids."""
  return finite_tokens(processor(ids, SCORES))


def all_except(*tokens):
  return [token for token in range(V) if token not in tokens]


@pytest.mark.parametrize(
  "n, ids, forbidden",
  [
    (1, [3, 4, 3], (3, 4)),
    (2, [3, 4, 3], (4,)),
    (2, [3, 4, 5], ()),
    (2, [3, 3], (3,)),
    (2, [3, 4, 3, 5, 3], (4, 5)),
    (3, [1, 2, 7, 1, 2], (7,)),
    (3, [1, 2, 7, 2], ()),
    (3, [1, 2], ()),
    (3, [1], ()),
    (4, [0, 0, 0, 0], (0,)),
    (5, [0, 0, 0], ()),
  ],
)
def test_an_ngram_is_not_repeated(n, ids, forbidden):
  assert allowed(no_repeat_ngram(n), ids) == all_except(*forbidden)


@pytest.mark.parametrize(
  "ids, forbidden",
  [([0], (5,)), ([0, 6], (5, 7)), ([6, 6, 2], (5, 8)), ([2], (5,)), ([6], (5, 7))],
)
def test_a_bad_word_is_not_completed(ids, forbidden):
  assert allowed(no_bad_words([[5], [6, 7], [6, 2, 8]]), ids) == all_except(*forbidden)


def test_min_length_forbids_the_end_token_until_the_length_is_reached():
  actual = [allowed(min_length(3, 2), [0] * n) for n in (1, 2, 3, 4)]
  assert actual == [all_except(2), all_except(2), all_except(), all_except()]


def test_a_forced_token_is_certain_at_its_position_only():
  processor = forced_token(2, 4)
  assert [allowed(processor, [0] * n) for n in (1, 2, 3)] == [all_except(), [4], all_except()]
  assert processor([0, 0], SCORES)[4] == 0


def test_log_softmax_normalizes_the_allowed_tokens():
  scores = log_softmax([0], no_bad_words([[5]])([0], SCORES))
  assert np.exp(scores).sum() == pytest.approx(1)
  assert scores[5] == -np.inf
  assert scores[4] - scores[3] == pytest.approx(SCORES[4] - SCORES[3])


def test_processors_combine_and_do_not_change_their_input():
  before = SCORES.copy()
  config = GenerationConfig(
    0,
    2,
    forced_bos_token_id=4,
    forced_eos_token_id=2,
    min_length=3,
    no_repeat_ngram_size=2,
    bad_words_ids=[[5], [2]],
    renormalize_logits=True,
  )

  def allowed_after(*ids):
    return finite_tokens(process_logits(SCORES, ids, config.logits_processors(6)))

  assert allowed_after(0) == [4]
  assert allowed_after(0, 4) == all_except(2, 5)
  assert allowed_after(0, 4, 1) == all_except(5)
  assert allowed_after(0, 4, 1, 4) == all_except(1, 5)
  assert allowed_after(0, 4, 1, 4, 4) == [2]
  np.testing.assert_array_equal(SCORES, before)


def read_config(folder, generation=None, config=None):
  """Write the files that are given, and read the generation config of their folder."""
  for name, values in (("generation_config.json", generation), ("config.json", config)):
    if values is not None:
      (folder / name).write_text(json.dumps(values))
  return GenerationConfig.read(folder)


def test_generation_config_has_the_values_of_generation_config_json(tmp_path):
  generation = {
    "decoder_start_token_id": 3,
    "eos_token_id": 0,
    "num_beams": 4,
    "max_length": 512,
    "bad_words_ids": [[58100]],
    "early_stopping": None,
    "top_k": 50,
  }
  expected = GenerationConfig(3, 0, num_beams=4, max_length=512, bad_words_ids=[[58100]])
  assert read_config(tmp_path, generation, {"num_beams": 9}) == expected


def test_config_json_is_read_for_older_checkpoints(tmp_path):
  old = {"bos_token_id": 7, "d_model": 4, "min_length": 5}
  assert read_config(tmp_path, None, old) == GenerationConfig(7, min_length=5)
  new = {"decoder_start_token_id": 3, "max_new_tokens": 20, "min_new_tokens": 2, "max_length": 9}
  assert read_config(tmp_path, new) == GenerationConfig(3, max_length=21, min_length=3)


@pytest.mark.parametrize(
  "values, name",
  [
    ({"do_sample": True}, "do_sample"),
    ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ({"eos_token_id": [1, 2]}, "eos_token_id"),
    ({"decoder_start_token_id": None}, "decoder_start_token_id"),
    ({"early_stopping": "soon"}, "early_stopping"),
  ],
)
def test_the_error_for_an_unsupported_setting_names_the_setting(tmp_path, values, name):
  with pytest.raises(ValueError, match=rf"generation_config\.json.*{name}"):
    read_config(tmp_path, {"decoder_start_token_id": 3} | values)
