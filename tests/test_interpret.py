"""Inside a model: what is recorded, the logit lens, direct attribution and the kinds of heads. All but the runs themselves is numpy."""

import functools

import numpy as np
import pytest
from conftest import FIXTURES, normal
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.interpret import activations, attribution, head_types, logit_lens
from tinyformer.interpret.recorder import Recorder
from transformer import attention, causal_mask

NORMS = {"before": "gpt2-a", "before, RMS": "mistral-a", "after": "gpt1-a"}
SLOW = {
  "RMS, keys shared": "llama-a",
  "experts": "mixtral-a",
  "after, cross-attention": "bart-a",
  "sinusoids": "marian-a",
  "RMS, cross-attention": "t5-a",
  "a head of its own": "t5-b",
}


@functools.cache
def ran(case):
  """A model, transformers' logits of a text, and the record of the stack whose output is read as it runs over that."""
  recorder, want = Recorder(), np.load(FIXTURES / case / "expected.npz")
  model = checkpoints.load_module(FIXTURES / case, attention_fn=recorder)
  given = [
    want[name][0]
    for name in (("source", "target") if model.task == "text2text-generation" else ("ids",))
  ]
  records = activations.run(model, recorder, *(g.tolist() for g in given))
  return (
    model,
    want["logits" if "logits" in want else "ForMaskedLM"][0],
    records["decoder" if model.task == "text2text-generation" else ""],
  )


every = pytest.mark.parametrize(
  "case",
  [
    *(pytest.param(c, id=n) for n, c in NORMS.items()),
    *(pytest.param(c, id=n, marks=pytest.mark.slow) for n, c in SLOW.items()),
  ],
)


def test_a_recorder_changes_nothing():
  q, k, v = (Tensor(normal(2, 3, n, 4, seed=n)) for n in (5, 7, 7))
  recorder, mask = Recorder(), causal_mask(5, 7)
  np.testing.assert_allclose(
    recorder(q, k, v, mask).numpy(), attention(q, k, v, mask).numpy(), atol=1e-6
  )
  np.testing.assert_allclose(
    (recorder.weights[0] @ v).numpy(), recorder.heads[0].numpy(), atol=1e-6
  )


@every
def test_rows_sum_to_1(case):
  maps = ran(case)[2].maps()
  np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
  assert not maps[..., np.triu(np.ones(maps.shape[2:], bool), 1)].any()
  if case == "mistral-a":
    assert not maps[:, :, 30, :24].any() and maps[:, :, 30, 24:31].all()  # a window of 7


@every
def test_a_watched_model_is_as_it_was(case):
  model = ran(case)[0]
  stack = model.decoder if model.task == "text2text-generation" else model
  assert all(
    "Recorder" not in getattr(block.residual, "__qualname__", "") for block in stack.blocks
  )
  assert "Watch" not in getattr(getattr(stack, "norm", None), "__qualname__", "")


@every
def test_each_layer_reads_what_the_one_before_left(case):
  got = ran(case)[2]
  assert got.whole and len(got.streams()) == len(got.maps()) + 1


@every
def test_tokens_and_what_says_where_they_stand_are_told_apart(case):
  model, logits, got = ran(case)
  stack, T = (
    (model.decoder, len(logits)) if model.task == "text2text-generation" else (model, len(logits))
  )
  if model.task == "text2text-generation":
    places = stack.positions(0, T).numpy() if stack.positions else 0
  else:
    places = model.positions.weight.numpy()[:T] if hasattr(model, "positions") else 0
  np.testing.assert_allclose(
    got.embedded - got.tokens, np.broadcast_to(places, got.tokens.shape), atol=1e-6
  )


@every
def test_heads_and_their_bias_make_up_an_attentions_output(case):
  for s in ran(case)[2].sublayers:
    if s.heads is None:
      continue
    K = s.heads.shape[-1]
    made = sum(head @ s.out[:, h * K : (h + 1) * K].T for h, head in enumerate(s.heads)) + (
      0 if s.bias is None else s.bias
    )
    np.testing.assert_allclose(made, s.added, atol=1e-5)


@every
def test_the_lens_sees_the_models_own_logits_behind_the_last_layer(case):
  model, logits, got = ran(case)
  seen = logit_lens.lens(model, got, top=4)
  want = np.sort(logits, -1)[:, :-5:-1]
  np.testing.assert_allclose(seen.logits, want, atol=1e-5 * np.abs(logits).max())
  np.testing.assert_array_equal(seen.best[-1][:, 0], logits.argmax(-1))
  shares = np.exp(want) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(seen.chances[-1], shares, atol=1e-5)
  assert len(seen.best) == len(got.maps()) + 1 and (np.diff(seen.chances) <= 0).all()


