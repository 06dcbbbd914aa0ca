"""evaluate.py: windows, losses and units, against models with known probabilities."""

import itertools
import math
import re

import numpy as np
import pytest
from conftest import randomise
from tinygrad import Tensor, nn

import evaluate
from models.gpt2 import GPT2, GPT2Config
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import load_module
from tinyformer.tasks import perplexity
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

V, C = 11, 16


class TableModel:
  """A model whose probabilities depend on the previous token only, as in a table."""

  context = C
  vocab_size = V

  def __init__(self, table):
    self.table = Tensor(np.log(table).astype(np.float32)).realize()

  def last_hidden_state(self, ids):
    return self.table[ids]

  def head(self, x):
    return x


def total(model, ids, stride):
  windows = [losses for _, losses in perplexity.token_losses(model, [ids], stride)]
  return sum(losses.sum() for losses in windows), sum(len(losses) for losses in windows)


@pytest.mark.parametrize("stride", [1, 5, 8, C])
@pytest.mark.parametrize("length", [2, C, C + 1, C + 2, 50])
def test_every_token_but_the_first_counts_once(length, stride):
  predicted = []
  for begin, first, end in perplexity.windows(length, C, stride):
    assert 0 <= begin < first < end <= length and end - 1 - begin <= C
    predicted += range(first, end)
  assert predicted == list(range(1, length))


def test_the_loss_of_a_markov_chain_is_its_entropy():
  """The model has the transition probabilities of the Markov chain that generated the text."""
  draw = np.random.default_rng(1)
  table, ids = draw.dirichlet(np.ones(V), V), [0]
  for _ in range(400):
    ids.append(int(draw.choice(V, p=table[ids[-1]])))
  expected = -sum(math.log(table[a, b]) for a, b in itertools.pairwise(ids))
  for stride in (1, 9, C):
    assert total(TableModel(table), ids, stride)[0] == pytest.approx(expected, rel=1e-5)


def bigrams(table: np.ndarray) -> GPT2:
  """Construct a GPT-2 in which token b follows token a with probability table[a, b].

  The embedding of token a is the a-th unit vector. The feed-forward network maps it to log table[a]
  minus its mean, and to two numbers r and -r, which give all rows the same length before the last
  norm. GELU is the identity for large inputs, so 20 is added before it and subtracted after it.
  """
  N = len(table)
  model = GPT2(GPT2Config(N, C, N + 2, 1, 1, ff_dim=N))
  logs = np.log(table) - np.log(table).mean(1, keepdims=True)
  lengths = (logs**2).sum(1)
  r = np.sqrt((lengths.max() - lengths) / 2)[:, None]
  target, unit = np.concatenate([logs, r, -r], 1), np.eye(N, N + 2)
  spread = math.sqrt(unit.var(1)[0] + 1e-5)  # the first norm divides a unit vector by this
  values = {name: np.zeros(t.shape) for name, t in nn.state.get_state_dict(model).items()}
  values |= {
    "tokens.weight": unit,
    "blocks.0.ff_norm.weight": np.ones(N + 2),
    "blocks.0.ff.up.weight": unit * spread,
    "blocks.0.ff.up.bias": np.full(N, 20 + 1 / (N + 2)),
    "blocks.0.ff.down.weight": (target - unit).T,
    "blocks.0.ff.down.bias": -20 * (target - unit).sum(0),
    "norm.weight": np.full(N + 2, math.sqrt(lengths.max() / (N + 2) + 1e-5)),
  }
  for name, t in nn.state.get_state_dict(model).items():
    t.replace(Tensor(values[name].astype(np.float32)))
  return model


