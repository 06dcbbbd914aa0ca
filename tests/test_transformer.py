import functools
import math

import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import Context, Tensor, nn

import transformer
from layers import similarity
from models.gpt2 import GPT2
from tinyformer import oracle

B, T, S, D, H, F = 2, 5, 7, 12, 3, 20  # all different: a swapped axis cannot fit


def numbers(module) -> dict:
  return {name: t.tolist() for name, t in nn.state.get_state_dict(module).items()}


def close(got, want, tolerance=2e-6):
  np.testing.assert_allclose(
    got.numpy() if isinstance(got, Tensor) else got, want, atol=tolerance, rtol=0
  )


# attention


def test_attention_weights_are_the_softmax_of_scaled_products():
  q, k = normal(T, 4), normal(S, 4, seed=1)
  close(
    transformer.attention_weights(Tensor(q), Tensor(k)),
    oracle.attention_weights(q.tolist(), k.tolist()),
  )


def test_a_query_whose_keys_are_all_masked_gets_zeros():
  mask = transformer.padding_mask(Tensor([[True] * S, [False] * S]))
  q, k, v = (Tensor(normal(B, H, n, 4, seed=n)) for n in (T, S, S))
  weights = transformer.attention_weights(q, k, mask).numpy()
  close(weights.sum(-1), np.stack([np.ones((H, T)), np.zeros((H, T))]))
  assert (transformer.attention(q, k, v, mask).numpy()[1] == 0).all()
  gradient = (transformer.attention(q, k, v, mask)).sum().gradient(q)[0].numpy()
  assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("t, s", [(4, 4), (3, 6), (1, 5)])
def test_the_causal_mask_is_aligned_with_the_last_key(t, s):
  np.testing.assert_array_equal(transformer.causal_mask(t, s).numpy(), oracle.causal_mask(t, s))


def test_masks_add():
  keep = Tensor([[True, True, False, True, True]])
  both = (transformer.causal_mask(5, 5) + transformer.padding_mask(keep)).numpy()[0, 0]
  want = np.array(oracle.causal_mask(5, 5))
  want[:, 2] = -math.inf
  np.testing.assert_array_equal(both, want)


@pytest.mark.parametrize("memory", [None, S])
def test_multi_head_attention_is_that_of_the_oracle(memory):
  mha, x = randomise(transformer.MultiHeadAttention(D, H)), normal(B, T, D)
  other = None if memory is None else normal(B, memory, D, seed=1)
  mask = transformer.causal_mask(T, T) if memory is None else None
  out = mha(Tensor(x), None if other is None else Tensor(other), mask)
  for b in range(B):
    close(
      out[b],
      oracle.multi_head(
        numbers(mha),
        x[b].tolist(),
        (x if other is None else other)[b].tolist(),
        H,
        None if mask is None else mask.tolist(),
      ),
      1e-5,
    )


def test_one_head_of_multi_head_attention_is_single_head_attention():
  mha, head, x = (
    randomise(transformer.MultiHeadAttention(D, 1)),
    transformer.SingleHeadAttention(D, D),
    Tensor(normal(B, T, D)),
  )
  head.q, head.k, head.v = mha.q, mha.k, mha.v
  close(mha(x), mha.out(head(x)).numpy())


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="dim 10 is not a multiple of heads 3"):
    transformer.MultiHeadAttention(10, 3)


# blocks and stacks


@pytest.mark.parametrize("residual", [transformer.pre_norm, transformer.post_norm])
def test_a_block_is_that_of_the_oracle(residual):
  x, memory = normal(T, D), normal(S, D, seed=1)
  block = randomise(
    transformer.Block(
      transformer.MultiHeadAttention(D, H),
      transformer.FeedForward(D, F),
      lambda: nn.LayerNorm(D),
      residual,
      cross=transformer.MultiHeadAttention(D, H),
    )
  )
  out = block(Tensor(x[None]), Tensor(memory[None]), transformer.causal_mask(T, T))[0]
  close(
    out,
    oracle.block(
      numbers(block),
      x.tolist(),
      H,
      oracle.causal_mask(T, T),
      memory.tolist(),
      pre_norm=residual is transformer.pre_norm,
    ),
    1e-5,
  )


def test_a_decoder_block_without_a_memory_is_refused():
  with pytest.raises(ValueError, match="memory"):
    transformer.decoder_block(D, H, F)(Tensor(normal(1, T, D)))


