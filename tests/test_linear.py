"""The matrix product kernels equal transformer.Linear and numpy's products."""

import re

import numpy as np
import pytest
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes

from layers.parts import plain_linear
from tinyformer.checkpoints.ggml_types import dequantize_q4_0
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.fused import FusedEmbedding
from tinyformer.kernels.linear import INT8_GROUP, MAX_GEMV_ROWS, PackedLinear, matmul
from tinyformer.kernels.quantization import quantize_int4, quantize_int8, to_float32

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel runs on the CPU only")


@pytest.mark.parametrize(
  "rows, inputs, outputs",
  [
    (1, 1, 1),
    (1, 768, 50),
    (3, 17, 5),
    (8, 1, 1),
    (16, 31, 7),
    (17, 1, 1),
    (18, 17, 5),
    (8, 257, 49),
    (23, 300, 481),
    (130, 512, 97),
    (16, 16, 1000),
  ],
)
def test_packed_linear_and_its_gradients_equal_the_plain_linear(rows, inputs, outputs):
  x = Tensor(normal(rows, inputs))
  weight = Tensor(normal(outputs, inputs, seed=1))
  dy = Tensor(normal(rows, outputs, seed=2))
  results = []
  for linear in (PackedLinear.product, plain_linear):
    y = linear(x, weight)
    # Before y is realized, because tinygrad then drops y's graph.
    gradients = (y * dy).sum().gradient(x, weight)
    results.append([t.numpy() for t in (y, *gradients)])
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.int8])
@pytest.mark.parametrize(
  "rows, inputs, outputs",
  [(1, 768, 50), (3, 17, 5), (7, 33, 1), (9, 20, 6), (12, 200, 7), (18, 20, 6), (18, 400, 6)],
)
def test_16_bit_and_int8_weights_are_converted_exactly(rows, inputs, outputs, dtype):
  check_product(rows, inputs, outputs, dtype)


def weights_of(array, dtype):
  """Return an array as realized weights of a dtype."""
  if dtype == dtypes.int8:
    return Tensor(quantize_int8(array)).realize()
  if dtype == dtypes.uint8:
    return Tensor(quantize_int4(array)).realize()
  return Tensor(array).cast(dtype).realize()


def round_to_bfloat16(x):
  """Return the nearest bfloat16 of each value, as float32: its upper 16 bits, ties to even."""
  bits = x.view(np.uint32)
  return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)


def quantize_groups(x):
  """Return x with each group of a row rounded to a multiple of its largest value / 127."""
  result = x.copy()
  for start in range(0, x.shape[1], INT8_GROUP):
    group = x[:, start : start + INT8_GROUP]
    scale = np.abs(group).max(1, keepdims=True) / 127
    result[:, start : start + INT8_GROUP] = np.rint(group / scale) * scale
  return result


def multiplied_activations(x, dtype):
  """Return x as a product with weights of a dtype reads it: GEMM rounds it to their width."""
  if len(x) > MAX_GEMV_ROWS and has_clang(Device.DEFAULT):
    if dtype == dtypes.int8:
      return quantize_groups(x)
    if dtype == dtypes.bfloat16:
      return round_to_bfloat16(x)
  return x


def check_product(rows, inputs, outputs, dtype):
  x = normal(rows, inputs)
  weight = weights_of(normal(outputs, inputs, seed=1), dtype)
  expected = multiplied_activations(x, dtype) @ to_float32(weight).numpy().T
  np.testing.assert_allclose(PackedLinear.product(Tensor(x), weight).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.int8])
def test_rounding_of_activations_is_within_the_documented_bound(dtype):
  x = normal(18, 300) * np.geomspace(0.01, 100, 300, dtype=np.float32)
  weight = weights_of(normal(40, 300, seed=1), dtype)
  exact = to_float32(weight).numpy().astype(np.float64)
  bound = np.abs(x) / 2**9 @ np.abs(exact).T
  if dtype == dtypes.int8:
    bound = sum(
      np.abs(x[:, group]).max(1, keepdims=True) / 254 * np.abs(exact[:, group]).sum(1)
      for group in (slice(0, INT8_GROUP), slice(INT8_GROUP, None))
    )
  float32_error = 300 * 2.0**-24 * (np.abs(x) @ np.abs(exact).T)
  actual = PackedLinear.product(Tensor(x), weight).numpy()
  assert (np.abs(actual - x @ exact.T) <= bound + float32_error).all()


