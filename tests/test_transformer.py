"""transformer.py against oracle.py, and its gradients against finite differences."""

import functools
import inspect
import math

import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import Context, Tensor, nn

import transformer
from layers import similarity
from layers.norms import pre_norm
from layers.positions import concatenate_positions
from models.gpt2 import GPT2, GPT2Config
from tinyformer import oracle

B, T, S, D, H, F = 2, 5, 7, 12, 3, 20  # all different, so that swapped axes cannot match


def parameters(module) -> dict:
  return {name: t.tolist() for name, t in nn.state.get_state_dict(module).items()}


def close(actual, expected, tolerance=2e-6):
  actual = actual.numpy() if isinstance(actual, Tensor) else actual
  np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


# attention


def test_attention_weights_are_the_softmax_of_scaled_dot_products():
  q, k = normal(T, 4), normal(S, 4, seed=1)
  weights = transformer.attention_weights(Tensor(q), Tensor(k))
  close(weights, oracle.attention_weights(q.tolist(), k.tolist()))


def test_a_query_with_all_keys_masked_gets_zeros_and_a_zero_gradient():
  mask = transformer.padding_mask(Tensor([[True] * S, [False] * S]))
  q, k, v = (Tensor(normal(B, H, n, 4, seed=n)) for n in (T, S, S))
  weights = transformer.attention_weights(q, k, mask).numpy()
  close(weights.sum(-1), np.stack([np.ones((H, T)), np.zeros((H, T))]))
  output = transformer.attention(q, k, v, mask)
  assert (output.numpy()[1] == 0).all()
  gradient = output.sum().gradient(q)[0].numpy()
  assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("t, s", [(4, 4), (3, 6), (1, 5)])
def test_causal_mask_is_aligned_with_the_last_key(t, s):
  np.testing.assert_array_equal(transformer.causal_mask(t, s).numpy(), oracle.causal_mask(t, s))


def test_masks_can_be_added():
  padding = transformer.padding_mask(Tensor([[True, True, False, True, True]]))
  mask = (transformer.causal_mask(5, 5) + padding).numpy()[0, 0]
  expected = np.array(oracle.causal_mask(5, 5))
  expected[:, 2] = -math.inf
  np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("memory_length", [None, S])
def test_multi_head_attention_equals_the_oracle(memory_length):
  mha, x = randomise(transformer.MultiHeadAttention(D, H)), normal(B, T, D)
  if memory_length is None:
    memory, mask = x, transformer.causal_mask(T, T)
    output = mha(Tensor(x), None, mask)
  else:
    memory, mask = normal(B, memory_length, D, seed=1), None
    output = mha(Tensor(x), Tensor(memory))
  for b in range(B):
    mask_rows = None if mask is None else mask.tolist()
    expected = oracle.multi_head(parameters(mha), x[b].tolist(), memory[b].tolist(), H, mask_rows)
    close(output[b], expected, 1e-5)


def test_multi_head_attention_with_one_head_is_single_head_attention():
  mha = randomise(transformer.MultiHeadAttention(D, 1))
  head = transformer.SingleHeadAttention(D, D)
  head.q, head.k, head.v = mha.q, mha.k, mha.v
  x = Tensor(normal(B, T, D))
  close(mha(x), mha.out(head(x)).numpy())


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="dim 10 is not a multiple of heads 3"):
    transformer.MultiHeadAttention(10, 3)


# blocks and stacks


@pytest.mark.parametrize("residual", [pre_norm, transformer.post_norm])
def test_a_block_equals_the_oracle(residual):
  x, memory = normal(T, D), normal(S, D, seed=1)
  attn, ff = transformer.MultiHeadAttention(D, H), transformer.FeedForward(D, F)
  cross = transformer.MultiHeadAttention(D, H)
  block = randomise(transformer.Block(attn, ff, lambda: nn.LayerNorm(D), residual, cross=cross))
  output = block(Tensor(x[None]), Tensor(memory[None]), mask=transformer.causal_mask(T, T))[0]
  expected = oracle.block(
    parameters(block),
    x.tolist(),
    H,
    oracle.causal_mask(T, T),
    memory.tolist(),
    pre_norm=residual is pre_norm,
  )
  close(output, expected, 1e-5)


