import math
import re

import numpy as np
import pytest
from conftest import randomise
from tinygrad import Tensor, nn

import evaluate
from models import gpt2
from models.gpt2 import GPT2
from tinyformer import cli
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

V, C = 11, 16


class Known:
  """A "model" that gives every token the probabilities of a table, from the token before it."""

  context = C

  def __init__(self, table):
    self.table = Tensor(np.log(table).astype(np.float32)).realize()

  def __call__(self, ids):
    return self.table[ids]


def total(model, ids, stride):
  return sum(losses.sum() for _, losses in evaluate.token_losses(model, [ids], stride)), sum(
    len(losses) for _, losses in evaluate.token_losses(model, [ids], stride)
  )


@pytest.mark.parametrize("stride", [1, 5, 8, C])
@pytest.mark.parametrize("length", [2, C, C + 1, C + 2, 50])
def test_every_token_but_the_first_counts_once(length, stride):
  seen = []
  for begin, first, end in evaluate.windows(length, C, stride):
    assert 0 <= begin < first < end <= length and end - 1 - begin <= C
    seen += range(first, end)
  assert seen == list(range(1, length))


def test_pairs_have_their_entropy():
  """A Markov chain's text costs, token by token, what its own table says."""
  draw = np.random.default_rng(1)
  table, ids = draw.dirichlet(np.ones(V), V), [0]
  for _ in range(400):
    ids.append(int(draw.choice(V, p=table[ids[-1]])))
  want = -sum(math.log(table[a, b]) for a, b in zip(ids, ids[1:]))
  for stride in (1, 9, C):
    assert total(Known(table), ids, stride)[0] == pytest.approx(want, rel=1e-5)


def bigrams(table: np.ndarray) -> GPT2:
  """A GPT-2 whose weights are worked out so that token b follows a with probability table[a, b].

  Token a is the a-th unit vector; the feed-forward network turns it into log table[a], less its mean, and two numbers r and -r, with which all rows
  are of one length for the last norm to divide by. GELU is the identity where its input is large: 20 is added before it and taken off after.
  """
  N = len(table)
  model = GPT2(N, C, N + 2, 1, 1, ff_dim=N)
  logs = np.log(table) - np.log(table).mean(1, keepdims=True)
  lengths = (logs**2).sum(1)
  r = np.sqrt((lengths.max() - lengths) / 2)[:, None]
  target, unit = np.concatenate([logs, r, -r], 1), np.eye(N, N + 2)
  spread = math.sqrt(unit.var(1)[0] + 1e-5)  # of a unit vector, as the first norm sees it
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


def test_a_gpt2_that_knows_the_source_has_the_sources_perplexity():
  """Three tokens may follow each one, all as likely: whatever the text, a token costs log 3."""
  draw = np.random.default_rng(3)
  table, ids = np.full((10, 10), 1e-9), [0]
  for row in table:
    row[draw.permutation(10)[:3]] = 1 / 3
  for _ in range(99):
    ids.append(int(draw.choice(np.flatnonzero(table[ids[-1]] > 0.1))))
  losses = np.concatenate([found for _, found in evaluate.token_losses(bigrams(table), [ids], 4)])
  assert len(losses) == 99 and np.exp(losses) == pytest.approx(np.full(99, 3), rel=1e-4)


