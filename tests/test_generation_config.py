import json

import numpy as np
import pytest

from tinyformer.generation.engine import process_logits
from tinyformer.generation.generation_config import (
  GenerationConfig,
  forced,
  never,
  no_repeats,
  normalised,
  not_before,
)

V = 9
SCORES = np.log(np.random.default_rng(0).dirichlet(np.ones(V)))


def left(constraint, ids):
  return [token for token, score in enumerate(constraint(ids, SCORES)) if score > -np.inf]


def but(*tokens):
  return [token for token in range(V) if token not in tokens]


@pytest.mark.parametrize(
  "n, ids, banned",
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
def test_n_tokens_in_a_row_stand_there_once(n, ids, banned):
  assert left(no_repeats(n), ids) == but(*banned)


@pytest.mark.parametrize(
  "ids, banned", [([0], (5,)), ([0, 6], (5, 7)), ([6, 6, 2], (5, 8)), ([2], (5,)), ([6], (5, 7))]
)
def test_words_are_never_completed(ids, banned):
  assert left(never([[5], [6, 7], [6, 2, 8]]), ids) == but(*banned)


def test_an_end_does_not_come_too_early():
  assert [left(not_before(3, 2), [0] * n) for n in (1, 2, 3, 4)] == [but(2), but(2), but(), but()]


def test_a_forced_token_is_certain_where_it_stands_and_only_there():
  assert [left(forced(2, 4), [0] * n) for n in (1, 2, 3)] == [but(), [4], but()] and forced(2, 4)(
    [0, 0], SCORES
  )[4] == 0


def test_normalised_scores_are_log_probabilities_of_what_is_left():
  scores = normalised([0], never([[5]])([0], SCORES))
  assert (
    np.exp(scores).sum() == pytest.approx(1)
    and scores[5] == -np.inf
    and scores[4] - scores[3] == pytest.approx(SCORES[4] - SCORES[3])
  )


def test_each_has_its_say_and_none_changes_what_it_was_given():
  before = SCORES.copy()
  settings = GenerationConfig(
    0,
    2,
    forced_bos_token_id=4,
    forced_eos_token_id=2,
    min_length=3,
    no_repeat_ngram_size=2,
    bad_words_ids=[[5], [2]],
    renormalize_logits=True,
  )

  def after(*ids):
    return [
      token
      for token, score in enumerate(process_logits(SCORES, ids, settings.logits_processors(6)))
      if score > -np.inf
    ]

  assert (
    after(0) == [4]
    and after(0, 4) == but(2, 5)
    and after(0, 4, 1) == but(5)
    and after(0, 4, 1, 4) == but(1, 5)
    and after(0, 4, 1, 4, 4) == [2]
  )
  np.testing.assert_array_equal(SCORES, before)


def read(folder, generation=None, config=None):
  for name, words in (("generation_config.json", generation), ("config.json", config)):
    if words is not None:
      (folder / name).write_text(json.dumps(words))
  return GenerationConfig.read(folder)


def test_settings_are_the_files_words(tmp_path):
  assert read(
    tmp_path,
    {
      "decoder_start_token_id": 3,
      "eos_token_id": 0,
      "num_beams": 4,
      "max_length": 512,
      "bad_words_ids": [[58100]],
      "early_stopping": None,
      "top_k": 50,
    },
    {"num_beams": 9},
  ) == GenerationConfig(3, 0, num_beams=4, max_length=512, bad_words_ids=[[58100]])


def test_older_checkpoints_have_them_in_config_json(tmp_path):
  assert read(
    tmp_path, None, {"bos_token_id": 7, "d_model": 4, "min_length": 5}
  ) == GenerationConfig(7, min_length=5)
  assert read(
    tmp_path,
    {"decoder_start_token_id": 3, "max_new_tokens": 20, "min_new_tokens": 2, "max_length": 9},
  ) == GenerationConfig(3, max_length=21, min_length=3)


@pytest.mark.parametrize(
  "words, named",
  [
    ({"do_sample": True}, "do_sample"),
    ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ({"eos_token_id": [1, 2]}, "eos_token_id"),
    ({"decoder_start_token_id": None}, "decoder_start_token_id"),
    ({"early_stopping": "soon"}, "early_stopping"),
  ],
)
def test_what_is_not_built_is_told(tmp_path, words, named):
  with pytest.raises(ValueError, match=f"generation_config.json.*{named}"):
    read(tmp_path, {"decoder_start_token_id": 3} | words)