def test_the_transformer_is_that_of_the_oracle():
  model, source, target = (
    randomise(transformer.Transformer(11, D, H, F, num_layers=1)),
    [3, 1, 4, 1, 5],
    [9, 2, 6],
  )
  close(
    model(Tensor([source]), Tensor([target]))[0],
    oracle.transformer(numbers(model), 1, H, source, target),
    2e-5,
  )


def test_stacks_of_the_papers_kind_keep_the_shape():
  x, y = Tensor(normal(1, 22, 512)), Tensor(normal(1, 22, 512, seed=1))
  encoder, decoder = (
    transformer.Encoder(2, 512, 2, 1024, 0.1),
    transformer.Decoder(2, 512, 2, 1024, 0.1),
  )
  memory = encoder(x).realize()
  assert memory.shape == decoder(y, memory).shape == (1, 22, 512)
  assert 0.9 < memory.numpy().std() < 1.1


def test_padding_changes_nothing_for_the_rest():
  model = randomise(transformer.Transformer(11, D, H, F, num_layers=1))
  target, mask = Tensor([[9, 2, 6]]), transformer.padding_mask(Tensor([[True] * 3 + [False] * 2]))
  close(
    model(Tensor([[3, 1, 4, 0, 7]]), target, mask), model(Tensor([[3, 1, 4]]), target).numpy(), 1e-5
  )


@pytest.mark.parametrize("model", ["transformer", "gpt2"])
def test_a_query_never_sees_a_later_token(model):
  if model == "gpt2":
    logits = randomise(GPT2(11, 8, D, H, 2))
  else:
    logits = functools.partial(
      randomise(transformer.Transformer(11, D, H, F, num_layers=1)), Tensor([[1, 2, 3]])
    )
  a, b = (logits(Tensor([[5, 6, 7, last]])).numpy() for last in (8, 9))
  np.testing.assert_array_equal(a[:, :3], b[:, :3])
  assert (a[:, 3] != b[:, 3]).any()


def test_embeddings_and_projection_are_one_matrix():
  model = transformer.Transformer(11, D, H, F, num_layers=1)
  assert [n for n, t in nn.state.get_state_dict(model).items() if 11 in t.shape] == [
    "tokens.weight"
  ]


def test_dropout_works_in_training_alone():
  model, x = randomise(transformer.Encoder(1, D, H, F, dropout=0.5)), Tensor(normal(1, T, D))
  with Context(TRAINING=1):
    a, b = model(x).numpy(), model(x).numpy()
  assert (a != b).any()
  np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


def test_dropout_is_on_what_a_sublayer_adds():
  block, x = randomise(transformer.encoder_block(D, H, F, dropout=1.0)), Tensor(normal(1, T, D))
  with Context(TRAINING=1):
    close(block(x), block.ff_norm(block.attn_norm(x)).numpy())


# feed-forward, positions, loss


@pytest.mark.parametrize(
  "activation, own", [(Tensor.relu, oracle.relu), (Tensor.gelu, oracle.gelu_tanh)]
)
def test_the_feed_forward_network_is_that_of_the_oracle(activation, own):
  ff, x = randomise(transformer.FeedForward(D, F, activation)), normal(T, D)
  close(ff(Tensor(x)), oracle.feed_forward(numbers(ff), x.tolist(), own), 1e-5)


def test_sinusoids_are_those_of_the_oracle():
  close(transformer.sinusoids(9, 6), oracle.sinusoids(9, 6))


def test_an_offset_turns_the_sinusoids_of_all_places_alike():
  table = transformer.sinusoids(20, 8).numpy().astype(np.float64)
  rope = np.linalg.lstsq(table[:-3], table[3:], rcond=None)[0]
  np.testing.assert_allclose(table[:-3] @ rope, table[3:], atol=1e-5)


def test_sinusoids_come_in_pairs():
  with pytest.raises(ValueError, match="dim 5 is odd"):
    transformer.sinusoids(3, 5)


def test_positions_are_added_or_concatenated():
  x, p = Tensor(normal(B, T, D)), transformer.sinusoids(T, 6)
  assert transformer.concatenate_positions(x, p).shape == (B, T, D + 6)
  np.testing.assert_array_equal(
    transformer.concatenate_positions(x, p)[1, :, D:].numpy(), p.numpy()
  )
  close(
    transformer.add_positions(x, transformer.sinusoids(T, D)),
    x.numpy() + transformer.sinusoids(T, D).numpy(),
  )


