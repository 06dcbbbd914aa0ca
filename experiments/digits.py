"""A small ViT trained on 9,000 digits makes 5% errors; shifts and weight decay reduce them to 2%.

The digits are MNIST's. Shifting the training images at random reduces the errors to 3%.
"""

import argparse
import functools
import gzip
import math
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tinygrad import nn

from experiments import common
from models.vit import ViT, ViTConfig
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.fused import attention
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.training.schedules import linear_schedule
from transformer import loss

BATCH_SIZE = 64
TEST_BATCH_SIZE = 500
WEIGHT_DECAY = 0.5
# The data types of idx files, by type code.
IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}

NEITHER = "neither"
SHIFTS = "shifts"
DECAY = "weight decay"
BOTH = "shifts and weight decay"
SHUFFLED_LABELS = "shuffled labels"

Results = dict[str, dict[str, Any]]
# A trainer, and a compiled step from pixels to the logits of its model.
TrainerAndForward = tuple[common.MultiRunTrainer, CompiledStep]


def read_idx(path: Path) -> np.ndarray:
  """Read the array in an idx file, which may be gzipped.

  The format is big-endian: two zero bytes, the type code, the number of dimensions, the size of
  each dimension, the data. Raises ValueError if the file does not match the format.
  """
  data = path.read_bytes()
  try:
    if data[:2] == b"\x1f\x8b":
      data = gzip.decompress(data)
  except (EOFError, OSError, zlib.error) as e:
    raise ValueError(f"{path} is not a complete gzip file: {e}") from e
  if (
    len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_DTYPES or len(data) < 4 + 4 * data[3]
  ):
    raise ValueError(f"{path} is not an idx file: it begins with the bytes {data[:4].hex(' ')}")
  shape = np.frombuffer(data, ">u4", data[3], 4).tolist()
  dtype = np.dtype(IDX_DTYPES[data[2]])
  header_size = 4 + 4 * data[3]
  expected_size = header_size + math.prod(shape) * dtype.itemsize
  if len(data) != expected_size:
    raise ValueError(
      f"{path} has {len(data):,} bytes, but an idx file of shape "
      f"{' x '.join(map(str, shape))} has {expected_size:,}"
    )
  return np.frombuffer(data, dtype, offset=header_size).reshape(shape)


