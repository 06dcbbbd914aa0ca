"""Planted bugs of tinyformer/training; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "accumulated gradients are summed, not averaged",
    "tinyformer/training/trainer.py",
    "Trainer.accumulate",
    "+ g / self.grad_accum_steps)",
    "+ g)",
    "trainer",
  ),
  Bug(
    "accumulated gradients of the previous step are not reset",
    "tinyformer/training/trainer.py",
    "Trainer.accumulate",
    "s.assign(s * self.replicate(previous) + g / self.grad_accum_steps)",
    "s.assign(s + g / self.grad_accum_steps)",
    "trainer",
  ),
  Bug(
    "dropout uses the same random numbers in each step",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "for device in self.devices or (Device.DEFAULT,): "
    "Tensor._next_counter(Device.canonicalize(device), 0)",
    "pass",
    "trainer",
  ),
  Bug(
    "the parameters are stored in bfloat16",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "for p in self.params: p.replace(self.replicate(p))",
    "for p in self.params: p.replace(self.replicate(p).cast(dtypes.bfloat16).contiguous())",
    "mixed_precision",
  ),
  Bug(
    "n-gram counts are not clipped to those of the reference",
    "tinyformer/training/metrics.py",
    "bleu",
    "(ngrams(t, n) & ngrams(r, n)).total()",
    "sum(c for g, c in ngrams(t, n).items() if g in ngrams(r, n))",
    "metrics",
  ),
  Bug(
    "BLEU has no brevity penalty",
    "tinyformer/training/metrics.py",
    "bleu",
    "min(0.0, 1 - reference_length / length)",
    "0",
    "metrics",
  ),
  Bug(
    "every n-gram order without a match counts half a match",
    "tinyformer/training/metrics.py",
    "bleu",
    "smoothed_matches /= 2",
    "smoothed_matches = 0.5",
    "metrics",
  ),
]
