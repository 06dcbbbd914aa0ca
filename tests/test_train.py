"""train.py: resuming, checkpoints and settings."""

import csv
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from tinygrad import Tensor, nn

import train
from tinyformer import cli
from tinyformer.checkpoints import hub, load_module
from tinyformer.checkpoints.safetensors import read_metadata, read_safetensors, write_safetensors
from tinyformer.cli.folder_lock import FolderLock
from tinyformer.cli.training_arguments import parse_arguments
from tinyformer.cli.training_model import make_model
from tinyformer.kernels.mixed_precision import MixedEmbedding, MixedLinear, attention
from tinyformer.tokenization import load_tokenizer
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.tokenization.tokenizer_json import JSONTokenizer
from tinyformer.training import random_state
from tinyformer.training.batches import windows
from tinyformer.training.documents import read_documents, train_val_split

SMALL = [
  "--vocab",
  "300",
  "--dim",
  "16",
  "--heads",
  "2",
  "--layers",
  "1",
  "--context",
  "16",
  "--batch",
  "4",
  "--warmup",
  "5",
  "--eval-interval",
  "10",
  "--lr",
  "1e-2",
  "--sample",
  "0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  rng, words = (
    random.Random(0),
    ["the", "king", "queen", "had", "saw", "a", "golden", "ball", "horse", "and", "in", "wood"],
  )
  path = tmp_path_factory.mktemp("data") / "tales.txt"
  path.write_text(
    "<|endoftext|>".join(" ".join(rng.choice(words) for _ in range(60)) for _ in range(60))
  )
  return path


