"""A trained Vision Transformer is taught other classes (Dosovitskiy et al. 2021, sec. 3.2), from pixels."""

import numpy as np
import pytest
from conftest import randomise
from tinygrad import Tensor

from models import vit
from tinyformer import checkpoints
from tinyformer.training.trainer import Trainer

pytestmark = pytest.mark.slow  # it compiles a step of learning
CLASSES = ["across", "down", "chequered"]


def pictures(count, seed):
  """Noise with stripes across, stripes down, or both, that begin anywhere, in a colour of their own: (count, 3, 12, 12), and their classes (count,)."""
  draw = np.random.default_rng(seed)
  kinds, waves = (
    draw.integers(0, 3, count),
    np.sign(np.sin(np.arange(12) * np.pi / 2 + draw.uniform(0, 2 * np.pi, (2, count, 1)))),
  )
  across, down = waves[0][:, :, None], waves[1][:, None, :]
  shapes = np.where(
    kinds[:, None, None] == 0, across, np.where(kinds[:, None, None] == 1, down, across * down)
  )
  return (
    shapes[:, None] * draw.normal(0, 1, (count, 3, 1, 1)) + draw.normal(0, 0.3, (count, 3, 12, 12))
  ).astype(np.float32), kinds.astype(np.int32)


def taught(folder, shuffled):
  """The folder's model with a new head after 150 steps, each on 32 pictures of its own, with their labels or with these shuffled."""
  model = checkpoints.load_module(folder)
  model.new_head(CLASSES)
  learner = Trainer(
    model, lambda pixels, kinds: model(pixels).sparse_categorical_crossentropy(kinds)
  )
  for step in range(150):
    pixels, kinds = pictures(32, seed=step)
    learner.train_step(
      3e-3, pixels, np.random.default_rng(step).permutation(kinds) if shuffled else kinds
    )
  return model


def accuracy(model):
  pixels, kinds = pictures(300, seed=1000)
  return (model(Tensor(pixels)).numpy().argmax(-1) == kinds).mean()


def test_it_learns_other_classes_and_is_saved_with_them(tmp_path):
  """Of shuffled labels it learns nothing."""
  vit.save(
    randomise(
      vit.ViT(["cat", "dog"], (12, 12), (4, 4), dim=48, heads=3, num_layers=1, ff_dim=48, eps=1e-6)
    ),
    tmp_path / "old",
  )
  model = taught(tmp_path / "old", shuffled=False)
  assert accuracy(model) > 0.95
  vit.save(model, tmp_path / "new")
  again = checkpoints.load_module(tmp_path / "new")
  assert again.labels == CLASSES and accuracy(again) == accuracy(model)
  assert accuracy(taught(tmp_path / "old", shuffled=True)) < 0.5