def test_the_command_says_what_weights_of_zero_cost_in_each_unit(tmp_path, capsys):
  """Every one of V tokens is as likely: log V nats a token, log2 V bits for each token that a byte is."""
  text = "Ö is an å or ü"
  tokenizer = BytePairEncoding.characters([text])
  model, size = GPT2(len(tokenizer), C, 12, 3, 1), len(tokenizer)
  for t in nn.state.get_parameters(model):
    t.replace(Tensor.zeros(*t.shape).contiguous())
  gpt2.save(model, tmp_path, eos_token_id=tokenizer.end)
  tokenizer.save(tmp_path)
  (tmp_path / "a.txt").write_text(f"{text}<|endoftext|>{text[:9]}")
  assert evaluate.main([str(tmp_path / "a.txt"), "-m", str(tmp_path), "--stride", "6"]) == 0
  said = capsys.readouterr()
  tokens, words, length = len(text) + 9, 6 + 4, len(text.encode()) + 11
  assert (
    f"2 documents, {tokens} tokens, {words} words between blanks, {length} bytes of UTF-8, as they stand (nothing detokenised)"
    in said.err
  )
  assert (
    f"windows of {C} tokens, 6 new ones in each; a document's first token is predicted from <|endoftext|>"
    in said.err
  )
  nats, a_token, a_word, bits = map(
    float,
    re.fullmatch(
      r"(.*) nats a token, perplexity (.*) a token, (.*) a word; (.*) bits a byte\n", said.out
    ).groups(),
  )
  assert [nats, bits] == pytest.approx(
    [math.log(size), tokens / length * math.log2(size)], abs=1e-4
  )
  assert [a_token, a_word] == pytest.approx([size, size ** (tokens / words)], rel=1e-5)


@pytest.mark.slow
def test_it_is_transformers_loss_of_the_same_windows(tmp_path):
  """On a random checkpoint that transformers wrote, over every window, with the tokens that are context alone left out of its loss."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(0)
  theirs = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=V, n_positions=C + 1, n_embd=12, n_head=3, n_layer=2)
  ).eval()
  for p in theirs.parameters():
    torch.nn.init.normal_(p, std=0.5)
  theirs.save_pretrained(tmp_path)
  ours, ids = gpt2.load(tmp_path), np.random.default_rng(4).integers(0, V, 75).tolist()
  ours.context = C  # transformers' windows hold the last token's answer too
  for stride in (1, 5, C):
    want, counted = 0.0, 1
    while counted < len(ids):  # each token but the first once, as far back as the window reaches
      new = min(len(ids) - counted, C if counted == 1 else stride)
      end = counted + new
      window = ids[max(0, end - 1 - C) : end]
      labels = [-100] * (len(window) - new) + window[-new:]
      with torch.no_grad():
        want += theirs(torch.tensor([window]), labels=torch.tensor([labels])).loss.item() * new
      counted = end
    got, count = total(ours, ids, stride)
    assert count == len(ids) - 1 and got == pytest.approx(want, rel=1e-5)


def test_a_window_of_a_model_is_what_the_model_says_of_it():
  model, ids = (
    randomise(GPT2(V, C, 12, 3, 1)),
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
  want = sum(
    cost(ids[begin:end])[first - end :].sum()
    for begin, first, end in evaluate.windows(len(ids), C, 5)
  )
  assert total(model, ids, 5)[0] == pytest.approx(want, rel=1e-5)


def test_documents_know_nothing_of_each_other():
  model = randomise(GPT2(V, C, 12, 3, 1))
  ids = [np.random.default_rng(i).integers(0, V, n).tolist() for i, n in enumerate((20, 5, 1, 33))]
  together = [0.0] * 4
  for i, losses in evaluate.token_losses(model, ids, 8):
    together[i] += losses.sum()
  for x, got in zip(ids, together):
    assert got == pytest.approx(total(model, x, 8)[0], rel=1e-5)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
  (tmp_path / "a.txt").write_text(
    "Once upon a time there was a king.<|endoftext|>The end of it, naïvely."
  )
  assert evaluate.main([str(tmp_path / "a.txt"), "--stride", "64", "--offline"]) == 0
  said = capsys.readouterr()
  assert (
    "2 documents" in said.err
    and "13 words" in said.err
    and "256 tokens, 64 new ones" in said.err
    and "bits a byte" in said.out
  )
  loss, perplexity = float(said.out.split()[0]), float(said.out.split("perplexity ")[1].split()[0])
  assert perplexity == pytest.approx(math.exp(loss), rel=1e-3) and 2 < loss < 7


def test_a_stride_that_leaves_tokens_out_is_a_usage_error(tmp_path):
  (tmp_path / "a.txt").write_text("Once")
  with pytest.raises(cli.UsageError, match="context is 256"):
    evaluate.main([str(tmp_path / "a.txt"), "--stride", "257"])
