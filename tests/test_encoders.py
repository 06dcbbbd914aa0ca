"""Every encoder of text, with every head, against what transformers computed: a batch with padding, of which nothing is asked."""

import numpy as np
import pytest
from conftest import FIXTURES, close, with_head
from tinygrad import Tensor, nn

from tinyformer import checkpoints
from tinyformer.kernels.parts import CPU_KERNELS
from transformer import Linear, attention

PARTS = {
  "plain": {"attention_fn": attention, "linear": Linear, "layer_norm": nn.LayerNorm},
  "fast": CPU_KERNELS,
}
HEADS = [
  "ForMaskedLM",
  "ForSequenceClassification",
  "ForTokenClassification",
  "ForQuestionAnswering",
  "Model",
]
# two of DeBERTa's: shared keys, buckets, a norm of the relative vectors; and keys of their own, no buckets, a convolution
CASES = [
  (case, parts)
  for case in ("bert-a", "roberta-a", "deberta-a", "deberta-b")
  for parts in PARTS
  if (case, parts) != ("deberta-b", "plain")
]


def expected(case):
  return np.load(FIXTURES / case / "expected.npz")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def vectors(request):
  """A fixture's name, parts, and the vectors that all heads read."""
  case, parts = request.param[0], PARTS[request.param[1]]
  want = expected(case)
  return (
    case,
    parts,
    checkpoints.load_module(FIXTURES / case, **parts)
    .last_hidden_state(*(Tensor(want[name]) for name in ("ids", "keep", "segments")))
    .realize(),
  )


def test_vectors_are_hugging_faces(vectors):
  case, _, x = vectors
  want = expected(case)
  close(x.numpy()[want["keep"] == 1], want["Model"][want["keep"] == 1])


@pytest.mark.parametrize("head", HEADS)
def test_what_each_head_says_is_hugging_faces(tmp_path, vectors, head):
  case, parts, x = vectors
  want, model = expected(case), checkpoints.load_module(with_head(case, head, tmp_path), **parts)
  rows = np.s_[:] if model.task == "text-classification" else want["keep"] == 1
  close(model.head(x).numpy()[rows], want[head][rows])