def content(path):
  """Return a hash: pytest would print every byte of two files that differ."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def log(out):
  return [
    {name: value for name, value in row.items() if name != "seconds"}
    for row in csv.DictReader((out / "log.csv").read_text().splitlines())
  ]


@pytest.fixture(scope="module", autouse=True)
def no_picture():
  """Do not draw the losses: it takes a fifth of a second. tests/test_plot_loss.py draws them."""
  with pytest.MonkeyPatch.context() as m:
    m.setitem(sys.modules, "matplotlib.figure", None)
    yield


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  out = tmp_path_factory.mktemp("run") / "whole"
  assert (
    train.main(
      [str(data), "-o", str(out), *SMALL, "--steps", "40", "--sample", "5", "--dropout", "0.2"]
    )
    == 0
  )
  return out


def test_training_lowers_the_validation_loss(finished):
  rows = log(finished)
  assert [r["step"] for r in rows] == ["10", "20", "30", "40"]
  assert float(rows[-1]["val_loss"]) < 0.8 * float(rows[0]["val_loss"])


def test_the_output_folder_can_be_loaded(finished):
  model, tokenizer = load_module(finished), BytePairEncoding.load(finished)
  assert (
    model.vocab_size == len(tokenizer)
    and json.loads((finished / "config.json").read_text())["eos_token_id"] == tokenizer.end
  )
  assert model(Tensor([tokenizer.encode("the king")])).shape[-1] == model.vocab_size


def test_bits_per_byte_are_those_of_the_validation_text(finished, data):
  _, held = train_val_split(read_documents([data]), 1337)
  tokens = len(BytePairEncoding.load(finished).encode_documents(held))
  last = log(finished)[-1]
  assert float(last["bits_per_byte"]) == pytest.approx(
    float(last["val_loss"]) * tokens / sum(len(d.encode()) for d in held) / math.log(2), abs=1e-3
  )


@pytest.mark.parametrize("stopped_at", [17, pytest.param(10, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one(
  data, finished, tmp_path, monkeypatch, stopped_at
):
  def stop(bar, done, *_):
    if done == stopped_at:
      os.kill(os.getpid(), signal.SIGINT)

  with monkeypatch.context() as m:
    m.setattr(cli.Bar, "__call__", stop)
    assert (
      train.main(
        [str(data), "-o", str(tmp_path / "x"), *SMALL, "--steps", "40", "--dropout", "0.2"]
      )
      == 130
    )
  assert train.main([str(data), "-o", str(tmp_path / "x"), "--resume"]) == 0
  assert content(tmp_path / "x" / "model.safetensors") == content(finished / "model.safetensors")
  assert log(tmp_path / "x") == log(finished)


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(data, finished, tmp_path):
  out = tmp_path / "x"
  p = subprocess.Popen(
    [
      sys.executable,
      "train.py",
      str(data),
      "-o",
      str(out),
      *SMALL,
      "--steps",
      "40",
      "--dropout",
      "0.2",
    ],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  while not (out / "last" / "model.safetensors").exists() and p.poll() is None:
    time.sleep(0.01)
  p.send_signal(signal.SIGKILL)
  p.wait()
  assert (
    train.main([str(data), "-o", str(out), *SMALL, "--steps", "40", "--dropout", "0.2", "--resume"])
    == 0
  )
  assert content(out / "model.safetensors") == content(finished / "model.safetensors")


def test_a_kill_during_a_write_leaves_loadable_folders(data, finished, tmp_path, monkeypatch):
  """Copy the folder whenever a file is about to be renamed: this is what a kill would leave."""
  out, renamed, fsync = tmp_path / "x", list[str](), os.fsync

  def copy_folder(number):
    fsync(number)
    shutil.copytree(out, tmp_path / str(len(renamed)))
    renamed.append(next(f.name for f in out.rglob(".*.part")))

  with monkeypatch.context() as m:
    m.setattr(os, "fsync", copy_folder)
    train.main([str(data), "-o", str(out), *SMALL, "--steps", "40", "--eval-interval", "20"])
  for i in range(len(renamed)):
    for folder in (tmp_path / str(i), tmp_path / str(i) / "last"):
      if (folder / "model.safetensors").exists():
        assert hub.is_complete(folder) and load_module(folder).vocab_size == len(
          BytePairEncoding.load(folder)
        )
  # Here the best and the last model are those of step 40, but the training state is of step 20.
  last = max(i for i, name in enumerate(renamed) if ".training." in name)
  assert train.main([str(data), "-o", str(tmp_path / str(last)), "--resume"]) == 0
  assert not list((tmp_path / str(last)).rglob(".*.part"))
  for folder in (".", "last"):
    assert content(tmp_path / str(last) / folder / "model.safetensors") == content(
      out / folder / "model.safetensors"
    )


def test_the_best_and_the_last_model_are_saved(data, finished, tmp_path, monkeypatch):
  losses = iter([3.0, 2.0, 2.5])
  monkeypatch.setattr("tinyformer.training.trainer.Trainer.evaluate", lambda *_: next(losses))
  monkeypatch.setattr(
    "tinyformer.training.batches.eval_batches", lambda windows, limit, batch: windows[None, :batch]
  )
  best, last, hashes, notes = (
    tmp_path / "x" / "model.safetensors",
    tmp_path / "x" / "last" / "model.safetensors",
    list[str](),
    list[str](),
  )

  def note(text: str) -> None:
    notes.append(text)
    if text.startswith("step 30"):
      hashes.append(content(last))

  monkeypatch.setattr(cli, "note", note)
  monkeypatch.setattr(cli, "fancy", lambda _: True)
  train.main([str(data), "-o", str(tmp_path / "x"), *SMALL, "--steps", "30"])
  # When step 30 is reported, the last model is still that of step 20.
  assert content(best) == hashes[0] != content(last)
  # Without matplotlib, the losses are drawn in the terminal.
  assert notes[-1].startswith("  3.000 █") and not (tmp_path / "x" / "loss.png").exists()


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


def test_the_output_folder_has_the_files_that_other_programs_read(data, finished):
  tokenizer = BytePairEncoding.load(finished)
  for folder in (finished, finished / "last"):
    config = read_json(folder / "config.json")
    assert config["n_ctx"] == config["n_positions"] == 16
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["model_max_length"] == 16
    assert settings["eos_token"] == "<|endoftext|>"
    assert read_json(folder / "generation_config.json")["eos_token_id"] == tokenizer.end
  same = load_tokenizer(finished)
  assert isinstance(same, JSONTokenizer)
  for text in [data.read_text(), " “Naïve”\n\n  2nd<|endoftext|>日本 🙂 \t don't"]:
    for special in ((), ("<|endoftext|>",)):
      spans = tokenizer.encode_with_offsets(text, special)
      assert same.encode_with_offsets(text, special) == spans
      assert same.decode(same.encode(text, special)) == tokenizer.decode(i for i, _, _ in spans)


def test_the_settings_of_a_copied_tokenizer_remain_except_its_length(
  data, finished, tmp_path, monkeypatch
):
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  source = tmp_path / "source"
  source.mkdir()
  for name in ("config.json", "vocab.json", "merges.txt"):
    shutil.copy(finished / name, source)
  config = {"model_max_length": 1024, "chat_template": "{{ messages }}"}
  (source / "tokenizer_config.json").write_text(json.dumps(config))
  args = [*SMALL[2:], "--steps", "1", "--tokens", str(source)]
  assert train.main([str(data), "-o", str(tmp_path / "x"), *args]) == 0
  settings = read_json(tmp_path / "x" / "tokenizer_config.json")
  assert settings["model_max_length"] == 16
  assert settings["chat_template"] == "{{ messages }}"
  written = read_json(tmp_path / "x" / "tokenizer.json")
  assert written == read_json(finished / "tokenizer.json")
  # A tokenizer.json is copied, not written again.
  (source / "tokenizer.json").write_text(json.dumps(written | {"version": "0.9"}))
  assert train.main([str(data), "-o", str(tmp_path / "y"), *args]) == 0
  assert read_json(tmp_path / "y" / "tokenizer.json")["version"] == "0.9"


def test_init_starts_from_a_checkpoint(data, finished, tmp_path, capsys):
  def main(*more):
    return train.main(
      [
        str(data),
        "-o",
        str(tmp_path / "x"),
        "--init",
        str(finished),
        "--batch",
        "4",
        "--eval-interval",
        "1",
        *more,
      ]
    )

  assert main("--steps", "1", "--lr", "0", "--sample", "5", "--smoothing", "0.5") == 0
  assert "\n  | " in capsys.readouterr().err
  for name in ("model.safetensors", "vocab.json", "merges.txt", "config.json"):
    assert (
      content(tmp_path / "x" / "last" / name)
      == content(tmp_path / "x" / name)
      == content(finished / name)
    ), name
  assert log(tmp_path / "x")[0]["val_loss"] == min(r["val_loss"] for r in log(finished))
  # The validation loss is not smoothed.
  assert float(log(tmp_path / "x")[0]["train_loss"]) > float(log(finished)[-1]["train_loss"]) + 0.5
  shutil.rmtree(tmp_path / "x")
  for wrong in (
    ["--vocab", "400"],
    ["--dim", "32"],
    ["--layers", "2"],
    ["--heads", "1"],
    ["--context", "17"],
    ["--tokens", "characters"],
  ):
    with pytest.raises(cli.UsageError, match="--init"):
      main(*wrong)
  assert not (tmp_path / "x").exists()
  with pytest.raises(cli.UsageError, match="bert"):
    train.main(
      [str(data), "-o", str(tmp_path / "x"), "--init", str(bert(tmp_path / "bert", finished))]
    )


def bert(folder, finished):
  folder.mkdir()
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(finished / name, folder)
  (folder / "config.json").write_text('{"model_type": "bert"}')
  return folder


def test_tokens_may_be_characters_or_another_models(data, finished, tmp_path, monkeypatch):
  args = [*SMALL[2:], "--steps", "1"]
  assert train.main([str(data), "-o", str(tmp_path / "c"), *args, "--tokens", "characters"]) == 0
  assert (
    load_module(tmp_path / "c").vocab_size == 257
    and len(BytePairEncoding.load(tmp_path / "c").encode("a ball")) == 6
  )
  # The initial loss is that of a uniform prediction.
  assert float(log(tmp_path / "c")[0]["train_loss"]) == pytest.approx(math.log(257), rel=0.02)
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  assert train.main([str(data), "-o", str(tmp_path / "f"), *args, "--tokens", str(finished)]) == 0
  assert BytePairEncoding.load(tmp_path / "f").vocab == BytePairEncoding.load(finished).vocab
  with pytest.raises(cli.UsageError, match="--tokens characters has --vocab 257, not 300"):
    train.main([str(data), "-o", str(tmp_path / "x"), "--tokens", "characters", "--vocab", "300"])


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--batch", "2", "--grad-accum-steps", "2"], ["--devices", "2"]])
def test_gradient_accumulation_and_devices_equal_one_batch(data, tmp_path, capsys, way):
  for name, more in (("one", []), ("x", way)):
    assert (
      train.main(
        [str(data), "-o", str(tmp_path / name), *SMALL, "--steps", "40", "--sample", "5", *more]
      )
      == 0
    )
  assert capsys.readouterr().err.count("\n  | ") == 8
  one, other = log(tmp_path / "one"), log(tmp_path / "x")
  assert [r["tokens"] for r in other] == [r["tokens"] for r in one]
  assert [float(r["train_loss"]) for r in other] == pytest.approx(
    [float(r["train_loss"]) for r in one], abs=1e-3
  )


class Idle:
  """A trainer that only counts its steps. Its 15th loss is NaN."""

  steps = 0

  def __init__(self, model, *_, **__):
    random_state.create_generators()
    self.state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}

  def evaluate(self, *_):
    return 1.0

  def replicate(self, t):
    return t

  def copy_to(self, model):
    model.steps = self.steps

  def train_step(self, *_):
    self.steps += 1
    return 1.0 if self.steps < 15 else math.nan


def test_a_run_resumed_with_another_interval_evaluates_a_step_that_it_makes_due(
  data, tmp_path, monkeypatch
):
  """The run stops after step 3, before its first evaluation. An interval of 3 makes step 3 due."""
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  command = [str(data), "-o", str(tmp_path / "x"), "--steps", "10"]

  def stop(bar, done, *_):
    if done == 3:
      os.kill(os.getpid(), signal.SIGINT)

  with monkeypatch.context() as m:
    m.setattr(cli.Bar, "__call__", stop)
    assert train.main([*command, *SMALL]) == 130
  assert not (tmp_path / "x" / "log.csv").exists()
  assert train.main([*command, "--resume", "--eval-interval", "3"]) == 0
  assert [r["step"] for r in log(tmp_path / "x")] == ["3", "6", "9", "10"]


def test_a_termination_saves_a_checkpoint_and_sets_the_status(data, tmp_path, monkeypatch):
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  command = [str(data), "-o", str(tmp_path / "x"), *SMALL, "--steps", "10"]

  def stop(bar, done, *_):
    if done == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as m:
    m.setattr(cli.Bar, "__call__", stop)
    assert train.main(command) == 128 + signal.SIGTERM
  progress = read_metadata(tmp_path / "x" / "training.safetensors")["training"]
  assert json.loads(progress)["step"] == 3


def test_samples_use_the_weights_trained_on_several_devices(data, tmp_path, monkeypatch):
  """At each evaluation the sampling model gets the trained weights."""
  seen = list[int]()
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  monkeypatch.setattr("tinyformer.generation.Engine", lambda model: SimpleNamespace(model=model))
  monkeypatch.setattr(
    "tinyformer.generation.generate",
    lambda reader, *_, **__: iter(seen.append(reader.model.steps) or ()),
  )
  assert (
    train.main(
      [
        str(data),
        "-o",
        str(tmp_path / "x"),
        *SMALL,
        "--devices",
        "2",
        "--steps",
        "3",
        "--eval-interval",
        "1",
        "--sample",
        "5",
      ]
    )
    == 0
  )
  assert seen == [1, 2, 3]


def test_a_batch_that_devices_cannot_share_is_a_usage_error(data, tmp_path):
  with pytest.raises(cli.UsageError, match="a batch of 4 cannot be shared by 3 devices"):
    train.main([str(data), "-o", str(tmp_path / "x"), *SMALL, "--devices", "3"])


def test_precision_may_be_bfloat16_but_not_float16(data, finished, tmp_path):
  args = parse_arguments([str(data), "-o", str(finished), "--resume", "--precision", "bfloat16"])
  model = make_model(args, [])[0]
  assert (
    isinstance(model.blocks[0].ff.up, MixedLinear)
    and model.blocks[0].attn.attention_fn is attention
    and isinstance(model.tokens, MixedEmbedding)
  )
  with pytest.raises(cli.UsageError, match="small gradients"):
    train.main([str(data), "-o", str(tmp_path / "x"), "--precision", "float16"])
  with pytest.raises(cli.UsageError, match=r"the run was started with --precision float32"):
    train.main([str(data), "-o", str(finished), "--resume", "--precision", "bfloat16"])


@pytest.mark.slow
def test_a_bfloat16_run_is_close_to_float32_and_can_be_resumed(
  data, finished, tmp_path, monkeypatch, capsys
):
  def main(out, *more):
    return train.main(
      [
        str(data),
        "-o",
        str(tmp_path / out),
        *SMALL,
        "--steps",
        "40",
        "--dropout",
        "0.2",
        "--precision",
        "bfloat16",
        *more,
      ]
    )

  assert main("full") == 0 and "a CPU rounds to bfloat16" in capsys.readouterr().err
  for column in ("train_loss", "val_loss"):
    actual, expected = (
      [float(r[column]) for r in log(out)] for out in (tmp_path / "full", finished)
    )
    assert actual != expected and actual == pytest.approx(expected, rel=0.01)

  def stop(bar, done, *_):
    if done == 17:
      os.kill(os.getpid(), signal.SIGINT)

  with monkeypatch.context() as m:
    m.setattr(cli.Bar, "__call__", stop)
    assert main("x") == 130
  assert main("x", "--resume") == 0
  assert log(tmp_path / "x") == log(tmp_path / "full")
  for file in ("model.safetensors", "training.safetensors"):
    assert content(tmp_path / "x" / file) == content(tmp_path / "full" / file)
  assert (
    read_safetensors(tmp_path / "x" / "training.safetensors")["model.tokens.weight"].numpy().dtype
    == np.float32
  )


def test_an_existing_run_is_not_overwritten(data, finished, tmp_path):
  with pytest.raises(cli.UsageError, match="--resume, or name another folder"):
    train.main([str(data), "-o", str(finished), *SMALL])
  with pytest.raises(cli.UsageError, match=r"the run was started with --lr 0.01"):
    train.main([str(data), "-o", str(finished), "--lr", "0.5", "--resume"])
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "vocab.json").write_text("{}")
  with pytest.raises(cli.UsageError, match=r"already contains vocab.json: name another folder"):
    train.main([str(data), "-o", str(tmp_path / "model"), *SMALL])
  with pytest.raises(cli.UsageError, match="does not exist"):
    train.main([str(data), "-o", str(tmp_path / "x"), *SMALL, "--resume"])


def test_a_folder_to_which_another_run_is_writing_is_refused(data, finished, tmp_path):
  with FolderLock(finished):
    for more in (SMALL, ["--resume"]):
      with pytest.raises(cli.UsageError, match=r"another run \(process \d+\) is writing to"):
        train.main([str(data), "-o", str(finished), *more])


def test_a_run_killed_before_its_first_evaluation_can_be_resumed_or_started_again(
  data, tmp_path, monkeypatch
):
  """Copy the folder whenever a file is about to be renamed: this is what a kill would leave.

  The run is started again with another vocabulary.
  """
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  out = tmp_path / "x"
  copies = list[Path]()
  fsync = os.fsync

  def copy_folder(number):
    fsync(number)
    copies.append(tmp_path / str(len(copies)))
    shutil.copytree(out, copies[-1])

  with monkeypatch.context() as m:
    m.setattr(os, "fsync", copy_folder)
    assert train.main([str(data), "-o", str(out), *SMALL, "--steps", "1"]) == 0
  before_evaluation = [copy for copy in copies if not (copy / "model.safetensors").exists()]
  assert 3 < len(before_evaluation) < len(copies)
  for copy in before_evaluation:
    other = tmp_path / f"{copy.name} again"
    shutil.copytree(copy, other)
    checkpoint = copy / "training.safetensors"
    if checkpoint.exists() and (copy / "last" / "model.safetensors").exists():
      assert train.main([str(data), "-o", str(copy), "--resume"]) == 0
      assert log(copy) == log(out)
      assert content(copy / "last" / "model.safetensors") == content(
        out / "last" / "model.safetensors"
      )
    else:
      with pytest.raises(cli.UsageError, match="start the run again without --resume"):
        train.main([str(data), "-o", str(copy), "--resume"])
    if (other / "last").exists():
      (other / "last" / "special_tokens_map.json").write_text("of the first run")
    command = [str(data), "-o", str(other), *SMALL[2:], "--steps", "1", "--tokens", "characters"]
    assert train.main(command) == 0
    assert not list(other.rglob("special_tokens_map.json"))
    for folder in (other, other / "last"):
      assert load_module(folder).vocab_size == len(BytePairEncoding.load(folder)) == 257


def test_a_checkpoint_that_train_did_not_write_is_refused(data, finished, tmp_path):
  out = tmp_path / "x"
  file = out / "training.safetensors"
  shutil.copytree(finished, out)
  tensors = {name: t.numpy() for name, t in read_safetensors(file).items()}
  metadata = read_metadata(file)
  progress = json.loads(metadata["training"])
  del metadata["format"]
  wrong_shape = tensors | {"model.norm.weight": np.ones(3, np.float32)}
  for arrays, entry, message in (
    (tensors, {}, "no valid entry 'training'"),
    (tensors, {"training": "{"}, "no valid entry 'training'"),
    (tensors, {"training": "[]"}, "must be an object"),
    (tensors, {"training": json.dumps(progress | {"step": "1"})}, "'step' is '1' instead of int"),
    (tensors, {"training": json.dumps(progress | {"rng_state": {"X": 1}})}, "generated on X"),
    (wrong_shape, metadata, r"has the shape \(3,\) for model.norm.weight"),
    ({}, metadata, "has no value for model"),
  ):
    write_safetensors(file, arrays, entry)
    with pytest.raises(ValueError, match=message):
      train.main([str(data), "-o", str(out), "--resume"])


def test_resume_requires_the_same_text(data, finished, tmp_path):
  (tmp_path / "other.txt").write_text(data.read_text() + " more")
  with pytest.raises(cli.UsageError, match="not the text on which"):
    train.main([str(tmp_path / "other.txt"), "-o", str(finished), "--resume"])


def test_a_nan_loss_stops_the_run(data, tmp_path):
  with pytest.raises(ValueError, match=r"the loss of step .* is (nan|inf)"):
    train.main([str(data), "-o", str(tmp_path / "x"), *SMALL, "--lr", "1000", "--clip", "1e9"])


def test_a_nan_loss_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
  monkeypatch.setattr("tinyformer.training.trainer.Trainer", Idle)
  with pytest.raises(
    ValueError,
    match=r"the loss of step 15 is nan: .*training.safetensors is the last good checkpoint",
  ):
    train.main([str(data), "-o", str(tmp_path / "x"), *SMALL])
  assert (
    json.loads(read_metadata(tmp_path / "x" / "training.safetensors")["training"])["step"] == 10
  )
  assert [r["step"] for r in log(tmp_path / "x")] == ["10"] and load_module(
    tmp_path / "x" / "last"
  ).vocab_size > 256


@pytest.mark.parametrize(
  "flag",
  [
    ("--eval-interval", "0"),
    ("--heads", "0"),
    ("--batch", "0"),
    ("--steps", "-5"),
    ("--lr", "nan"),
    ("--lr", "inf"),
    ("--dim", "10000000"),
    ("--vocab", "256"),
    ("--dropout", "2"),
  ],
)
def test_an_invalid_value_of_an_option_is_a_usage_error(data, flag, capsys):
  with pytest.raises(SystemExit) as e:
    train.main([str(data), *flag])
  assert e.value.code == 2 and "is not a number from" in capsys.readouterr().err


def test_a_model_that_cannot_fit_in_memory_is_a_usage_error(data, capsys):
  assert cli.run(lambda: train.main([str(data), "--dim", "65536", "--layers", "1000"])) == 2
  assert "GB of memory, but this machine has" in capsys.readouterr().err


def test_windows_use_each_token_once_as_a_target():
  sequences = windows(np.arange(11), 3)
  assert sequences.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_a_text_shorter_than_the_context_is_rejected(tmp_path):
  (tmp_path / "a.txt").write_text("hello")
  with pytest.raises(ValueError, match="too short"):
    train.main([str(tmp_path / "a.txt"), "-o", str(tmp_path / "x"), *SMALL])
