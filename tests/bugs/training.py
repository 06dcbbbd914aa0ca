"""Bugs planted in tinyformer/training; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "gradients of pieces added up, not averaged",
    "tinyformer/training/trainer.py",
    "Trainer.__init__.add",
    "+ g / pieces)",
    "+ g)",
    "trainer",
  ),
  Bug(
    "the gradient of the last step added to",
    "tinyformer/training/trainer.py",
    "Trainer.__init__.add",
    "s.assign(s * self.copied(keep) + g / pieces)",
    "s.assign(s + g / pieces)",
    "trainer",
  ),
  Bug(
    "random numbers that are the same in each step",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "for device in self.devices or (Device.DEFAULT,): "
    "Tensor._next_counter(Device.canonicalize(device), 0)",
    "pass",
    "trainer",
  ),
  Bug(
    "parameters kept in bfloat16",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "for p in params: p.replace(self.copied(p))",
    "for p in params: p.replace(self.copied(p).cast(dtypes.bfloat16).contiguous())",
    "mixed_precision",
  ),
  Bug(
    "a word counted as often as it is said",
    "tinyformer/training/metrics.py",
    "bleu",
    "(grams(t, n) & grams(r, n)).total()",
    "sum(c for g, c in grams(t, n).items() if g in grams(r, n))",
    "metrics",
  ),
  Bug(
    "no brevity penalty",
    "tinyformer/training/metrics.py",
    "bleu",
    "min(0.0, 1 - wanted / length)",
    "0",
    "metrics",
  ),
  Bug(
    "a half for every length without a hit",
    "tinyformer/training/metrics.py",
    "bleu",
    "half /= 2",
    "half = 0.5",
    "metrics",
  ),
]
