"""Planted bugs of tinyformer/training; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "accumulated gradients are summed, not averaged",
    "tinyformer/training/trainer.py",
    "Trainer.accumulate",
    "mean = p.grad / self.config.grad_accum_steps",
    "mean = p.grad",
    "trainer",
  ),
  Bug(
    "accumulated gradients of the previous step are not reset",
    "tinyformer/training/trainer.py",
    "Trainer.accumulate",
    "s.assign(s * self.replicate(keep_sums) + mean)",
    "s.assign(s + mean)",
    "trainer",
  ),
  Bug(
    "dropout uses the same random numbers in each step",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "random_state.create_generators(config.devices)",
    "pass",
    "trainer",
  ),
  Bug(
    "the parameters are stored in bfloat16",
    "tinyformer/training/trainer.py",
    "Trainer.__init__",
    "for p in self.params: p.replace(self.replicate(p))",
    "for p in self.params: p.replace(self.replicate(p).cast('bfloat16').contiguous())",
    "mixed_precision",
  ),
  Bug(
    "a parameter without a gradient decays",
    "tinyformer/training/optimizer.py",
    "AdamW.step",
    "if p.grad is None: continue",
    "if p.grad is None: p.grad = p.zeros_like()",
    "trainer",
  ),
  Bug(
    "a parameter without a gradient shifts the gradients of the others",
    "tinyformer/training/trainer.py",
    "Trainer.backward",
    "return self.loss(*self.split_across_devices(batch)).backward()",
    "value = self.loss(*self.split_across_devices(batch)).backward()\n"
    "    gradients = [p.grad for p in self.params if p.grad is not None]\n"
    "    for p, g in zip(self.params, gradients, strict=False):\n"
    "      p.grad = g\n"
    "    return value",
    "trainer",
  ),
  Bug(
    "the last step is not evaluated",
    "tinyformer/training/trainer.py",
    "train",
    "or run.step == run.steps",
    "",
    "trainer",
  ),
  Bug(
    "an interrupted run is not saved",
    "tinyformer/training/trainer.py",
    "train",
    "if run.step < run.steps: run.save()",
    "pass",
    "trainer",
  ),
  Bug(
    "the cosine schedule decays to zero",
    "tinyformer/training/schedules.py",
    "cosine_schedule",
    "(0.55 + 0.45 * math.cos",
    "(0.5 + 0.5 * math.cos",
    "schedules",
  ),
  Bug(
    "the linear schedule reaches its peak in the middle",
    "tinyformer/training/schedules.py",
    "linear_schedule",
    "min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))",
    "min((step + 1) / (0.5 * steps), (steps - step) / (0.5 * steps))",
    "schedules",
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
