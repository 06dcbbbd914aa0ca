import math
import numpy as np
import pytest
from conftest import randomise
from tinygrad import Tensor
import console, evaluate
from models.gpt2 import GPT2

V, C = 11, 16

class Known:
  """A "model" that gives every token the probabilities of a table, from the token before it."""
  context = C
  def __init__(self, table): self.table = Tensor(np.log(table).astype(np.float32)).realize()
  def __call__(self, ids): return self.table[ids]

def total(model, ids, stride): return sum(losses.sum() for _, losses in evaluate.nats(model, [ids], stride)), sum(len(losses) for _, losses in evaluate.nats(model, [ids], stride))

@pytest.mark.parametrize("stride", [1, 5, 8, C])
@pytest.mark.parametrize("length", [2, C, C + 1, C + 2, 50])
def test_every_token_but_the_first_counts_once(length, stride):
  seen = []
  for begin, first, end in evaluate.windows(length, C, stride):
    assert 0 <= begin < first < end <= length and end - 1 - begin <= C
    seen += range(first, end)
  assert seen == list(range(1, length))

def test_all_tokens_alike_have_the_perplexity_of_their_number():
  ids = np.random.default_rng(0).integers(0, V, 100).tolist()
  loss, count = total(Known(np.full((V, V), 1 / V)), ids, 7)
  assert count == 99 and math.exp(loss / count) == pytest.approx(V, rel=1e-5)

def test_pairs_have_their_entropy():
  """A Markov chain's text costs, token by token, what its own table says."""
  draw = np.random.default_rng(1)
  table, ids = draw.dirichlet(np.ones(V), V), [0]
  for _ in range(400): ids.append(int(draw.choice(V, p=table[ids[-1]])))
  want = -sum(math.log(table[a, b]) for a, b in zip(ids, ids[1:]))
  for stride in (1, 9, C): assert total(Known(table), ids, stride)[0] == pytest.approx(want, rel=1e-5)

def test_a_window_of_a_model_is_what_the_model_says_of_it():
  model, ids = randomise(GPT2(V, C, 12, 3, 2)), np.random.default_rng(2).integers(0, V, 2*C + 3).tolist()
  def cost(x): return -np.take_along_axis(model(Tensor([x[:-1]])).log_softmax(-1).numpy()[0], np.array(x[1:])[:, None], 1)[:, 0]
  assert total(model, ids, C)[0] == pytest.approx(sum(cost(ids[i*C:(i+1)*C + 1])[-C:].sum() for i in range(2)) + cost(ids[-C-1:])[-2:].sum(), rel=1e-5)
  want = sum(cost(ids[begin:end])[first - end:].sum() for begin, first, end in evaluate.windows(len(ids), C, 5))
  assert total(model, ids, 5)[0] == pytest.approx(want, rel=1e-5)

def test_documents_know_nothing_of_each_other():
  model = randomise(GPT2(V, C, 12, 3, 2))
  ids = [np.random.default_rng(i).integers(0, V, n).tolist() for i, n in enumerate((20, 5, 1, 33))]
  together = [0.0] * 4
  for i, losses in evaluate.nats(model, ids, 8): together[i] += losses.sum()
  for x, got in zip(ids, together): assert got == pytest.approx(total(model, x, 8)[0], rel=1e-5)

def test_the_command(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("Once upon a time there was a king.<|endoftext|>The end of it, naïvely.")
  assert evaluate.main([str(tmp_path / "a.txt"), "--stride", "64", "--offline"]) == 0
  said = capsys.readouterr()
  assert "2 documents" in said.err and "13 words" in said.err and "256 tokens, 64 new ones" in said.err and "bits a byte" in said.out
  loss, perplexity = float(said.out.split()[0]), float(said.out.split("perplexity ")[1].split()[0])
  assert perplexity == pytest.approx(math.exp(loss), rel=1e-3) and 2 < loss < 7

def test_a_stride_that_leaves_tokens_out_is_a_usage_error(tmp_path):
  (tmp_path / "a.txt").write_text("Once")
  with pytest.raises(console.Usage, match="context is 256"): evaluate.main([str(tmp_path / "a.txt"), "--stride", "257"])
