"""Kernels for devices with workgroups equal the definitions, here on an emulated device."""

import functools

import numpy as np
import pytest
from conftest import close, normal
from tinygrad import Device, Tensor, nn

from layers.attention import CachedAttention, grouped_attention
from layers.feedforward import GatedFeedForward
from layers.norms import pre_norm
from layers.parts import PLAIN
from layers.positions import apply_rope_half
from tinyformer.kernels import (
  decode_attention,
  decode_block,
  decode_linear,
  device_top_k,
  fused,
  workgroup,
)
from tinyformer.kernels.parts import FUSED
from tinyformer.kernels.quantization import quantize_int8, row_scales, to_float32
from transformer import Block, Linear, dot_product, scaled_dot_product

# tinygrad's emulated device has local memory, but its CPU has none.
DEVICE = Device.DEFAULT if workgroup.has_local_memory(Device.DEFAULT) else "PYTHON"


def on_device(array: np.ndarray) -> Tensor:
  return Tensor(array, device=DEVICE).realize()


def to_cpu(x: Tensor) -> Tensor:
  return Tensor(x.numpy())


def attention_case(B, H, G, T, S, rows, K, mask_shape):
  """Return q, the first S rows of buffers of k and v, and a mask that hides the last keys."""
  q, k, v = normal(B, H, T, K), normal(B, G, rows, K, seed=1), normal(B, G, rows, K, seed=2)
  mask = np.where(np.arange(S) <= S // 2, normal(*mask_shape, S, seed=3), -np.inf)
  k, v = (on_device(x)[:, :, :S] for x in (k, v))
  return on_device(q), k, v, on_device(mask.astype(np.float32))


@pytest.mark.parametrize(
  "sizes, max_keys, similarity",
  [
    # Two texts, grouped queries; fewer keys than work items.
    ((2, 4, 2, 1, 7, 9, 4, (1,)), 1024, scaled_dot_product),
    # A head width that is no multiple of 4; a bias per head.
    pytest.param((1, 3, 3, 1, 13, 13, 5, (3, 1)), 1024, dot_product, marks=pytest.mark.slow),
    # Three parts, of which the mask hides the last ones.
    ((2, 2, 1, 1, 11, 12, 4, (2, 1, 1)), 4, dot_product),
    # Five queries, of which the last workgroup has one; two parts.
    ((1, 2, 1, 5, 7, 9, 4, (5,)), 8, scaled_dot_product),
    pytest.param((2, 4, 2, 6, 13, 17, 4, (4, 6)), 8, dot_product, marks=pytest.mark.slow),
  ],
)
def test_attention_to_a_kv_cache_equals_its_definition(sizes, max_keys, similarity, monkeypatch):
  monkeypatch.setattr(decode_attention, "MAX_KEYS", max_keys)
  monkeypatch.setattr(decode_attention, "MAX_THREADS", 8)
  q, k, v, mask = attention_case(*sizes)
  assert decode_attention.supports(q, k, v, mask, similarity)
  actual = decode_attention.attention(q, k, v, mask, similarity)
  expected = grouped_attention(*map(to_cpu, (q, k, v, mask)), similarity)
  close(actual.numpy(), expected.numpy())


@pytest.mark.parametrize("norm", [fused.FusedLayerNorm, fused.FusedRMSNorm])
def test_a_norm_of_single_tokens_equals_its_definition(norm, monkeypatch):
  """The width is no multiple of the number of work items."""
  monkeypatch.setattr(workgroup, "MAX_THREADS", 4)
  plain = norm.__bases__[0](10, 1e-3)
  module = norm(10, 1e-3)
  for i, (name, tensor) in enumerate(nn.state.get_state_dict(plain).items()):
    tensor.replace(Tensor(normal(10, seed=i)))
    getattr(module, name).replace(on_device(tensor.numpy()))
  x = normal(2, 1, 10, seed=5) + 3
  close(module(on_device(x)).numpy(), plain(Tensor(x)).numpy())


def test_the_scales_of_int8_weights_are_read_exactly():
  weight = normal(5, 7)
  expected = np.abs(weight).max(1) / np.float32(127)
  actual = row_scales(Tensor(quantize_int8(weight))).numpy()
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", ["int8", pytest.param("float16", marks=pytest.mark.slow)])
def test_the_logits_of_single_tokens_equal_their_definition(dtype, monkeypatch):
  """The width is no multiple of the number of work items."""
  monkeypatch.setattr(decode_linear, "MAX_FUSED_ROWS", 2)
  monkeypatch.setattr(decode_linear, "THREADS", 4)
  weight = normal(5, 7)
  weight = quantize_int8(weight) if dtype == "int8" else weight.astype(dtype)
  x = normal(2, 1, 7, seed=1)
  matrix = on_device(weight)
  assert decode_linear.supports(on_device(x), matrix)
  expected = Tensor(x) @ to_float32(Tensor(weight)).T
  close(fused.linear(on_device(x), matrix).numpy(), expected.numpy())


def test_selected_logits_are_the_largest_and_all_that_are_equal_to_them(monkeypatch):
  """Two of three largest logits are equal. The last chunk has fewer logits than work items."""
  monkeypatch.setattr(device_top_k, "CHUNK", 8)
  monkeypatch.setattr(device_top_k, "THREADS", 4)
  logits = normal(2, 1, 19)
  logits[:, 0, [3, 17]] = logits.max() + 1
  selection = device_top_k.DeviceTopK(2, 19, 3)
  selection.logits = on_device(np.zeros((2, 19)))
  candidates = selection.select(on_device(logits)).numpy()
  order = np.argsort(-logits[:, 0], 1, kind="stable")[:, : selection.count]
  np.testing.assert_array_equal(candidates[:, 1], order)
  expected = np.full((2, 19), -np.inf)
  np.put_along_axis(expected, order, np.take_along_axis(logits[:, 0], order, 1), 1)
  np.testing.assert_array_equal(selection.expand(candidates), expected)
  # The fourth logit may be equal to others, which were not selected.
  candidates[0, 0, 3] = candidates[0, 0, 2]
  np.testing.assert_array_equal(selection.expand(candidates), logits[:, 0])


def copy_weights(plain, module, dtype: str) -> None:
  """Give a plain module and one on the device the same random weights of this dtype."""
  targets = nn.state.get_state_dict(module)
  for i, (name, tensor) in enumerate(nn.state.get_state_dict(plain).items()):
    values = normal(*tensor.shape, seed=i)
    if tensor.ndim == 2 and dtype == "int8":
      values = quantize_int8(values)
    elif tensor.ndim == 2:
      values = values.astype(dtype)
    tensor.replace(to_float32(Tensor(values)) if tensor.ndim == 2 else Tensor(values))
    targets[name].uop = on_device(values).uop


@pytest.mark.parametrize(
  "dtype, bias", [("float16", False), pytest.param("int8", True, marks=pytest.mark.slow)]
)
def test_projections_of_a_single_token_equal_their_definition(dtype, bias, monkeypatch):
  """Queries share keys and values. The width is no multiple of the number of work items."""
  monkeypatch.setattr(decode_block, "THREADS", 4)
  plain = functools.partial(Linear, bias=bias)
  linear = functools.partial(fused.FusedLinear, bias=bias)
  x, cos, sin = normal(1, 1, 6), normal(1, 1, seed=1), normal(1, 1, seed=2)
  heads = {"heads": 4, "kv_heads": 2, "head_dim": 2}
  definition = CachedAttention(6, linear=plain, **heads)
  attn = CachedAttention(6, linear=linear, **heads)
  copy_weights(definition, attn, dtype)
  assert decode_block.supports(on_device(x), attn.q, attn.k, attn.v)
  actual = decode_block.queries_keys_values(attn, *map(on_device, (x, cos, sin)))
  rope = functools.partial(apply_rope_half, cos=Tensor(cos), sin=Tensor(sin))
  expected = definition.queries(Tensor(x), rope), *definition.keys_values(Tensor(x), rope)
  Tensor.realize(*actual)
  for a, e in zip(actual, expected, strict=True):
    close(a.numpy(), e.numpy())


@pytest.mark.slow
def test_a_block_for_a_single_token_equals_its_definition():
  def block(parts):
    attn = CachedAttention(6, 4, parts.linear, parts.attention, kv_heads=2, head_dim=2)
    ff = GatedFeedForward(6, 5, parts.activations["silu"], parts.linear)
    return Block(attn, ff, lambda: parts.rms_norm(6), pre_norm)

  plain, module = block(PLAIN), block(FUSED)
  copy_weights(plain, module, "float32")
  fast = decode_block.decode_block(module)
  x, cos, sin = normal(1, 1, 6), normal(1, 1, seed=1), normal(1, 1, seed=2)
  angles = {"cos": on_device(cos), "sin": on_device(sin)}
  actual = fast(on_device(x), rope=functools.partial(FUSED.rope, **angles))
  rope = functools.partial(PLAIN.rope, cos=Tensor(cos), sin=Tensor(sin))
  close(actual.numpy(), plain(Tensor(x), rope=rope).numpy())
