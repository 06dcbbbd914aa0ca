import numpy as np
import pytest
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes, nn

import transformer
from tinyformer.kernels.linear import PackedLinear, quantize_int8, embed, to_float32, product

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel is for the CPU")


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
def test_the_packed_product_and_its_gradients_are_the_plain_ones(rows, inputs, outputs):
  x, w, dy = (
    Tensor(normal(rows, inputs)),
    Tensor(normal(outputs, inputs, seed=1)),
    Tensor(normal(rows, outputs, seed=2)),
  )
  results = []
  for kind in (PackedLinear, transformer.Linear):
    y = kind.product(x, w)
    gradients = (
      (y * dy).sum().gradient(x, w)
    )  # before y is read: tinygrad forgets how what it has computed came about
    results.append([t.numpy() for t in (y, *gradients)])
  for got, want in zip(*results):
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.int8])
@pytest.mark.parametrize(
  "rows, inputs, outputs",
  [(1, 768, 50), (3, 17, 5), (7, 33, 1), (9, 20, 6), (12, 200, 7), (18, 20, 6), (18, 400, 6)],
)
def test_narrow_weights_are_widened_exactly(rows, inputs, outputs, dtype):
  narrow(rows, inputs, outputs, dtype)


def narrow(rows, inputs, outputs, dtype):
  x, w = Tensor(normal(rows, inputs)), normal(outputs, inputs, seed=1)
  w = Tensor(quantize_int8(w)) if dtype == dtypes.int8 else Tensor(w).cast(dtype).realize()
  np.testing.assert_allclose(
    PackedLinear.product(x, w).numpy(), x.numpy() @ to_float32(w).numpy().T, atol=1e-4
  )


@settings(max_examples=10, deadline=None)
@given(
  st.integers(1, 40),
  st.integers(1, 150),
  st.integers(1, 150),
  st.sampled_from([dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8]),
)
def test_odd_shapes_of_every_type(rows, inputs, outputs, dtype):
  narrow(rows, inputs, outputs, dtype)


@on_cpu
@pytest.mark.parametrize("turned_a", [False, True])
@pytest.mark.parametrize("turned_b", [False, True])
@pytest.mark.parametrize(
  "batch, M, N, K",
  [(1, 30, 200, 70), (3, 5, 7, 300), (4, 48, 16, 1), (1, 100, 50, 400), (1, 100, 400, 400)],
)
def test_products_of_several_matrices(batch, M, N, K, turned_a, turned_b):
  a, b = normal(batch, M, K), normal(batch, K, N, seed=1)
  got = product(
    *(
      Tensor(np.ascontiguousarray(x.swapaxes(1, 2))) if turned else Tensor(x)
      for x, turned in ((a, turned_a), (b, turned_b))
    ),
    turned_a,
    turned_b,
  )
  np.testing.assert_allclose(got.numpy(), a @ b, atol=1e-4)


@pytest.mark.parametrize("rows, inputs, outputs", [(3, 20, 6), (18, 20, 50), (60, 800, 300)])
def test_a_bias_is_added_once(rows, inputs, outputs):
  x, w, bias = (
    Tensor(normal(*shape, seed=i))
    for i, shape in enumerate([(rows, inputs), (outputs, inputs), (outputs,)])
  )
  np.testing.assert_allclose(
    PackedLinear.product(x, w, bias).numpy(), x.numpy() @ w.numpy().T + bias.numpy(), atol=1e-4
  )


def test_a_row_in_bytes_is_off_by_half_a_step_at_most():
  w = normal(5, 33) * np.array([[1e-4], [1], [50], [0], [1]], np.float32)
  back = to_float32(Tensor(quantize_int8(w))).numpy()
  assert (
    quantize_int8(w).shape == (5, 37)
    and (np.abs(back - w) <= np.abs(w).max(1, keepdims=True) / 127 * 0.5001).all()
    and not back[3].any()
  )


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8])
def test_the_rows_of_a_table_of_any_type(dtype):
  table, w = nn.Embedding(50, 12), normal(50, 12)
  table.weight = (
    Tensor(quantize_int8(w)) if dtype == dtypes.int8 else Tensor(w).cast(dtype).realize()
  )
  ids = np.array([[49, 0], [7, 7]], np.int32)
  np.testing.assert_array_equal(
    embed(table, Tensor(ids)).numpy(), to_float32(table.weight).numpy()[ids]
  )


@on_cpu
def test_a_kernel_is_used_where_it_serves_and_nowhere_else():
  def used(x, w):
    return next(
      (
        name
        for name in ("product_", "rows_")
        if name in str(PackedLinear.product(x, w).schedule_linear())
      ),
      None,
    )

  w = Tensor(normal(4, 6)).realize()
  assert used(Tensor(normal(17, 6)), w) == used(Tensor(normal(4, 5, 6)), w) == "product_"
  assert (
    used(Tensor(normal(16, 6)), w) == used(Tensor(normal(1, 1, 6)), w.half().realize()) == "rows_"
  )
  assert (
    used(Tensor(normal(20, 6)).half(), w) is None
    and used(Tensor(normal(20, 6)), w.half().realize()) == "product_"
  )


def test_no_rows_give_no_rows():
  assert PackedLinear.product(Tensor.zeros(2, 0, 6), Tensor(normal(4, 6))).shape == (2, 0, 4)