@every
def test_what_the_parts_add_is_the_logit(case):
  model, logits, got = ran(case)
  chosen = np.stack([np.full(len(logits), 7), logits.argmax(-1), logits.argmin(-1)], -1)
  parts = attribution.attribute(model, got, chosen)
  np.testing.assert_allclose(
    attribution.total(parts),
    np.take_along_axis(logits, chosen, -1),
    atol=1e-4 * min(1, logits.std()),
  )
  attentions = [s for s in got.sublayers if s.heads is not None]
  assert sum(p.head is not None for p in parts) == sum(len(s.heads) for s in attentions)
  assert all(np.abs(p.adds).max() > 0 for p in parts if p.kind != "biases")


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in NORMS.items()])
def test_a_part_adds_what_the_logit_would_lose_without_it(case):
  """The last layer's head, taken out while every scale stays: through the norms by plain arithmetic, forward."""
  model, logits, got = ran(case)
  last = next(s for s in reversed(got.sublayers) if s.kind == "attn")
  [part] = [
    p
    for p in attribution.attribute(model, got, logits.argmax(-1)[:, None])
    if (p.kind, p.layer, p.head) == ("attn", last.layer, 1)
  ]
  K, network = last.heads.shape[-1], got.sublayers[-1]
  y = last.heads[1] @ last.out[:, K : 2 * K].T
  for norm, x in (
    ((last.norm, last.x + last.added), (network.norm, network.x + network.added))
    if last.after
    else ((got.last, network.result),)
  ):
    y = norm.scale(x) * (y - y.mean(-1, keepdims=True) if norm.centred else y) * norm.weight
  head = model.tokens.weight.numpy() if hasattr(model, "positions") else model.head.weight.numpy()
  np.testing.assert_allclose(part.adds[:, 0], (y * head[logits.argmax(-1)]).sum(-1), atol=1e-6)


@pytest.mark.parametrize(
  "case, words",
  [("bert-a", "not linear"), pytest.param("deberta-b", "no layer's", marks=pytest.mark.slow)],
)
def test_what_is_no_sum_is_said_in_words(case, words):
  model, logits, got = ran(case)
  assert words in attribution.attribute(model, got, logits.argmax(-1)[:, None])
  np.testing.assert_allclose(got.maps().sum(-1), 1, atol=1e-5)
  assert got.maps()[..., 0, -1].all()  # an encoder looks ahead


# kinds of heads


def attends(x, q, k, causal=True):
  """Weights (T, T) of one head that makes its queries and keys of x (T, D) by these matrices."""
  scores = np.where(np.tri(len(x)) == 0, -np.inf, 50 * (x @ q) @ (x @ k).T)
  e = np.exp(scores - scores.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_a_hand_built_induction_head_scores_1_and_an_unrelated_one_near_0():
  """Two layers (Elhage et al. 2021): a head that copies each token's predecessor beside it, and one that looks for its own token there."""
  V, ids = 41, [40, *head_types.repeated(40, 48)]
  T = len(ids)
  tokens, places, beside = (
    np.eye(V, 2 * V + T),
    np.eye(T, 2 * V + T, V),
    np.eye(V, 2 * V + T, V + T),
  )  # each a part of the stream
  x = tokens[ids] + places
  first = attends(x, places.T, np.roll(places, 1, 0).T)  # the query of place t is the key of t - 1
  x = x + first @ x @ tokens.T @ beside
  second = attends(x, tokens.T, beside.T)
  same, none = (
    attends(x, tokens.T, tokens.T),
    attends(x, np.zeros((x.shape[1], 4)), np.zeros((x.shape[1], 4))),
  )
  scores = head_types.kinds(np.stack([[first, none], [second, same]]), start=1)
  assert (
    scores["previous"][0, 0] == pytest.approx(1)
    and scores["induction"][1, 0] == pytest.approx(1, abs=1e-3)
    and scores["duplicate"][1, 1] == pytest.approx(0.5)
  )
  for name, at in (
    ("induction", (0, 0)),
    ("induction", (0, 1)),
    ("induction", (1, 1)),
    ("previous", (1, 0)),
    ("previous", (1, 1)),
    ("duplicate", (1, 0)),
    ("duplicate", (0, 0)),
  ):
    assert scores[name][at] < 0.1, (name, at)
  assert (
    head_types.kinds(np.tile(np.eye(1, T), (1, 1, T, 1)))["first"] == 1
    and scores["first"][0, 0] < 0.1
  )


def test_a_repeated_sequence_has_no_other_repetition():
  ids = head_types.repeated(20, 15, without=(3, 4))
  assert (
    len(ids) == 14
    and ids[:7] == ids[7:]
    and len(set(ids)) == 7
    and not {3, 4} & set(ids)
    and ids == head_types.repeated(20, 15, (3, 4))
  )
  assert len(head_types.repeated(5, 50)) == 10


def test_what_stands_around_a_repeated_sequence_is_left_out():
  maps = np.zeros((1, 1, 8, 8))  # [CLS] a b c a b c [SEP]
  for t in (4, 5, 6):
    maps[0, 0, t, t - 3 + 1] = 1
  scores = head_types.kinds(maps, 1, 6)
  assert scores["induction"] == 1 and scores["duplicate"] == 0 and scores["first"] == 0
