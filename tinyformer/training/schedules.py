"""Learning-rate schedules: the learning rate of each step, the first of which is 0."""

import math


def cosine_schedule(step: int, steps: int, warmup: int, peak: float) -> float:
  """Return the learning rate of a step: linear warmup, then cosine decay to a tenth of `peak`."""
  if step < warmup:
    return peak * (step + 1) / warmup
  return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def linear_schedule(step: int, steps: int, peak: float) -> float:
  """Return the learning rate of a step.

  It rises linearly to `peak` during the first tenth of the steps, then falls linearly to zero.
  """
  return peak * min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