def test_a_gpt2_with_the_sources_probabilities_has_its_perplexity():
  """Each token is followed by one of three with equal probability, so its loss is log 3."""
  draw = np.random.default_rng(3)
  table, ids = np.full((10, 10), 1e-9), [0]
  for row in table:
    row[draw.permutation(10)[:3]] = 1 / 3
  for _ in range(99):
    ids.append(int(draw.choice(np.flatnonzero(table[ids[-1]] > 0.1))))
  losses = np.concatenate([x for _, x in perplexity.token_losses(bigrams(table), [ids], 4)])
  assert len(losses) == 99 and np.exp(losses) == pytest.approx(np.full(99, 3), rel=1e-4)


def test_the_command_prints_the_loss_of_zero_weights_in_each_unit(tmp_path, capsys):
  """All V tokens have equal probability: log V nats per token, log2 V bits per token."""
  text = "Ö is an å or ü"
  tokenizer = BytePairEncoding.characters([text], end="</s>")
  model, size = GPT2(GPT2Config(len(tokenizer), C, 12, 3, 1)), len(tokenizer)
  for t in nn.state.get_parameters(model):
    t.replace(Tensor.zeros(*t.shape).contiguous())
  checkpoints.save(model, tmp_path, eos_token_id=tokenizer.end)
  tokenizer.save(tmp_path)
  (tmp_path / "a.txt").write_text(f"{text}<|endoftext|>{text[:9]}")
  assert evaluate.main([str(tmp_path / "a.txt"), "-m", str(tmp_path), "--stride", "6"]) == 0
  captured = capsys.readouterr()
  tokens, words, length = len(text) + 9, 6 + 4, len(text.encode()) + 11
  assert (
    f"2 documents, {tokens} tokens, {words} words separated by white space, "
    f"{length} bytes of UTF-8 (not detokenized)" in captured.err
  )
  assert (
    f"windows of {C} tokens with a stride of 6; "
    "the first token of a document is predicted from </s>" in captured.err
  )
  nats, a_token, a_word, bits = map(
    float,
    re.fullmatch(
      r"(.*) nats per token, perplexity (.*) per token, (.*) per word; (.*) bits per byte\n",
      captured.out,
    ).groups(),
  )
  assert [nats, bits] == pytest.approx(
    [math.log(size), tokens / length * math.log2(size)], abs=1e-4
  )
  assert [a_token, a_word] == pytest.approx([size, size ** (tokens / words)], rel=1e-5)