def test_a_decoder_block_without_a_memory_is_rejected():
  with pytest.raises(ValueError, match="memory"):
    transformer.decoder_block(D, H, F)(Tensor(normal(1, T, D)))


def test_the_transformer_equals_the_oracle():
  model = randomise(transformer.Transformer(11, D, H, F, num_layers=1))
  source, target = [3, 1, 4, 1, 5], [9, 2, 6]
  logits = model(Tensor([source]), Tensor([target]))[0]
  close(logits, oracle.transformer(parameters(model), 1, H, source, target), 2e-5)


def test_stacks_of_the_papers_width_keep_shape_and_variance():
  x, y = Tensor(normal(1, 22, 512)), Tensor(normal(1, 22, 512, seed=1))
  encoder = transformer.Encoder(2, 512, 2, 1024, 0.1)
  decoder = transformer.Decoder(2, 512, 2, 1024, 0.1)
  memory = encoder(x).realize()
  assert memory.shape == decoder(y, memory).shape == (1, 22, 512)
  assert 0.9 < memory.numpy().std() < 1.1


def test_padding_does_not_change_the_logits():
  model = randomise(transformer.Transformer(11, D, H, F, num_layers=1))
  target = Tensor([[9, 2, 6]])
  mask = transformer.padding_mask(Tensor([[True] * 3 + [False] * 2]))
  padded = model(Tensor([[3, 1, 4, 0, 7]]), target, mask)
  close(padded, model(Tensor([[3, 1, 4]]), target).numpy(), 1e-5)


@pytest.mark.parametrize("model", ["transformer", "gpt2"])
def test_a_position_never_sees_a_later_token(model):
  if model == "gpt2":
    logits = randomise(GPT2(GPT2Config(11, 8, D, H, 2)))
  else:
    encoder_decoder = randomise(transformer.Transformer(11, D, H, F, num_layers=1))
    logits = functools.partial(encoder_decoder, Tensor([[1, 2, 3]]))
  a, b = (logits(Tensor([[5, 6, 7, last]])).numpy() for last in (8, 9))
  np.testing.assert_array_equal(a[:, :3], b[:, :3])
  assert (a[:, 3] != b[:, 3]).any()


def test_embeddings_and_output_projection_share_one_matrix():
  model = transformer.Transformer(11, D, H, F, num_layers=1)
  names = [n for n, t in nn.state.get_state_dict(model).items() if 11 in t.shape]
  assert names == ["tokens.weight"]


def test_dropout_is_applied_in_training_only():
  model, x = randomise(transformer.Encoder(1, D, H, F, dropout=0.5)), Tensor(normal(1, T, D))
  with Context(TRAINING=1):
    a, b = model(x).numpy(), model(x).numpy()
  assert (a != b).any()
  np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


def test_dropout_is_applied_to_the_output_of_each_sublayer():
  block, x = randomise(transformer.encoder_block(D, H, F, dropout=1.0)), Tensor(normal(1, T, D))
  with Context(TRAINING=1):
    close(block(x), block.ff_norm(block.attn_norm(x)).numpy())


# feed-forward networks, positions, loss


@pytest.mark.parametrize(
  "activation, reference", [(Tensor.relu, oracle.relu), (Tensor.gelu, oracle.gelu_tanh)]
)
def test_the_feed_forward_network_equals_the_oracle(activation, reference):
  ff, x = randomise(transformer.FeedForward(D, F, activation)), normal(T, D)
  close(ff(Tensor(x)), oracle.feed_forward(parameters(ff), x.tolist(), reference), 1e-5)


def test_sinusoids_equal_the_oracle():
  close(transformer.sinusoids(9, 6), oracle.sinusoids(9, 6))


def test_one_linear_map_shifts_all_sinusoids_by_an_offset():
  table = transformer.sinusoids(20, 8).numpy().astype(np.float64)
  shift = np.linalg.lstsq(table[:-3], table[3:], rcond=None)[0]
  np.testing.assert_allclose(table[:-3] @ shift, table[3:], atol=1e-5)


def test_sinusoids_of_an_odd_width_are_rejected():
  with pytest.raises(ValueError, match="dim 5 is odd"):
    transformer.sinusoids(3, 5)


