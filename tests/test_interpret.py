"""Recorded activations, the logit lens, direct logit attribution and head types.

Everything except the runs of the models is numpy.
"""

import functools

import numpy as np
import pytest
from conftest import FIXTURES, normal
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.interpret import activations, attribution, head_types, logit_lens
from tinyformer.interpret.recorder import Recorder
from transformer import attention, causal_mask

FAST = {"pre-norm": "gpt2-a", "pre-norm, RMSNorm": "mistral-a", "post-norm": "gpt1-a"}
SLOW = {
  "RMSNorm, grouped-query attention": "llama-a",
  "mixture of experts": "mixtral-a",
  "biases on q, k and v": "qwen2-a",
  "norms of q and k": "qwen3-a",
  "a layer without RoPE": "smollm3-a",
  "parallel sublayers": "gpt_neox-a",
  "post-norm, cross-attention": "bart-a",
  "sinusoidal positions": "marian-a",
  "RMSNorm, cross-attention": "t5-a",
  "untied head": "t5-b",
}


@functools.cache
def run_case(case):
  """Return a model, the logits (T, V) of transformers, and the activations for the same input.

  The activations are those of the stack whose output the head reads.
  """
  expected = np.load(FIXTURES / case / "expected.npz")
  model = checkpoints.load_module(FIXTURES / case)
  is_encoder_decoder = model.task == "text2text-generation"
  names = ("source", "target") if is_encoder_decoder else ("ids",)
  stacks = activations.run(model, *(expected[name][0].tolist() for name in names))
  logits = expected["logits" if "logits" in expected else "ForMaskedLM"][0]
  return model, logits, stacks["decoder" if is_encoder_decoder else ""]


all_cases = pytest.mark.parametrize(
  "case",
  [
    *(pytest.param(case, id=name) for name, case in FAST.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()),
  ],
)


def test_a_recorder_returns_the_same_as_attention():
  q, k, v = (Tensor(normal(2, 3, n, 4, seed=n)) for n in (5, 7, 7))
  recorder = Recorder()
  mask = causal_mask(5, 7)
  actual = recorder.wrap(attention)(q, k, v, mask).numpy()
  np.testing.assert_allclose(actual, attention(q, k, v, mask).numpy(), atol=1e-6)
  from_weights = (recorder.weights[0] @ v).numpy()
  np.testing.assert_allclose(from_weights, recorder.heads[0].numpy(), atol=1e-6)


@all_cases
def test_attention_weights_are_causal_and_each_row_sums_to_1(case):
  weights = run_case(case)[2].attention_weights()
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert not weights[..., np.triu(np.ones(weights.shape[2:], bool), 1)].any()
  if case == "mistral-a":  # a sliding window of 7 positions
    assert not weights[:, :, 30, :24].any()
    assert weights[:, :, 30, 24:31].all()


@all_cases
def test_a_run_restores_the_residual_connections_and_norms(case):
  model = run_case(case)[0]
  stack = model.decoder if model.task == "text2text-generation" else model
  for block in stack.blocks:
    assert "Recorder" not in getattr(block.residual, "__qualname__", "")
  assert "Recorder" not in getattr(getattr(stack, "norm", None), "__qualname__", "")


@all_cases
def test_only_the_recorded_sublayers_change_the_residual_stream(case):
  actual = run_case(case)[2]
  assert actual.is_complete
  assert len(actual.residual_streams()) == len(actual.attention_weights()) + 1


@all_cases
def test_embeddings_minus_token_embeddings_are_the_positions(case):
  model, logits, actual = run_case(case)
  T = len(logits)
  if model.task == "text2text-generation":
    decoder = model.decoder
    positions = decoder.positions(Tensor.arange(T)).numpy() if decoder.positions else 0
  else:
    positions = model.positions.weight.numpy()[:T] if hasattr(model, "positions") else 0
  expected = np.broadcast_to(positions, actual.token_embeddings.shape)
  np.testing.assert_allclose(actual.embeddings - actual.token_embeddings, expected, atol=1e-6)


@all_cases
def test_heads_and_the_output_bias_add_up_to_the_output_of_an_attention(case):
  for s in run_case(case)[2].sublayers:
    if s.heads is None:
      continue
    K = s.heads.shape[-1]
    total = sum(head @ s.out_weight[:, h * K : (h + 1) * K].T for h, head in enumerate(s.heads))
    if s.out_bias is not None:
      total = total + s.out_bias
    np.testing.assert_allclose(total, s.output, atol=1e-5)


@all_cases
def test_the_logit_lens_after_the_last_layer_gives_the_models_logits(case):
  model, logits, recorded = run_case(case)
  actual = logit_lens.lens(model, recorded, top=4)
  expected = np.sort(logits, -1)[:, :-5:-1]
  np.testing.assert_allclose(actual.logits, expected, atol=1e-5 * np.abs(logits).max())
  np.testing.assert_array_equal(actual.top_ids[-1][:, 0], logits.argmax(-1))
  probabilities = np.exp(expected) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(actual.probabilities[-1], probabilities, atol=1e-5)
  assert len(actual.top_ids) == len(recorded.attention_weights()) + 1
  assert (np.diff(actual.probabilities) <= 0).all()


