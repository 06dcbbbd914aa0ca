"""The code that experiments share; in the slow suite, `--quick` of each experiment."""

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
from layers.positions import alibi, apply_rope_half, rope_cos_sin, rope_inv_freq
from tinyformer import cli
from transformer import Linear, loss, post_norm, sinusoids

EXPERIMENTS = sorted(
  f.stem for f in (ROOT / "experiments").glob("*.py") if "common.Experiment(" in f.read_text()
)
# The public data that an experiment needs.
DATA = {"classify": "rt-polarity", "digits": "mnist", "translate": "multi30k"}


class Bigram:
  """Predict the next token from the last one only; dropout uses the random number generator."""

  def __init__(self):
    self.tokens, self.head = nn.Embedding(11, 6), Linear(6, 11)

  def __call__(self, ids: Tensor) -> Tensor:
    return self.head(self.tokens(ids).dropout(0.2))


def experiment(folder, *options):
  parser = common.argument_parser("bigram", "A test.")
  return common.Experiment("bigram", parser.parse_args(["-o", str(folder), *options]))


def train_seeds(folder, seeds=(0, 1)) -> dict:
  """Train 20 steps for each seed with one compiled step; return the contents of results.json."""
  current = experiment(folder)
  trainer = common.MultiRunTrainer(Bigram, lambda model, x, y: loss(model(x), y))

  # The batches do not depend on the seed, which affects initialization and dropout only.
  def batch(step: int) -> tuple[np.ndarray, ...]:
    ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()

  def train_run(run: str, seed: int) -> dict:
    config = common.RunConfig(
      20, lambda step: 1e-2 / (step + 1), batch, 7, lambda: [float(seed), math.nan]
    )
    curve = trainer.train(current, run, seed, config)
    return {"curve": curve, "sum": float(trainer.model.head.weight.numpy().sum())}

  for seed in seeds:
    current.run_once(f"seed {seed}", train_run, f"seed {seed}", seed)
  return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted_runs(tmp_path_factory):
  return train_seeds(tmp_path_factory.mktemp("uninterrupted"))["runs"]


def test_an_interrupted_experiment_resumes_with_equal_results(
  uninterrupted_runs, tmp_path, monkeypatch
):
  interrupted = []

  def interrupt(bar, done, *_):
    if done == 13 and len(interrupted) < 2:
      interrupted.append(bar.label)
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(cli.Bar, "__call__", interrupt)
  for run in ("seed 0", "seed 1"):
    assert cli.run(lambda: train_seeds(tmp_path)) == 130
    assert interrupted[-1] == run
    assert (tmp_path / f"{run}.safetensors").exists()
  assert train_seeds(tmp_path)["runs"] == uninterrupted_runs
  assert sorted(f.name for f in tmp_path.iterdir()) == ["results.json"]


def test_a_seed_gives_equal_results_alone_and_after_another_run(uninterrupted_runs, tmp_path):
  first, second = uninterrupted_runs["seed 0"], uninterrupted_runs["seed 1"]
  assert train_seeds(tmp_path, seeds=[1])["runs"]["seed 1"] == second
  assert second["sum"] != first["sum"]
  curve = second["curve"]
  assert curve[0][0] == 7
  assert curve[-1][0] == 20
  assert curve[-1][2:] == [1.0, None]


@pytest.mark.parametrize("option, variable", [("numpy", ""), (None, "NUMPY")])
def test_an_experiment_on_numpy_is_refused_with_the_reason(option, variable, monkeypatch):
  monkeypatch.setenv("TINYFORMER_DEVICE", variable)
  with pytest.raises(cli.UsageError, match="needs tinygrad"):
    common.select_tinygrad_device(option)


def test_a_finished_run_is_read_from_the_results(tmp_path):
  assert experiment(tmp_path).run_once("a", lambda: [1, 2]) == [1, 2]
  assert experiment(tmp_path).run_once("a", lambda: pytest.fail("computed again")) == [1, 2]
  with pytest.raises(cli.UsageError, match="--fresh"):
    experiment(tmp_path, "--seed", "1")
  with pytest.raises(cli.UsageError, match="--fresh"):
    experiment(tmp_path, "--quick")
  assert experiment(tmp_path, "--seed", "1", "--fresh").run_once("a", lambda: 3) == 3


def test_two_experiments_do_not_write_to_one_folder(tmp_path):
  first = experiment(tmp_path)
  with pytest.raises(cli.UsageError, match=r"another run .* is writing to"):
    experiment(tmp_path)
  first.lock.release()
  experiment(tmp_path)


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path):
  (tmp_path / "model.safetensors").write_text("weights")
  for options in ([], ["--fresh"]):
    with pytest.raises(cli.UsageError, match=r"contains files but no results\.json"):
      experiment(tmp_path, *options)
  assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_claim_that_does_not_hold_gives_exit_status_1(tmp_path, capsys):
  current = experiment(tmp_path)
  assert current.report_claims({"it learns": True, "control: it does not": True}) == 0
  claims = {"it learns": True, "control: it does not": False}
  assert current.report_claims(claims) == 1
  assert capsys.readouterr().out.splitlines()[-2:] == [
    "holds: it learns",
    "does not hold: control: it does not",
  ]
  assert json.loads((tmp_path / "results.json").read_text())["claims"] == claims


