"""A ViT is fine-tuned on other classes (Dosovitskiy et al. 2021, sec. 3.2), from pixels."""

import numpy as np
import pytest
from conftest import randomise
from tinygrad import Tensor

from models import vit
from tinyformer import checkpoints
from tinyformer.training.trainer import Trainer

pytestmark = pytest.mark.slow  # It compiles a training step.
CLASSES = ["horizontal", "vertical", "chequered"]


def images(count, seed):
  """Return noisy images (count, 3, 12, 12) and their classes (count,).

  An image has horizontal stripes, vertical stripes or their product, with a random phase and color.
  """
  rng = np.random.default_rng(seed)
  classes = rng.integers(0, 3, count)
  phases = rng.uniform(0, 2 * np.pi, (2, count, 1))
  waves = np.sign(np.sin(np.arange(12) * np.pi / 2 + phases))
  horizontal = waves[0][:, :, None]
  vertical = waves[1][:, None, :]
  class_index = classes[:, None, None]
  other = np.where(class_index == 1, vertical, horizontal * vertical)
  patterns = np.where(class_index == 0, horizontal, other)
  colors = rng.normal(0, 1, (count, 3, 1, 1))
  noise = rng.normal(0, 0.3, (count, 3, 12, 12))
  pixels = patterns[:, None] * colors + noise
  return pixels.astype(np.float32), classes.astype(np.int32)


def fine_tuned(folder, shuffle):
  """Return the folder's model with a new head, trained for 150 steps on 32 new images each.

  shuffle: whether to permute the labels of each batch.
  """
  model = checkpoints.load_module(folder)
  model.new_head(CLASSES)

  def loss(pixels, classes):
    return model(pixels).sparse_categorical_crossentropy(classes)

  trainer = Trainer(model, loss)
  for step in range(150):
    pixels, classes = images(32, seed=step)
    labels = np.random.default_rng(step).permutation(classes) if shuffle else classes
    trainer.train_step(3e-3, pixels, labels)
  return model


def accuracy(model):
  pixels, classes = images(300, seed=1000)
  return (model(Tensor(pixels)).numpy().argmax(-1) == classes).mean()


def test_fine_tuning_learns_new_classes_unless_the_labels_are_shuffled(tmp_path):
  config = vit.ViTConfig(
    ("cat", "dog"), (12, 12), (4, 4), dim=48, heads=3, num_layers=1, ff_dim=48, eps=1e-6
  )
  model = vit.ViT(config)
  checkpoints.save(randomise(model), tmp_path / "old")
  model = fine_tuned(tmp_path / "old", shuffle=False)
  assert accuracy(model) > 0.95
  checkpoints.save(model, tmp_path / "new")
  reloaded = checkpoints.load_module(tmp_path / "new")
  assert reloaded.labels == CLASSES and accuracy(reloaded) == accuracy(model)
  assert accuracy(fine_tuned(tmp_path / "old", shuffle=True)) < 0.5