@all_cases
def test_contributions_add_up_to_the_logit(case):
  model, logits, recorded = run_case(case)
  logit_ids = np.stack([np.full(len(logits), 7), logits.argmax(-1), logits.argmin(-1)], -1)
  contributions = attribution.attribute(model, recorded, logit_ids)
  expected = np.take_along_axis(logits, logit_ids, -1)
  atol = 1e-4 * min(1, logits.std())
  np.testing.assert_allclose(attribution.total(contributions), expected, atol=atol)
  num_heads = sum(len(s.heads) for s in recorded.sublayers if s.heads is not None)
  assert sum(c.head is not None for c in contributions) == num_heads
  assert all(np.abs(c.values).max() > 0 for c in contributions if c.kind != "biases")


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in FAST.items()])
def test_the_contribution_of_a_head_is_what_the_logit_loses_without_it(case):
  """Propagate the output of a head of the last layer forward, with every norm scale fixed."""
  model, logits, recorded = run_case(case)
  logit_ids = logits.argmax(-1)
  last = next(s for s in reversed(recorded.sublayers) if s.kind == "attn")
  feed_forward = recorded.sublayers[-1]
  contributions = attribution.attribute(model, recorded, logit_ids[:, None])
  part = ("attn", last.layer, 1)
  [actual] = [c for c in contributions if (c.kind, c.layer, c.head) == part]
  if last.is_post_norm:
    norms = [
      (last.norm, last.x + last.output),
      (feed_forward.norm, feed_forward.x + feed_forward.output),
    ]
  else:
    norms = [(recorded.final_norm, feed_forward.stream_after)]
  K = last.heads.shape[-1]
  y = last.heads[1] @ last.out_weight[:, K : 2 * K].T
  for norm, x in norms:
    centered = y - y.mean(-1, keepdims=True) if norm.centered else y
    y = norm.scale(x) * centered * norm.weight
  head = model.tokens.weight.numpy() if hasattr(model, "positions") else model.head.weight.numpy()
  expected = (y * head[logit_ids]).sum(-1)
  np.testing.assert_allclose(actual.values[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
  "case, reason",
  [
    ("bert-a", "not linear"),
    pytest.param("deberta-b", "belong to no layer", marks=pytest.mark.slow),
  ],
)
def test_attribution_gives_the_reason_if_the_logit_is_not_a_sum(case, reason):
  model, logits, recorded = run_case(case)
  assert reason in attribution.attribute(model, recorded, logits.argmax(-1)[:, None])
  weights = recorded.attention_weights()
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert weights[..., 0, -1].all()  # an encoder attends to later positions


# **************** Head types ****************


def head_weights(x, q, k):
  """Return the causal attention weights (T, T) of a head with q and k projections, for x (T, D)."""
  scores = np.where(np.tri(len(x)) == 0, -np.inf, 50 * (x @ q) @ (x @ k).T)
  exp = np.exp(scores - scores.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def test_a_constructed_induction_head_scores_1_and_unrelated_heads_score_near_0():
  """Construct two layers (Elhage et al. 2021): a previous-token head and an induction head.

  The previous-token head copies each token into a subspace of the next position. The induction
  head matches its own token with the contents of that subspace.
  """
  V = 41
  ids = [40, *head_types.repeated_random_ids(40, 48)]
  T = len(ids)
  D = 2 * V + T  # three subspaces of the residual stream
  tokens = np.eye(V, D)
  positions = np.eye(T, D, V)
  previous_tokens = np.eye(V, D, V + T)
  x = tokens[ids] + positions
  # The query of position t matches the key of position t - 1.
  previous = head_weights(x, positions.T, np.roll(positions, 1, 0).T)
  x = x + previous @ x @ tokens.T @ previous_tokens
  induction = head_weights(x, tokens.T, previous_tokens.T)
  duplicate = head_weights(x, tokens.T, tokens.T)
  zeros = np.zeros((D, 4))
  uniform = head_weights(x, zeros, zeros)
  scores = head_types.scores(np.stack([[previous, uniform], [induction, duplicate]]), start=1)
  assert scores["previous"][0, 0] == pytest.approx(1)
  assert scores["induction"][1, 0] == pytest.approx(1, abs=1e-3)
  assert scores["duplicate"][1, 1] == pytest.approx(0.5)
  for head_type, layer_and_head in (
    ("induction", (0, 0)),
    ("induction", (0, 1)),
    ("induction", (1, 1)),
    ("previous", (1, 0)),
    ("previous", (1, 1)),
    ("duplicate", (1, 0)),
    ("duplicate", (0, 0)),
  ):
    assert scores[head_type][layer_and_head] < 0.1, (head_type, layer_and_head)
  first = np.tile(np.eye(1, T), (1, 1, T, 1))
  assert head_types.scores(first)["first"] == 1
  assert scores["first"][0, 0] < 0.1


def test_a_repeated_sequence_contains_each_token_exactly_twice():
  ids = head_types.repeated_random_ids(20, 15, exclude=(3, 4))
  assert len(ids) == 14
  assert ids[:7] == ids[7:]
  assert len(set(ids)) == 7
  assert not {3, 4} & set(ids)
  assert ids == head_types.repeated_random_ids(20, 15, (3, 4))
  assert len(head_types.repeated_random_ids(5, 50)) == 10


def test_scores_ignore_special_tokens_around_the_repeated_sequence():
  maps = np.zeros((1, 1, 8, 8))  # [CLS] a b c a b c [SEP]
  for t in (4, 5, 6):
    maps[0, 0, t, t - 3 + 1] = 1
  scores = head_types.scores(maps, 1, 6)
  assert scores["induction"] == 1
  assert scores["duplicate"] == 0
  assert scores["first"] == 0


def test_texts_of_all_lengths_are_padded_to_a_few_lengths_within_the_context():
  lengths = [len(activations.padded(range(n), 100)) for n in range(1, 101)]
  assert all(n <= length <= 100 for n, length in enumerate(lengths, 1))
  assert len(set(lengths)) == 4
  assert activations.padded([7, 8], None)[:3] == [7, 8, 0]
  assert len(activations.padded(range(120), 100)) == 120  # the model refuses such a text
