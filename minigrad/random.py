"""Random numbers that depend only on a seed and on how many draws were made before.

These two numbers are the whole state, so a checkpoint of training can store them.
"""

import numpy as np

state = {"seed": 0, "draws": 0}


def manual_seed(seed: int = 0) -> None:
  """Start again from a seed."""
  state.update(seed=seed, draws=0)


def generator() -> np.random.Generator:
  """Return numpy's generator for the next draw: one call that creates random numbers."""
  state["draws"] += 1
  return np.random.default_rng([state["seed"], state["draws"]])
