"""layers/similarity.py against plain Python, and in attention."""

import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import Tensor

import transformer
from layers import similarity
from tinyformer import oracle

T, S, K, H = 5, 7, 4, 3


def check_scores(function, reference):
  """Compare a similarity with a formula for one query and one key, over a batch of heads."""
  q, k = normal(2, H, T, K), normal(2, H, S, K, seed=1)
  actual = function(Tensor(q), Tensor(k)).numpy()
  expected = np.zeros((2, H, T, S))
  for b, h, t, s in np.ndindex(*expected.shape):
    expected[b, h, t, s] = reference(q[b, h, t].tolist(), k[b, h, s].tolist())
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_general_similarity_is_q_w_k():
  general = randomise(similarity.General(K, K))
  check_scores(general, oracle.general(general.weight.tolist()))


def test_additive_similarity_is_the_sum_of_two_scores():
  additive = randomise(similarity.Additive(K, K))
  wq, wk = (t.flatten().tolist() for t in (additive.q, additive.k))
  check_scores(additive, lambda q, k: oracle.dot(wq, q) + oracle.dot(wk, k))


def test_bahdanau_similarity_is_a_network_with_one_hidden_layer():
  bahdanau = randomise(similarity.Bahdanau(K, K, 6))
  w, u = oracle.transpose(bahdanau.q.tolist()), oracle.transpose(bahdanau.k.tolist())
  check_scores(bahdanau, oracle.additive(w, u, bahdanau.v.flatten().tolist()))


def test_cosine_similarity_is_the_cosine_of_the_angle():
  def reference(q, k):
    return oracle.dot(q, k) / (oracle.dot(q, q) * oracle.dot(k, k)) ** 0.5

  check_scores(similarity.cosine, reference)
  assert similarity.cosine(Tensor([[0.0, 0.0]]), Tensor([[1.0, 2.0]])).item() == 0


def test_the_query_has_no_effect_on_additive_weights():
  q, k = Tensor(normal(T, K)), Tensor(normal(S, K, seed=1))
  additive = randomise(similarity.Additive(K, K))
  weights = transformer.attention_weights(q, k, similarity=additive).numpy()
  np.testing.assert_allclose(weights, weights[:1].repeat(T, 0), atol=1e-6)


@pytest.mark.parametrize(
  "function",
  [
    similarity.General(K, K),
    similarity.Additive(K, K),
    similarity.Bahdanau(K, K, 6),
    similarity.cosine,
    transformer.dot_product,
  ],
)
def test_multi_head_attention_accepts_any_similarity(function):
  mha = transformer.MultiHeadAttention(H * K, H, similarity=function)
  out = mha(Tensor(normal(2, T, H * K)), Tensor(normal(2, S, H * K, seed=1)))
  assert out.shape == (2, T, H * K)
  assert np.isfinite(out.numpy()).all()