def test_the_loss_smooths_labels_and_ignores_padding():
  logits = normal(1, 4, 6)
  want = oracle.smoothed_loss(logits[0, :3].tolist(), [2, 0, 5], 0.1)
  close(transformer.loss(Tensor(logits), Tensor([[2, 0, 5, -1]])), want)


def test_the_learning_rate_is_that_of_equation_3():
  for step in (1, 17, 3999, 4000, 4001, 100000):
    assert transformer.learning_rate(step) == pytest.approx(oracle.learning_rate(step, 512, 4000))


# initialisation


def test_a_linear_layer_starts_with_glorots_variance():
  layer = transformer.Linear(300, 500)
  assert layer.weight.numpy().var() == pytest.approx(2 / 800, rel=0.02)
  assert not layer.bias.numpy().any()


def test_variance_stays_put_at_depth():
  x = Tensor(normal(1, 16, 64))
  encoder = transformer.Encoder(2, 64, 4, 256)
  for block in encoder.blocks:
    x = block(x).realize()
  assert x.numpy().var() == pytest.approx(1, rel=0.01)  # each post-norm restores it
  model = GPT2(50, 16, 64, 4, num_layers=8)
  embedded = (model.tokens(Tensor([list(range(16))])) + model.positions.weight).numpy().var()
  x = Tensor(normal(1, 16, 64) * math.sqrt(embedded))
  for block in model.blocks:
    x = block(x).realize()
  assert (
    x.numpy().var() < 2 * embedded
  )  # pre-norm: each layer adds its little, and 1 / sqrt(2 layers) keeps the sum from growing with depth


def test_logits_of_a_new_transformer_have_unit_variance():
  model = transformer.Transformer(200, 64, 4, 128, num_layers=1)
  ids = Tensor([list(range(30))])
  assert model(ids, ids).numpy().var() == pytest.approx(1, rel=0.25)


# gradients


def as_double(*shape, seed=0):
  return Tensor(np.random.default_rng(seed).standard_normal(shape))


PARTS = {
  "dot product": (transformer.dot_product, (T, 4), (S, 4)),
  "scaled dot product": (transformer.scaled_dot_product, (T, 4), (S, 4)),
  "general": (similarity.General(4, 6), (T, 4), (S, 6)),
  "additive": (similarity.Additive(4, 6), (T, 4), (S, 6)),
  "Bahdanau": (similarity.Bahdanau(4, 6, 3), (T, 4), (S, 6)),
  "cosine": (similarity.cosine, (T, 4), (S, 4)),
  "masked attention": (
    lambda q, k, v: transformer.attention(q, k, v, transformer.causal_mask(T, S).double()),
    (T, 4),
    (S, 4),
    (S, 3),
  ),
  "multi-head attention": (transformer.MultiHeadAttention(D, H), (1, T, D), (1, S, D)),
  "feed-forward": (transformer.FeedForward(D, F, Tensor.gelu), (T, D)),
  "norm": (nn.LayerNorm(D), (T, D)),
  "encoder block": (transformer.encoder_block(6, 2, 8), (1, T, 6)),
  "decoder block": (transformer.decoder_block(6, 2, 8), (1, T, 6), (1, S, 6)),
}


@pytest.mark.parametrize(
  "part",
  [pytest.param(part, marks=pytest.mark.slow) if "block" in part else part for part in PARTS],
)
def test_the_gradient_is_the_limit_of_differences(part):
  function, *shapes = PARTS[part]
  params = (
    []
    if callable(function) and not hasattr(function, "__dict__")
    else nn.state.get_parameters(function)
  )
  for i, p in enumerate(params):
    p.replace(as_double(*p.shape, seed=100 + i))
  inputs = [as_double(*shape, seed=i) for i, shape in enumerate(shapes)]
  everything, out = params + inputs, function(*inputs)
  weight = as_double(*out.shape, seed=50)
  gradients = [g.numpy() for g in (out * weight).sum().gradient(*everything)]
  values, directions = (
    [t.numpy() for t in everything],
    [as_double(*t.shape, seed=200 + i).numpy() for i, t in enumerate(everything)],
  )
  ends = []
  for step in (1e-6, -1e-6):
    for t, value, direction in zip(everything, values, directions):
      t.replace(Tensor(value + step * direction))
    ends.append((function(*inputs) * weight).sum().item())
  assert gradients[0].dtype == np.float64
  assert sum((g * d).sum() for g, d in zip(gradients, directions)) == pytest.approx(
    (ends[0] - ends[1]) / 2e-6, rel=1e-6
  )