@on_cpu
def test_only_rows_of_int8_activations_with_an_infinity_or_nan_become_nan():
  x = normal(18, 300)
  x[[0, 2, 17], [290, 3, 299]] = (np.inf, -np.inf, np.nan)
  x[5] = 0
  y = PackedLinear.product(Tensor(x), Tensor(quantize_int8(normal(6, 300, seed=1)))).numpy()
  assert (np.isnan(y).all(1) == np.isin(np.arange(18), (0, 2, 17))).all()
  assert np.isnan(y).sum() == 3 * 6
  assert not y[5].any()


@settings(max_examples=10, deadline=None)
@given(
  st.integers(1, 40),
  st.integers(1, 150),
  st.integers(1, 150),
  st.sampled_from([dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8]),
)
def test_products_of_arbitrary_shapes_and_dtypes_equal_numpys(rows, inputs, outputs, dtype):
  check_product(rows, inputs, outputs, dtype)


@on_cpu
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(
  "batch, M, N, K",
  [(1, 30, 200, 70), (3, 5, 7, 300), (4, 48, 16, 1), (1, 100, 50, 400), (1, 100, 400, 400)],
)
def test_batched_and_transposed_products_equal_numpys(batch, M, N, K, transpose_a, transpose_b):
  def maybe_transposed(array, transpose):
    return Tensor(np.ascontiguousarray(array.swapaxes(1, 2)) if transpose else array)

  a = normal(batch, M, K)
  b = normal(batch, K, N, seed=1)
  a_input = maybe_transposed(a, transpose_a)
  b_input = maybe_transposed(b, transpose_b)
  actual = matmul(a_input, b_input, transpose_a, transpose_b)
  np.testing.assert_allclose(actual.numpy(), a @ b, atol=1e-4)


@pytest.mark.parametrize("rows, inputs, outputs", [(3, 20, 6), (18, 20, 50), (60, 800, 300)])
def test_a_bias_is_added_once(rows, inputs, outputs):
  x = Tensor(normal(rows, inputs, seed=0))
  weight = Tensor(normal(outputs, inputs, seed=1))
  bias = Tensor(normal(outputs, seed=2))
  expected = x.numpy() @ weight.numpy().T + bias.numpy()
  np.testing.assert_allclose(PackedLinear.product(x, weight, bias).numpy(), expected, atol=1e-4)


def test_int8_quantization_error_is_at_most_half_the_scale():
  row_scales = np.array([[1e-4], [1], [50], [0], [1]], np.float32)
  weight = normal(5, 33) * row_scales
  quantized = quantize_int8(weight)
  restored = to_float32(Tensor(quantized)).numpy()
  scale = np.abs(weight).max(1, keepdims=True) / 127
  assert quantized.shape == (5, 37)
  assert (np.abs(restored - weight) <= scale * 0.5001).all()
  assert not restored[3].any()


def test_int4_weights_are_rounded_in_groups_of_32_with_a_scale_each():
  """The largest weight of a group is -8 steps. The one of opposite sign may be clipped to 7."""
  weight = normal(5, 96) * np.array([[1e-4], [1], [50], [0], [-1]], np.float32)
  quantized = quantize_int4(weight)
  assert quantized.shape == (5, 3 * 18)
  groups = weight.reshape(5, 3, 32)
  restored = dequantize_q4_0(quantized.reshape(-1, 18)).reshape(5, 3, 32)
  largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
  step = -largest / 8
  rounding_of_scale = 8 * np.abs(step) * 2**-11 + 8 * 2**-25  # float16, subnormal numbers included
  clipped = groups / np.where(step == 0, 1, step) > 7.5
  assert clipped.any()
  limit = np.where(clipped, np.abs(step), np.abs(step) / 2 * 1.0001) + rounding_of_scale
  assert (np.abs(restored - groups) <= limit).all()
  again = quantize_int4(restored.reshape(5, 96)).reshape(-1, 18)
  np.testing.assert_array_equal(dequantize_q4_0(again), restored.reshape(-1, 32))
  with pytest.raises(ValueError, match="a row of 40 weights"):
    quantize_int4(normal(5, 40))


