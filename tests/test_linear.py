import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import Device, Tensor, dtypes, nn
import transformer
from models.gpt2 import GPT2
from parts.linear import PackedLinear

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel is for the CPU")

@pytest.mark.parametrize("rows, inputs, outputs", [(1, 1, 1), (1, 768, 50), (3, 17, 5), (7, 33, 3), (8, 1, 1), (9, 17, 5), (16, 31, 7), (17, 1, 1), (18, 17, 5), (64, 48, 48), (8, 257, 49), (23, 300, 481), (130, 512, 97), (16, 16, 1000)])
def test_the_packed_product_and_its_gradients_are_the_plain_ones(rows, inputs, outputs):
  x, w, dy = Tensor(normal(rows, inputs)), Tensor(normal(outputs, inputs, seed=1)), Tensor(normal(rows, outputs, seed=2))
  results = []
  for kind in (PackedLinear, transformer.Linear):
    y = kind.product(x, w)
    gradients = (y * dy).sum().gradient(x, w)   # before y is read: tinygrad forgets how what it has computed came about
    results.append([t.numpy() for t in (y, *gradients)])
  for got, want in zip(*results): np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))

@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16])
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 768, 50), (3, 17, 5), (7, 33, 1), (9, 20, 6), (18, 20, 6)])
def test_weights_of_sixteen_bits_are_widened_exactly(rows, inputs, outputs, dtype):
  x, w = Tensor(normal(rows, inputs)), Tensor(normal(outputs, inputs, seed=1)).cast(dtype).realize()
  np.testing.assert_allclose(PackedLinear.product(x, w).numpy(), x.numpy() @ w.float().numpy().T, atol=1e-4)

@on_cpu
def test_a_kernel_is_used_where_it_serves_and_nowhere_else():
  def used(x, w): return next((name for name in ("product_", "rows_") if name in str(PackedLinear.product(x, w).schedule_linear())), None)
  w = Tensor(normal(4, 6)).realize()
  assert used(Tensor(normal(17, 6)), w) == used(Tensor(normal(4, 5, 6)), w) == "product_"
  assert used(Tensor(normal(16, 6)), w) == used(Tensor(normal(1, 1, 6)), w.half().realize()) == "rows_"
  assert used(Tensor(normal(20, 6)).half(), w) is None and used(Tensor(normal(20, 6)), w.half().realize()) == "product_"

def test_no_rows_give_no_rows(): assert PackedLinear.product(Tensor.zeros(2, 0, 6), Tensor(normal(4, 6))).shape == (2, 0, 4)

def test_a_model_of_packed_layers_is_the_same_model():
  plain = randomise(GPT2(97, 20, 24, 3, 2))
  packed = GPT2(97, 20, 24, 3, 2, linear=PackedLinear)
  nn.state.load_state_dict(packed, nn.state.get_state_dict(plain), verbose=False)
  ids = Tensor(np.arange(40, dtype=np.int32).reshape(2, 20))
  want = plain(ids).numpy()
  assert np.abs(packed(ids).numpy() - want).max() < 1e-5 * want.std()
