import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import Tensor

import transformer
from layers import similarity
from tinyformer import oracle

T, S, K, H = 5, 7, 4, 3


def scores(function, own):
  """Holds a similarity against a formula for one query and one key, over a batch of heads."""
  q, k = normal(2, H, T, K), normal(2, H, S, K, seed=1)
  got = function(Tensor(q), Tensor(k)).numpy()
  want = [
    [[[own(a, b) for b in kk] for a in qq] for qq, kk in zip(x, y)]
    for x, y in zip(q.tolist(), k.tolist())
  ]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_general_is_q_w_k():
  part = randomise(similarity.General(K, K))
  w = part.weight.tolist()
  scores(part, lambda q, k: oracle.dot(q, [oracle.dot(row, k) for row in w]))


def test_additive_is_a_sum_of_two_scores():
  part = randomise(similarity.Additive(K, K))
  wq, wk = (t.flatten().tolist() for t in (part.q, part.k))
  scores(part, lambda q, k: oracle.dot(wq, q) + oracle.dot(wk, k))


def test_bahdanaus_is_a_network():
  part = randomise(similarity.Bahdanau(K, K, 6))
  q_, k_, v = (
    oracle.transpose(part.q.tolist()),
    oracle.transpose(part.k.tolist()),
    part.v.flatten().tolist(),
  )
  scores(
    part,
    lambda q, k: oracle.dot(
      v, [np.tanh(oracle.dot(a, q) + oracle.dot(b, k)) for a, b in zip(q_, k_)]
    ),
  )


def test_cosine_is_that_of_the_angle():
  scores(
    similarity.cosine, lambda q, k: oracle.dot(q, k) / (oracle.dot(q, q) * oracle.dot(k, k)) ** 0.5
  )
  assert similarity.cosine(Tensor([[0.0, 0.0]]), Tensor([[1.0, 2.0]])).item() == 0


def test_the_querys_part_of_an_additive_score_has_no_effect():
  q, k = Tensor(normal(T, K)), Tensor(normal(S, K, seed=1))
  weights = transformer.attention_weights(
    q, k, similarity=randomise(similarity.Additive(K, K))
  ).numpy()
  np.testing.assert_allclose(weights, weights[:1].repeat(T, 0), atol=1e-6)


@pytest.mark.parametrize(
  "part",
  [
    similarity.General(K, K),
    similarity.Additive(K, K),
    similarity.Bahdanau(K, K, 6),
    similarity.cosine,
    transformer.dot_product,
  ],
)
def test_each_serves_in_any_attention(part):
  mha = transformer.MultiHeadAttention(H * K, H, similarity=part)
  out = mha(Tensor(normal(2, T, H * K)), Tensor(normal(2, S, H * K, seed=1)))
  assert out.shape == (2, T, H * K) and np.isfinite(out.numpy()).all()