def test_int4_weights_are_read_as_gguf_defines_them():
  blocks = np.random.default_rng(0).integers(0, 256, (7 * 3, 18)).astype(np.uint8)
  blocks[0, :2] = (1, 128)  # the smallest negative float16
  blocks[:, 1] &= 0b10111111  # no infinity and no NaN
  expected = dequantize_q4_0(blocks).reshape(7, 96)
  weight = Tensor(blocks.reshape(7, 54)).realize()
  np.testing.assert_array_equal(to_float32(weight).numpy(), expected)
  x = Tensor(np.eye(96, dtype=np.float32))  # int8 represents it exactly, up to its scale
  actual = PackedLinear.product(x, weight).numpy()
  np.testing.assert_allclose(actual, expected.T, rtol=1e-6)


@on_cpu
@pytest.mark.parametrize("rows", [2, 18])
def test_rows_are_rounded_to_8_bits_before_an_int4_product(rows):
  inputs, outputs = 288, 50
  x = normal(rows, inputs)
  weight = weights_of(normal(outputs, inputs, seed=1), dtypes.uint8)
  bias = normal(outputs, seed=2)
  groups = x.reshape(rows, -1, 32)
  scale = np.abs(groups).max(-1, keepdims=True) / 127
  rounded = (np.rint(groups / scale) * scale).reshape(rows, inputs)
  expected = rounded @ to_float32(weight).numpy().T + bias
  actual = PackedLinear.product(Tensor(x), weight, Tensor(bias)).numpy()
  np.testing.assert_allclose(actual, expected, atol=1e-4)


@on_cpu
@pytest.mark.parametrize("rows", [2, 17])
def test_a_nan_in_x_is_not_rounded_away_in_an_int4_product(rows):
  x = normal(rows, 64)
  x[1, 40] = np.nan
  weight = weights_of(normal(3, 64), dtypes.uint8)
  actual = PackedLinear.product(Tensor(x), weight).numpy()
  assert np.isfinite(actual[0]).all() and np.isnan(actual[1]).all()


@pytest.mark.parametrize("dtype", [pytest.param(dtypes.int8, marks=pytest.mark.slow), dtypes.uint8])
def test_the_gradient_of_x_is_that_of_the_quantized_weights(dtype):
  x = Tensor(normal(3, 64))
  weight = weights_of(normal(5, 64, seed=1), dtype)
  bias = Tensor(normal(5, seed=2))
  dy = normal(3, 5, seed=3)
  y = (PackedLinear.product(x, weight, bias) * Tensor(dy)).sum()
  dx, dbias = y.gradient(x, bias)
  np.testing.assert_allclose(dx.numpy(), dy @ to_float32(weight).numpy(), atol=1e-4)
  np.testing.assert_allclose(dbias.numpy(), dy.sum(0), atol=1e-5)


@pytest.mark.parametrize(
  "dtype",
  [
    dtypes.float32,
    dtypes.float16,
    dtypes.bfloat16,
    dtypes.int8,
    pytest.param(dtypes.uint8, marks=pytest.mark.slow),
  ],
)
def test_embeddings_of_any_dtype_are_the_rows_of_the_table(dtype):
  table = FusedEmbedding(50, 64)
  table.weight = weights_of(normal(50, 64), dtype)
  ids = np.array([[49, 0], [7, 7]], np.int32)
  expected = to_float32(table.weight).numpy()[ids]
  np.testing.assert_array_equal(table(Tensor(ids)).numpy(), expected)


@on_cpu
def test_gemv_multiplies_up_to_16_float32_rows_and_gemm_more():
  def used_kernel(x, weight):
    schedule = str(PackedLinear.product(x, weight).schedule_linear())
    names = set(re.findall(r"\b(gemm|gemv|gemm_dot)_\d", schedule))
    assert len(names) <= 1
    return names.pop() if names else None

  weight = Tensor(normal(4, 6)).realize()
  weight_16_bit = weight.half().realize()
  assert used_kernel(Tensor(normal(17, 6)), weight) == "gemm"
  assert used_kernel(Tensor(normal(4, 5, 6)), weight) == "gemm"
  assert used_kernel(Tensor(normal(16, 6)), weight) == "gemv"
  assert used_kernel(Tensor(normal(1, 1, 6)), weight_16_bit) == "gemv"
  assert used_kernel(Tensor(normal(20, 6)).half(), weight) is None
  assert used_kernel(Tensor(normal(20, 6)), weight_16_bit) == "gemm"
  assert used_kernel(Tensor(normal(20, 6)), weight.cast(dtypes.bfloat16).realize()) == "gemm_dot"


def test_an_empty_input_gives_an_empty_output():
  assert PackedLinear.product(Tensor.zeros(2, 0, 6), Tensor(normal(4, 6))).shape == (2, 0, 4)
