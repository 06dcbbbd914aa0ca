"""The matrix product kernels equal transformer.Linear and numpy's products."""

import re

import numpy as np
import pytest
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes

from layers.parts import plain_linear
from tinyformer.kernels.fused import FusedEmbedding
from tinyformer.kernels.linear import PackedLinear, matmul
from tinyformer.kernels.quantization import quantize_int8, to_float32

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
    return Tensor(quantize_int8(array))
  return Tensor(array).cast(dtype).realize()


def check_product(rows, inputs, outputs, dtype):
  x = Tensor(normal(rows, inputs))
  weight = weights_of(normal(outputs, inputs, seed=1), dtype)
  expected = x.numpy() @ to_float32(weight).numpy().T
  np.testing.assert_allclose(PackedLinear.product(x, weight).numpy(), expected, atol=1e-4)


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


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8])
def test_embeddings_of_any_dtype_are_the_rows_of_the_table(dtype):
  table = FusedEmbedding(50, 12)
  table.weight = weights_of(normal(50, 12), dtype)
  ids = np.array([[49, 0], [7, 7]], np.int32)
  expected = to_float32(table.weight).numpy()[ids]
  np.testing.assert_array_equal(table(Tensor(ids)).numpy(), expected)


@on_cpu
def test_gemv_multiplies_up_to_16_float32_rows_and_gemm_more():
  def used_kernel(x, weight):
    schedule = str(PackedLinear.product(x, weight).schedule_linear())
    names = set(re.findall(r"\b(gemm|gemv)_\d", schedule))
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


def test_an_empty_input_gives_an_empty_output():
  assert PackedLinear.product(Tensor.zeros(2, 0, 6), Tensor(normal(4, 6))).shape == (2, 0, 4)