@pytest.mark.slow
def test_the_loss_equals_that_of_transformers_for_the_same_windows(tmp_path):
  """On a random checkpoint of transformers, whose loss ignores the tokens that are only context."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(0)
  theirs = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=V, n_positions=C + 1, n_embd=12, n_head=3, n_layer=2)
  ).eval()
  for p in theirs.parameters():
    torch.nn.init.normal_(p, std=0.5)
  theirs.save_pretrained(tmp_path)
  ours, ids = load_module(tmp_path), np.random.default_rng(4).integers(0, V, 75).tolist()
  ours.context = C  # transformers' windows also contain the last target
  for stride in (1, 5, C):
    expected, counted = 0.0, 1
    while counted < len(ids):
      new = min(len(ids) - counted, C if counted == 1 else stride)
      end = counted + new
      window = ids[max(0, end - 1 - C) : end]
      labels = [-100] * (len(window) - new) + window[-new:]
      with torch.no_grad():
        expected += theirs(torch.tensor([window]), labels=torch.tensor([labels])).loss.item() * new
      counted = end
    actual, count = total(ours, ids, stride)
    assert count == len(ids) - 1 and actual == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_window_is_that_of_the_model():
  model, ids = (
    randomise(GPT2(GPT2Config(V, C, 12, 3, 1))),
    np.random.default_rng(2).integers(0, V, 2 * C + 3).tolist(),
  )

  def cost(x):
    return -np.take_along_axis(
      model(Tensor([x[:-1]])).log_softmax(-1).numpy()[0], np.array(x[1:])[:, None], 1
    )[:, 0]

  assert total(model, ids, C)[0] == pytest.approx(
    sum(cost(ids[i * C : (i + 1) * C + 1])[-C:].sum() for i in range(2))
    + cost(ids[-C - 1 :])[-2:].sum(),
    rel=1e-5,
  )
  expected = sum(
    cost(ids[begin:end])[first - end :].sum()
    for begin, first, end in perplexity.windows(len(ids), C, 5)
  )
  assert total(model, ids, 5)[0] == pytest.approx(expected, rel=1e-5)


def test_logits_are_computed_of_the_tokens_that_a_window_predicts_only(monkeypatch):
  model = TableModel(np.full((V, V), 1 / V))
  lengths = []
  monkeypatch.setattr(model, "head", lambda x: lengths.append(x.shape[1]) or x, raising=False)
  total(model, [i % V for i in range(3 * C)], stride=5)
  assert set(lengths) == {C, 5}  # those of the first window, and of the later ones


def test_documents_are_independent():
  model = randomise(GPT2(GPT2Config(V, C, 12, 3, 1)))
  ids = [np.random.default_rng(i).integers(0, V, n).tolist() for i, n in enumerate((20, 5, 1, 33))]
  together = [0.0] * 4
  for i, losses in perplexity.token_losses(model, ids, 8):
    together[i] += losses.sum()
  for x, actual in zip(ids, together, strict=True):
    assert actual == pytest.approx(total(model, x, 8)[0], rel=1e-5)


@pytest.mark.parametrize("rows", [3, 100])
def test_logits_in_chunks_give_the_same_losses(monkeypatch, rows):
  model = randomise(GPT2(GPT2Config(V, C, 12, 3, 1)))
  ids = np.random.default_rng(2).integers(0, V, 3 * C).tolist()
  expected = total(model, ids, 5)[0]
  # One window of C tokens, then three later ones in a batch.
  monkeypatch.setattr(perplexity.WindowLosses, "MAX_LOGITS", rows * V)
  assert total(model, ids, 5)[0] == pytest.approx(expected, rel=1e-6)


def test_a_smaller_context_is_that_of_each_window():
  model = randomise(GPT2(GPT2Config(V, C, 12, 3, 1)))
  ids = np.random.default_rng(2).integers(0, V, 2 * C)
  # The first window predicts four tokens. Each later token is predicted from the four before it.
  windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], 4)
  logits = model(Tensor(windows.astype(np.int32))).log_softmax(-1).numpy()
  predicted = np.concatenate([logits[0], logits[1:, -1]])
  expected = -predicted[np.arange(len(ids) - 1), ids[1:]]
  rows = perplexity.token_losses(model, [ids.tolist()], 1, context=4)
  assert np.concatenate([losses for _, losses in rows]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_command_evaluates_the_shipped_model(tmp_path, capsys):
  (tmp_path / "a.txt").write_text(
    "Once upon a time there was a king.<|endoftext|>The end of it, naïvely."
  )
  assert evaluate.main([str(tmp_path / "a.txt"), "--stride", "64", "--offline"]) == 0
  captured = capsys.readouterr()
  assert (
    "2 documents" in captured.err
    and "13 words" in captured.err
    and "256 tokens with a stride of 64" in captured.err
    and "bits per byte" in captured.out
  )
  loss, perplexity = (
    float(captured.out.split()[0]),
    float(captured.out.split("perplexity ")[1].split()[0]),
  )
  assert perplexity == pytest.approx(math.exp(loss), rel=1e-3) and 2 < loss < 7


def test_a_stride_longer_than_the_context_is_a_usage_error(tmp_path):
  (tmp_path / "a.txt").write_text("Once")
  with pytest.raises(cli.UsageError, match="context is 256"):
    evaluate.main([str(tmp_path / "a.txt"), "--stride", "257"])


def test_a_context_longer_than_the_models_is_a_usage_error(tmp_path):
  (tmp_path / "a.txt").write_text("Once")
  with pytest.raises(cli.UsageError, match="context of 257 exceeds that of the model, 256"):
    evaluate.main([str(tmp_path / "a.txt"), "--context", "257"])