def test_positions_are_added_or_concatenated():
  x, p = Tensor(normal(B, T, D)), transformer.sinusoids(T, 6)
  concatenated = concatenate_positions(x, p)
  assert concatenated.shape == (B, T, D + 6)
  np.testing.assert_array_equal(concatenated[1, :, D:].numpy(), p.numpy())
  model = transformer.Transformer(9, D, H, F, num_layers=0, dropout=0)
  ids = Tensor([[1, 2, 3]])
  expected = model.tokens(ids) * D**0.5 + transformer.sinusoids(3, D)
  close(model.embed(ids), expected.numpy())


def test_the_loss_smooths_labels_and_ignores_padding():
  logits = normal(1, 4, 6)
  expected = oracle.smoothed_loss(logits[0, :3].tolist(), [2, 0, 5], 0.1)
  close(transformer.loss(Tensor(logits), Tensor([[2, 0, 5, -1]])), expected)


def test_the_learning_rate_follows_equation_3():
  for step in (1, 17, 3999, 4000, 4001, 100000):
    assert transformer.learning_rate(step) == pytest.approx(oracle.learning_rate(step, 512, 4000))


# initialization


def test_linear_weights_are_initialized_with_glorots_variance():
  layer = transformer.Linear(300, 500)
  assert layer.weight.numpy().var() == pytest.approx(2 / 800, rel=0.02)
  assert not layer.bias.numpy().any()


def test_the_variance_of_activations_does_not_grow_with_depth():
  x = Tensor(normal(1, 16, 64))
  encoder = transformer.Encoder(2, 64, 4, 256)
  for block in encoder.blocks:
    x = block(x).realize()
  assert x.numpy().var() == pytest.approx(1, rel=0.01)  # each post-norm restores it
  model = GPT2(GPT2Config(50, 16, 64, 4, num_layers=8))
  embedded = (model.tokens(Tensor([list(range(16))])) + model.positions.weight).numpy().var()
  x = Tensor(normal(1, 16, 64) * math.sqrt(embedded))
  for block in model.blocks:
    x = block(x).realize()
  # With pre-norm each layer adds a little; the factor 1 / sqrt(2 * num_layers) bounds the sum.
  assert x.numpy().var() < 2 * embedded


def test_logits_of_a_new_transformer_have_unit_variance():
  model = transformer.Transformer(200, 64, 4, 128, num_layers=1)
  ids = Tensor([list(range(30))])
  assert model(ids, ids).numpy().var() == pytest.approx(1, rel=0.25)


# gradients


def double(*shape, seed=0):
  return Tensor(np.random.default_rng(seed).standard_normal(shape))


def causal_attention(q, k, v):
  return transformer.attention(q, k, v, transformer.causal_mask(T, S).double())


PARTS = {
  "dot product": (transformer.dot_product, (T, 4), (S, 4)),
  "scaled dot product": (transformer.scaled_dot_product, (T, 4), (S, 4)),
  "general": (similarity.General(4, 6), (T, 4), (S, 6)),
  "additive": (similarity.Additive(4, 6), (T, 4), (S, 6)),
  "Bahdanau": (similarity.Bahdanau(4, 6, 3), (T, 4), (S, 6)),
  "cosine": (similarity.cosine, (T, 4), (S, 4)),
  "masked attention": (causal_attention, (T, 4), (S, 4), (S, 3)),
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
def test_gradients_equal_finite_differences(part):
  """The derivative in a random direction, in float64, over inputs and parameters together."""
  function, *shapes = PARTS[part]
  is_module = hasattr(function, "__dict__") and not inspect.isfunction(function)
  params = nn.state.get_parameters(function) if is_module else []
  for i, p in enumerate(params):
    p.replace(double(*p.shape, seed=100 + i))
  inputs = [double(*shape, seed=i) for i, shape in enumerate(shapes)]
  variables = params + inputs
  output = function(*inputs)
  weight = double(*output.shape, seed=50)
  gradients = [g.numpy() for g in (output * weight).sum().gradient(*variables)]
  values = [t.numpy() for t in variables]
  directions = [double(*t.shape, seed=200 + i).numpy() for i, t in enumerate(variables)]
  results = []
  for step in (1e-6, -1e-6):
    for t, value, direction in zip(variables, values, directions, strict=True):
      t.replace(Tensor(value + step * direction))
    results.append((function(*inputs) * weight).sum().item())
  assert gradients[0].dtype == np.float64
  derivative = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
  assert derivative == pytest.approx((results[0] - results[1]) / 2e-6, rel=1e-6)
