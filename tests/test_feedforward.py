"""layers/feedforward.py and layers/moe.py against numpy."""

import functools

import numpy as np
import pytest
from conftest import PARTS, normal, randomise
from tinygrad import Device, GlobalCounters, Tensor, dtypes, nn

from layers.feedforward import GatedFeedForward
from layers.moe import MixtureOfExperts
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.parts import CPU_KERNELS, FUSED
from tinyformer.kernels.quantization import quantize_int4, quantize_int8, to_float32
from transformer import Linear

X = normal(2, 3, 6)


def test_the_activated_gate_multiplies_the_features():
  ff = GatedFeedForward(6, 10)
  w = {name: t.numpy() for name, t in nn.state.get_state_dict(ff).items()}
  gate, up = (X @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("gate", "up"))
  silu = gate / (1 + np.exp(-gate))
  expected = (silu * up) @ w["down.weight"].T + w["down.bias"]
  np.testing.assert_allclose(ff(Tensor(X)).numpy(), expected, atol=1e-5)


def expert(moe, e):
  """Return the e-th expert as a separate network."""
  ff = GatedFeedForward(6, 10, linear=functools.partial(Linear, bias=False))
  for name in ("gate", "up", "down"):
    stacked = getattr(moe, name).weight
    rows = stacked.shape[0] // moe.experts
    getattr(ff, name).weight = stacked[e * rows : (e + 1) * rows]
  return ff


def test_a_single_expert_is_a_gated_feed_forward_network():
  moe = randomise(MixtureOfExperts(1, 1, 6, 10))
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), expert(moe, 0)(Tensor(X)).numpy(), atol=1e-6)


@pytest.mark.parametrize("mixture", [part.moe for part in PARTS.values()], ids=PARTS)
def test_the_output_is_the_weighted_sum_of_the_two_selected_experts(mixture):
  moe = randomise(mixture(4, 2, 6, 10))
  logits = X @ moe.router.weight.numpy().T
  outputs = [expert(moe, e)(Tensor(X)).numpy() for e in range(4)]
  expected = np.zeros_like(X)
  for position in np.ndindex(2, 3):
    a, b = np.argsort(-logits[position])[:2]
    # The softmax of these two logits alone.
    weight = 1 / (1 + np.exp(logits[position][b] - logits[position][a]))
    expected[position] = weight * outputs[a][position] + (1 - weight) * outputs[b][position]
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), expected, atol=1e-6)
  # A single token is computed by another method of the fused mixtures.
  np.testing.assert_allclose(moe(Tensor(X[:1, :1])).numpy(), expected[:1, :1], atol=1e-6)


def test_a_single_token_reads_only_the_selected_experts():
  moe, x = randomise(FUSED.moe(8, 2, 32, 64)), Tensor(normal(1, 1, 32)).realize()
  Tensor.realize(*nn.state.get_parameters(moe))
  GlobalCounters.reset()
  moe(x).realize()
  assert GlobalCounters.global_mem < 0.3 * sum(t.nbytes() for t in nn.state.get_parameters(moe))


DTYPES = (dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.uint8)


def matrix_of(values, dtype):
  """Return a matrix as realized weights of a dtype."""
  if dtype == dtypes.int8:
    return Tensor(quantize_int8(values)).realize()
  if dtype == dtypes.uint8:
    return Tensor(quantize_int4(values)).realize()
  return Tensor(values).cast(dtype).realize()


def set_rows_to_nan(weight, first, last):
  """Set rows of weights to NaN in place, or the scales of quantized rows."""
  bits = {dtypes.float32: 0x7FC00000, dtypes.float16: 0x7E00, dtypes.bfloat16: 0x7FC0}
  if weight.dtype in bits:
    is_wide = weight.dtype == dtypes.float32
    rows = weight.bitcast(dtypes.uint32 if is_wide else dtypes.uint16).numpy()
    rows[first:last] = bits[weight.dtype]
  else:
    rows = weight.numpy()
    nan = np.array(np.nan, np.float32 if weight.dtype == dtypes.int8 else np.float16)
    scales = rows[first:last, -4:] if weight.dtype == dtypes.int8 else rows[first:last, :2]
    scales[...] = np.frombuffer(nan.tobytes(), rows.dtype)
  return Tensor(rows).bitcast(weight.dtype).realize()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=[dtype.name for dtype in DTYPES])
@pytest.mark.parametrize("parts", [FUSED, CPU_KERNELS], ids=["fused", "cpu"])
def test_a_single_token_depends_on_the_selected_experts_only_in_each_dtype(parts, dtype):
  if parts is CPU_KERNELS and not has_clang(Device.DEFAULT):
    pytest.skip("the kernels run on the CPU only")
  moe, plain = (randomise(mixture(5, 2, 64, 96)) for mixture in (parts.moe, MixtureOfExperts))
  x = Tensor(normal(1, 1, 64)).realize()
  plain.router = moe.router
  matrices = {name: getattr(moe, name).weight.numpy() for name in ("gate", "up", "down")}
  for name, values in matrices.items():
    getattr(moe, name).weight = weight = matrix_of(values, dtype)
    getattr(plain, name).weight = to_float32(weight).realize()
  expected = plain(x).numpy()
  actual = moe(x).numpy()
  # The CPU's kernel for int4 rounds x too: see docs/performance.md.
  rounds = parts is CPU_KERNELS and dtype == dtypes.uint8
  tolerance = 0.03 if rounds else 1e-5
  np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())
  _, indices = moe.route(x)
  for expert in {*range(5)} - {*indices.numpy().flatten().tolist()}:
    for name in matrices:
      weight = getattr(moe, name).weight
      rows = weight.shape[0] // 5
      getattr(moe, name).weight = set_rows_to_nan(weight, expert * rows, (expert + 1) * rows)
  np.testing.assert_array_equal(moe(x).numpy(), actual)


def test_more_experts_per_token_than_experts_are_rejected():
  with pytest.raises(ValueError, match="experts_per_token 3 is more than experts 2"):
    MixtureOfExperts(2, 3, 6, 10)
