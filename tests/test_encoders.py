"""Every text encoder, with every head, equals transformers on a padded batch.

Outputs at padding positions are not compared.
"""

import numpy as np
import pytest
from conftest import FAST_PARTS, FIXTURES, PARTS, all_parts, close, parameter, with_head
from tinygrad import Tensor

from tinyformer import checkpoints

HEADS = [
  "ForMaskedLM",
  "ForSequenceClassification",
  "ForTokenClassification",
  "ForQuestionAnswering",
  "Model",
]
# deberta-a: share_att_key, buckets, a norm of the relative vectors.
# deberta-b: separate key projections, no buckets, a convolution.
ENCODERS = ("bert-a", "roberta-a", "distilbert-a", "modernbert-a", "deberta-a", "deberta-b")
CASES = [parameter((case, parts), fast=parts in FAST_PARTS) for case in ENCODERS for parts in PARTS]


def load_expected(case):
  return np.load(FIXTURES / case / "expected.npz")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def vectors(request):
  """Return a fixture's name, the parts, and the vectors that all heads read."""
  case = request.param[0]
  parts = PARTS[request.param[1]]
  expected = load_expected(case)
  inputs = [Tensor(expected[name]) for name in ("ids", "keep", "segments")]
  model = checkpoints.load_module(FIXTURES / case, parts=parts)
  return case, parts, model.last_hidden_state(*inputs).realize()


def test_last_hidden_states_equal_hugging_faces(vectors):
  case, _, x = vectors
  expected = load_expected(case)
  is_token = expected["keep"] == 1
  close(x.numpy()[is_token], expected["Model"][is_token])


@pytest.mark.parametrize("head", HEADS)
def test_head_outputs_equal_hugging_faces(tmp_path, vectors, head):
  case, parts, x = vectors
  expected = load_expected(case)
  if head not in expected:
    pytest.skip("ModernBERT's heads share names: test_encoders_reference.py tests this one")
  model = checkpoints.load_module(with_head(case, head, tmp_path), parts=parts)
  rows = np.s_[:] if model.task == "text-classification" else expected["keep"] == 1
  close(model.head(x).numpy()[rows], expected[head][rows])


@all_parts()
def test_a_text_that_fits_into_the_local_window_needs_no_attention_mask(parts):
  """All keys are visible, so the local mask of such a text would be constant."""
  model = checkpoints.load_module(FIXTURES / "modernbert-a", parts=parts)
  ids = Tensor([[7, 3, 9]])
  assert model.config.distance == 3
  close(model(ids).numpy(), model(ids, Tensor([[1, 1, 1]])).numpy())
