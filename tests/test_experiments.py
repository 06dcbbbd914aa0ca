"""The experiments' common frame, and, in the slow suite, each experiment's own check of its finding and its control."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SHARED, randomise
from tinygrad import Tensor, nn

from experiments import common, norms, positions, small
from layers.positions import alibi, rope_inv_freq, rope_cos_sin, apply_rope_half
from tinyformer import cli
from transformer import Linear, loss, post_norm, sinusoids

FILES = sorted(
  f.stem for f in (ROOT / "experiments").glob("*.py") if "common.Lab(" in f.read_text()
)
DATA = {
  "classify": "rt-polarity",
  "digits": "mnist",
  "translate": "multi30k",
}  # what an experiment cannot do without


class Pairs:
  """Logits of the next token from the last one alone, with dropout, so that random numbers count."""

  def __init__(self):
    self.tokens, self.head = nn.Embedding(11, 6), Linear(6, 11)

  def __call__(self, ids: Tensor) -> Tensor:
    return self.head(self.tokens(ids).dropout(0.2))


def learned(folder, seeds=(0, 1), more=()) -> dict:
  """What results.json holds of twenty steps for each seed, in one trace."""
  lab = common.Lab(
    "pairs", common.parser("pairs", "A test.").parse_args(["-o", str(folder), *more])
  )
  teacher = common.Teacher(Pairs, lambda model, x, y: loss(model(x), y))

  def compute(run: str, seed: int) -> dict:
    def batch(
      step: int,
    ) -> tuple[
      np.ndarray, ...
    ]:  # the same for each seed, which only draws the model and the dropout
      ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
      return ids[:, :-1].copy(), ids[:, 1:].copy()

    rows = teacher.teach(
      lab, run, seed, 20, lambda step: 1e-2 / (step + 1), batch, 7, lambda: [float(seed), math.nan]
    )
    return {"rows": rows, "sum": float(teacher.model.head.weight.numpy().sum())}

  for seed in seeds:
    lab.once(f"seed {seed}", lambda: compute(f"seed {seed}", seed))
  return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return learned(tmp_path_factory.mktemp("whole"))["runs"]


def test_a_stopped_experiment_goes_on_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
  stops = []

  def stop(bar, done, *_):
    if done == 13 and len(stops) < 2:
      stops.append(bar.label)
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(cli.Bar, "__call__", stop)
  for run in ("seed 0", "seed 1"):
    assert cli.run(lambda: learned(tmp_path)) == 130 and stops[-1] == run
    assert (tmp_path / f"{run}.safetensors").exists()
  assert learned(tmp_path)["runs"] == whole and sorted(f.name for f in tmp_path.iterdir()) == [
    "results.json"
  ]


def test_a_seed_learns_the_same_alone_and_after_others_in_one_trace(whole, tmp_path):
  assert learned(tmp_path, seeds=[1])["runs"]["seed 1"] == whole["seed 1"]
  assert whole["seed 1"]["sum"] != whole["seed 0"]["sum"]
  assert (
    whole["seed 1"]["rows"][0][0] == 7
    and whole["seed 1"]["rows"][-1][0] == 20
    and whole["seed 1"]["rows"][-1][2:] == [1.0, None]
  )


def lab(folder, *more):
  return common.Lab(
    "pairs", common.parser("pairs", "A test.").parse_args(["-o", str(folder), *more])
  )


def test_a_finished_run_is_only_shown_again(tmp_path):
  assert (
    lab(tmp_path).once("a", lambda: [1, 2])
    == lab(tmp_path).once("a", lambda: pytest.fail("computed again"))
    == [1, 2]
  )
  with pytest.raises(cli.Usage, match="--fresh"):
    lab(tmp_path, "--seed", "1")
  with pytest.raises(cli.Usage, match="--fresh"):
    lab(tmp_path, "--quick")
  assert lab(tmp_path, "--seed", "1", "--fresh").once("a", lambda: 3) == 3


def test_files_that_are_not_an_experiments_are_left_alone(tmp_path):
  (tmp_path / "model.safetensors").write_text("weights")
  for more in ([], ["--fresh"]):
    with pytest.raises(cli.Usage, match="holds other files"):
      lab(tmp_path, *more)
  assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_finding_that_does_not_hold_is_a_failed_run(tmp_path, capsys):
  assert lab(tmp_path).verdict({"it learns": True, "control: it does not": True}) == 0
  assert lab(tmp_path).verdict({"it learns": True, "control: it does not": False}) == 1
  assert capsys.readouterr().out.splitlines()[-2:] == [
    "holds: it learns",
    "does not hold: control: it does not",
  ]
  assert json.loads((tmp_path / "results.json").read_text())["claims"] == {
    "it learns": True,
    "control: it does not": False,
  }


def test_an_interval_is_wilsons():
  """The bounds are the shares from which the observed one is z standard deviations away: p - r/n = +- z sqrt(p (1 - p) / n)."""
  for right, of in ((5, 10), (81, 263), (0, 20), (20, 20), (999, 1000)):
    low, high = common.wilson(right, of)
    for p in {low, high} - {0.0, 1.0}:
      assert abs(p - right / of) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / of), abs=1e-7)
    assert 0 <= low <= right / of <= high <= 1 and low < high
  assert common.wilson(81, 263) == pytest.approx(
    (0.2553, 0.3662), abs=1e-4
  )  # Newcombe 1998, table I, method 3


def test_without_matplotlib_a_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  lab(tmp_path).picture(lambda figure: pytest.fail("drawn"))
  assert ".[plot]" in capsys.readouterr().err and not list(tmp_path.glob("*.png"))


def test_a_picture_is_a_png(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  lab(tmp_path).picture(lambda figure: figure.add_subplot().plot([1, 2]))
  assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_of_two_symbols_is_as_unforeseeable_as_it_says():
  x, y = small.markov(200, 0, count=200)
  after = (
    small.FAVOURITE[x[:, :-1], x[:, 1:]] == y[:, 1:]
  )  # of the two symbols that a model has read last
  p = small.FAVOUR + (1 - small.FAVOUR) / small.SYMBOLS
  assert after.mean() == pytest.approx(p, abs=0.01) and x.min() == 1 and x.max() == small.SYMBOLS
  assert (
    pytest.approx(-p * math.log(p) - (1 - p) * math.log((1 - p) / (small.SYMBOLS - 1)))
    == small.FLOOR
  )


def test_a_sequence_and_its_reversal_are_read_one_place_later():
  x, y = small.palindromes(5, 3, count=7)
  source, read, target = small.reversal(5, 3, count=7)
  assert (y == np.concatenate([source, source[:, ::-1]], 1)).all() and (
    target == source[:, ::-1]
  ).all()
  for a, b in ((x, y), (read, target)):
    assert (a[:, 0] == small.START).all() and (a[:, 1:] == b[:, :-1]).all()


def test_a_tenth_of_the_gradient_is_what_the_first_step_leaves_in_the_optimizer(tmp_path):
  lab(tmp_path)
  teacher = common.Teacher(lambda: [Linear(3, 2)], lambda model, x: model[0](x).square().mean())
  teacher.begin(0)
  x, weight = np.arange(12, dtype=np.float32).reshape(4, 3), teacher.model[0].weight.numpy()
  found = norms.gradients(teacher, (x,))
  assert list(found) == ["0.weight"] and found["0.weight"] == pytest.approx(
    2 * (x @ weight.T).T @ x / 8, rel=1e-4
  )
  assert (teacher.model[0].weight.numpy() == weight).all()


def test_norms_after_the_sublayers_are_the_papers_with_a_whole_shortcut_and_nothing_passes_with_none():
  x, f, norm = Tensor([[1.0, 2.0, 4.0]]), Tensor.exp, nn.LayerNorm(3)
  for shortcut, expected in ((1.0, post_norm(x, f, norm)), (0.0, norm(x.exp()))):
    assert (norms.after(Tensor([shortcut]))(x, f, norm).numpy() == expected.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", positions.SCHEMES)
def test_what_comes_with_a_batch_is_the_scheme_itself(scheme):
  """The one model that serves all schemes, against the decoder with the parts as they are."""
  T = 8
  model = randomise(positions.Placed(length=8, most=16))
  ids = Tensor(small.sequences(2, T, 0))
  plain = {
    "none": {},
    "sinusoidal": {"positions": sinusoids(T, positions.DIM)},
    "learned": {"positions": model.learned[:T]},
    "relative": {"bias": model.relative(T, T)},
    "ALiBi": {"bias": alibi(T, T, positions.HEADS)},
    "rotary": {
      "turn": lambda x: apply_rope_half(
        x, *rope_cos_sin(0, T, rope_inv_freq(positions.DIM // positions.HEADS))
      )
    },
  }
  served = model.places(ids, *map(Tensor, positions.numbers(scheme, T))).numpy()
  assert np.abs(served - model(ids, **plain[scheme]).numpy()).max() < 1e-4 * served.std()
  if scheme != "none":
    assert np.abs(served - model(ids).numpy()).max() > 1e-2 * served.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_experiment_finds_what_it_says_and_its_control_fails(name, tmp_path):
  if name in DATA and not (SHARED / DATA[name]).exists():
    pytest.skip(f"{DATA[name]} of the public data is not here")
  done = subprocess.run(
    [sys.executable, f"experiments/{name}.py", "--quick", "-o", str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  claims = json.loads((tmp_path / "results.json").read_text())["claims"]
  assert len(claims) > 1 and all(claims.values()) and any("control:" in claim for claim in claims)