def find_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Return the images (N, 28, 28) and labels (N) of a split, "train" or "t10k".

  Returns None if a file is missing. Raises ValueError if images and labels do not match.
  """
  paths = []
  for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
    candidates = (folder / f"{split}-{name}", folder / f"{split}-{name}.gz")
    path = next((p for p in candidates if p.exists()), None)
    if path is None:
      return None
    paths.append(path)
  images, labels = (read_idx(path) for path in paths)
  if images.shape != (len(labels), 28, 28) or labels.ndim != 1 or labels.max() > 9:
    raise ValueError(
      f"{paths[0]} and {paths[1]} do not contain 28 x 28 images with one label from 0 to 9 each: "
      f"their shapes are {images.shape} and {labels.shape}"
    )
  return images, labels


class Digits(NamedTuple):
  """Images (N, 28, 28) with values from 0 to 255, and labels (N) from 0 to 9."""

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray


def load_digits(folder: Path, download: bool) -> Digits:
  """Load MNIST from a folder, or download it.

  If the folder lacks the training images, a random nine tenths of the test images (seed 0) are the
  training set. The other tenth is the test set. Raises cli.UsageError if the folder contains
  neither split, and RuntimeError if the download fails.
  """
  if download:
    try:
      images, labels, test_images, test_labels = (t.numpy() for t in nn.datasets.mnist())
    except OSError as e:
      raise RuntimeError(f"tinygrad could not download MNIST: {e}") from e
    return Digits(images[:, 0], labels, test_images[:, 0], test_labels)
  test = find_split(folder, "t10k")
  train = find_split(folder, "train")
  if test is None:
    raise cli.UsageError(
      f"{folder} does not contain t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or .gz): "
      "choose the folder of MNIST's four files with --data, or use --download"
    )
  if train:
    return Digits(*train, *test)
  order = np.random.default_rng(0).permutation(len(test[0]))
  num_train = len(order) * 9 // 10
  cli.note(
    f"{folder} does not contain train-images-idx3-ubyte: training on {num_train:,} of the "
    f"{len(order):,} test images, testing on the rest"
  )
  train_indices, test_indices = np.split(order, [num_train])
  images, labels = test
  return Digits(
    images[train_indices], labels[train_indices], images[test_indices], labels[test_indices]
  )


def shift_images(images: np.ndarray, rng: np.random.Generator, max_shift: int = 2) -> np.ndarray:
  """Shift each image (B, H, W) by up to `max_shift` pixels along both axes; fill with 0."""
  padding = (max_shift, max_shift)
  padded = np.pad(images, ((0, 0), padding, padding))
  row_offsets, column_offsets = rng.integers(0, 2 * max_shift + 1, (2, len(images)))
  rows = row_offsets[:, None] + np.arange(images.shape[1])
  columns = column_offsets[:, None] + np.arange(images.shape[2])
  image_indices = np.arange(len(images))[:, None, None]
  return padded[image_indices, rows[:, :, None], columns[:, None, :]]


def normalize(images: np.ndarray) -> np.ndarray:
  """Scale images (B, H, W) from [0, 255] to [-1, 1] -> (B, 1, H, W)."""
  return (images[:, None] / 127.5 - 1).astype(np.float32)


def make_vit(num_layers: int) -> ViT:
  """Return a ViT with 16 patches of 7 x 7 pixels.

  ReLU replaces GELU, which would take longer on a CPU than the rest of the model. The reference
  implementation of attention is faster than the kernel for so few keys.
  """
  config = ViTConfig(
    labels=tuple(str(i) for i in range(10)),
    image=(28, 28),
    patch=(7, 7),
    channels=1,
    dim=64,
    heads=4,
    num_layers=num_layers,
    ff_dim=256,
    activation="relu",
  )
  return ViT(config, replace(CPU_KERNELS, attention=attention))


class DigitsExperiment:
  """Training runs on the same digits; runs with the same weight decay share a trainer."""

  def __init__(self, experiment: common.Experiment, digits: Digits):
    self.experiment = experiment
    self.digits = digits
    self.num_layers = 2 if experiment.quick else 4
    self.steps = 400 if experiment.quick else 2000
    self.learning_rate = 4e-3 if experiment.quick else 2e-3
    self.trainers: dict[float, TrainerAndForward] = {}

  def trainer(self, weight_decay: float) -> TrainerAndForward:
    if weight_decay not in self.trainers:
      trainer = common.MultiRunTrainer(
        functools.partial(make_vit, self.num_layers),
        lambda model, x, y: loss(model(x).unsqueeze(1), y, smoothing=0),
        weight_decay=weight_decay,
      )
      forward = CompiledStep(lambda x: trainer.model(x).realize())
      self.trainers[weight_decay] = trainer, forward
    return self.trainers[weight_decay]

  def train_run(
    self, run: str, labels: np.ndarray, shifts: bool, weight_decay: float
  ) -> dict[str, Any]:
    """Return the training curve and the number of test images classified correctly."""
    trainer, forward = self.trainer(weight_decay)
    seed = self.experiment.seed

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
      rng = np.random.default_rng([seed, step])
      i = rng.integers(0, len(labels), BATCH_SIZE)
      images = self.digits.train_images[i]
      images = shift_images(images, rng) if shifts else images
      return normalize(images), labels[i, None].astype(np.int32)

    config = common.RunConfig(
      self.steps,
      learning_rate=lambda step: linear_schedule(step, self.steps, self.learning_rate),
      batch=batch,
      eval_interval=50,
    )
    curve = trainer.train(self.experiment, run, seed, config)
    # The last batch is filled up with the first images.
    images = self.digits.test_images
    size = len(images)
    batches = [np.arange(i, i + TEST_BATCH_SIZE) % size for i in range(0, size, TEST_BATCH_SIZE)]
    predictions = np.concatenate([forward(normalize(images[b])).argmax(1) for b in batches])[:size]
    return {"curve": curve, "correct": int((predictions == self.digits.test_labels).sum())}

  def run(self) -> Results:
    """Return the results of all runs, by name."""
    labels = self.digits.train_labels
    shuffled_labels = np.random.default_rng(self.experiment.seed).permutation(labels)
    runs = [
      (NEITHER, labels, False, 0.0),
      (SHIFTS, labels, True, 0.0),
      (DECAY, labels, False, WEIGHT_DECAY),
      (BOTH, labels, True, WEIGHT_DECAY),
      (SHUFFLED_LABELS, shuffled_labels, False, WEIGHT_DECAY),
    ]
    return {
      run[0]: self.experiment.run_once(run[0], self.train_run, *run)
      for run in runs
      if not self.experiment.quick or run[0] in (DECAY, SHUFFLED_LABELS)
    }


def print_results(results: Results, total: int) -> None:
  rows = []
  for name, result in results.items():
    accuracy = common.format_accuracy(result["correct"], total)
    rows.append([name, accuracy, f"{result['curve'][-1][1]:.3f}"])
  common.print_table(["", "test accuracy", "train loss in the last 50 steps"], rows)


def draw(results: Results, total: int, figure) -> None:
  correct = {name: result["correct"] for name, result in results.items()}
  axes = figure.add_subplot(
    title="Random shifts and weight decay reduce the errors of a small ViT",
    xlabel=f"test accuracy on {total:,} digits, with its 95% confidence interval",
  )
  common.accuracy_bars(axes, correct, total, controls=(SHUFFLED_LABELS,))


def check_claims(results: Results, total: int, quick: bool) -> dict[str, bool]:
  threshold = 0.8 if quick else 0.9
  correct = {name: result["correct"] for name, result in results.items()}
  claims = {}
  for name in correct:
    if name != SHUFFLED_LABELS:
      low, _ = common.wilson_interval(correct[name], total)
      claims[f"{name}: test accuracy is above {threshold:.0%}"] = low > threshold
  claims["control: with shuffled labels it is below 20%"] = correct[SHUFFLED_LABELS] < 0.2 * total
  if not quick:
    claims["shifts improve the accuracy, with and without weight decay"] = (
      correct[SHIFTS] > correct[NEITHER] and correct[BOTH] > correct[DECAY]
    )
  return claims


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = common.argument_parser("digits", __doc__)
  p.add_argument(
    "--data",
    type=Path,
    default=Path("../shared/data/mnist"),
    help="folder of MNIST's idx files, which may be gzipped (default: %(default)s)",
  )
  p.add_argument(
    "--download",
    action="store_true",
    help="let tinygrad download MNIST: 60,000 training and 10,000 test images",
  )
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  digits = load_digits(args.data, args.download)
  experiment = common.Experiment("digits", args)
  runs = DigitsExperiment(experiment, digits)
  results = runs.run()
  total = len(digits.test_images)
  print(
    f"{len(digits.train_images):,} training images, {runs.steps:,} steps of {BATCH_SIZE} images; "
    f"accuracy on {total:,} test images, with its 95% confidence interval in brackets:\n"
  )
  print_results(results, total)
  experiment.save_figure(functools.partial(draw, results, total))
  return experiment.report_claims(check_claims(results, total, experiment.quick))


if __name__ == "__main__":
  sys.exit(cli.run(main))