def test_wilson_intervals_match_their_definition_and_a_published_value():
  """A bound is a proportion p with |p - correct / total| = z sqrt(p (1 - p) / total)."""
  for correct, total in ((5, 10), (81, 263), (0, 20), (20, 20), (999, 1000)):
    low, high = common.wilson_interval(correct, total)
    for p in {low, high} - {0.0, 1.0}:
      deviation = 1.96 * math.sqrt(p * (1 - p) / total)
      assert abs(p - correct / total) == pytest.approx(deviation, abs=1e-7)
    assert 0 <= low <= correct / total <= high <= 1
    assert low < high
  # Newcombe 1998, table I, method 3
  assert common.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_without_matplotlib_a_note_names_the_extra_to_install(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  experiment(tmp_path).save_figure(lambda figure: pytest.fail("drawn"))
  assert ".[plot]" in capsys.readouterr().err
  assert not list(tmp_path.glob("*.png"))


def test_a_figure_is_saved_as_png(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  experiment(tmp_path).save_figure(lambda figure: figure.add_subplot().plot([1, 2]))
  assert (tmp_path / "bigram.png").read_bytes().startswith(b"\x89PNG")


def test_the_entropy_rate_is_that_of_the_markov_chain():
  x, y = small.markov_batch(200, 0, count=200)
  is_favorite = small.FAVORITES[x[:, :-1], x[:, 1:]] == y[:, 1:]
  p = small.FAVORITE_PROBABILITY + (1 - small.FAVORITE_PROBABILITY) / small.NUM_SYMBOLS
  assert is_favorite.mean() == pytest.approx(p, abs=0.01)
  assert x.min() == 1
  assert x.max() == small.NUM_SYMBOLS
  entropy = -p * math.log(p) - (1 - p) * math.log((1 - p) / (small.NUM_SYMBOLS - 1))
  assert pytest.approx(entropy) == small.ENTROPY_RATE


def test_decoder_inputs_are_targets_shifted_right():
  x, y = small.palindrome_batch(5, 3, count=7)
  source, decoder_input, target = small.reversal_batch(5, 3, count=7)
  assert (y == np.concatenate([source, source[:, ::-1]], 1)).all()
  assert (target == source[:, ::-1]).all()
  for shifted, original in ((x, y), (decoder_input, target)):
    assert (shifted[:, 0] == small.START_ID).all()
    assert (shifted[:, 1:] == original[:, :-1]).all()


def test_initial_gradients_equal_the_analytic_gradient_and_leave_the_weights_unchanged(tmp_path):
  experiment(tmp_path)
  trainer = common.MultiRunTrainer(
    lambda: [Linear(3, 2)], lambda model, x: model[0](x).square().mean()
  )
  trainer.reset(0)
  x = np.arange(12, dtype=np.float32).reshape(4, 3)
  weight = trainer.model[0].weight.numpy()
  gradients = norms.initial_gradients(trainer, (x,))
  assert list(gradients) == ["0.weight"]
  assert gradients["0.weight"] == pytest.approx(2 * (x @ weight.T).T @ x / 8, rel=1e-4)
  assert (trainer.model[0].weight.numpy() == weight).all()


def test_scaled_post_norm_is_post_norm_at_scale_1_and_has_no_residual_at_scale_0():
  x, f, norm = Tensor([[1.0, 2.0, 4.0]]), Tensor.exp, nn.LayerNorm(3)
  for scale, expected in ((1.0, post_norm(x, f, norm)), (0.0, norm(x.exp()))):
    actual = norms.scaled_post_norm(Tensor([scale]))(x, f, norm)
    assert (actual.numpy() == expected.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", positions.SCHEMES)
def test_scheme_arrays_give_the_same_logits_as_the_scheme_itself(scheme):
  T = 8
  model = randomise(positions.PositionDecoder(train_length=8, max_length=16))
  ids = Tensor(small.random_sequences(2, T, 0))
  cos_sin = rope_cos_sin(Tensor.arange(T), rope_inv_freq(positions.DIM // positions.HEADS))
  arguments = {
    "none": {},
    "sinusoidal": {"positions": sinusoids(T, positions.DIM)},
    "learned": {"positions": model.learned[:T]},
    "relative": {"bias": model.relative(T, T)},
    "ALiBi": {"bias": alibi(T, T, positions.HEADS)},
    "rotary": {"rope": lambda x: apply_rope_half(x, *cos_sin)},
  }
  actual = model.with_scheme(ids, *map(Tensor, positions.scheme_arrays(scheme, T))).numpy()
  expected = model(ids, **arguments[scheme]).numpy()
  assert np.abs(actual - expected).max() < 1e-4 * actual.std()
  if scheme != "none":
    assert np.abs(actual - model(ids).numpy()).max() > 1e-2 * actual.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_claims_of_a_quick_experiment_hold(name, tmp_path):
  if name in DATA and not (SHARED / DATA[name]).exists():
    pytest.skip(f"the public data {DATA[name]} is not available")
  command = [sys.executable, f"experiments/{name}.py", "--quick", "-o", str(tmp_path)]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
  claims = json.loads((tmp_path / "results.json").read_text())["claims"]
  assert len(claims) > 1
  assert all(claims.values())
  assert any("control:" in claim for claim in claims)
