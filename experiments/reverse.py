"""An encoder-decoder learns to reverse sequences; a decoder-only model predicts only reversals.

The model is the paper's, the sequences are ten random symbols. A reversal is exact if greedy
decoding gets every symbol right. Two controls train the encoder-decoder without the causal mask and
without positions. The decoder-only model reads a sequence and its reversal as one text.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from experiments import common, small
from experiments.small import (
  CHANCE_LOSS,
  NUM_SYMBOLS,
  START_ID,
  palindrome_batch,
  reversal_batch,
  token_losses,
)
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.fused import FusedLinear, attention, materialize
from tinyformer.training import plots
from transformer import (
  Block,
  Decoder,
  FeedForward,
  MultiHeadAttention,
  Transformer,
  causal_mask,
  learning_rate,
  loss,
  sinusoids,
)

DIM = 32
HEADS = 4
ENCODER_DECODER = "encoder-decoder"
NO_MASK = "no causal mask"
NO_POSITIONS = "no positions"
DECODER_ONLY = "decoder only"
DECODER_NO_MASK = "decoder only, no causal mask"

Results = dict[str, list[dict[str, Any]]]


def make_blocks(num_layers: int, is_decoder: bool) -> list[Block]:
  """Return the blocks of an encoder or a decoder, with parts that limit what tinygrad fuses."""

  def make_attention() -> MultiHeadAttention:
    return MultiHeadAttention(DIM, HEADS, FusedLinear, attention_fn=attention)

  def make_block() -> Block:
    attn = make_attention()
    ff = FeedForward(DIM, 4 * DIM, linear=FusedLinear)
    cross = make_attention() if is_decoder else None
    return Block(attn, ff, lambda: nn.LayerNorm(DIM), cross=cross)

  return [make_block() for _ in range(num_layers)]


class SmallTransformer(Transformer):
  """The paper's Transformer in the size of this experiment, without dropout."""

  def __init__(self, num_layers: int):
    super().__init__(NUM_SYMBOLS + 1, DIM, HEADS, 4 * DIM, num_layers=0, dropout=0)
    self.encoder.blocks = make_blocks(num_layers, is_decoder=False)
    self.decoder.blocks = make_blocks(num_layers, is_decoder=True)

  def embed(self, ids: Tensor) -> Tensor:
    return materialize(super().embed(ids))


class UnmaskedDecoder(Decoder):
  """A control without a causal mask, so that the input contains the answer."""

  def __init__(self, num_layers: int):
    super().__init__(num_layers=0)
    self.blocks = make_blocks(num_layers, is_decoder=True)

  def __call__(self, y: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
    for block in self.blocks:
      y = block(y, memory, memory_mask)
    return y


class NoPositions(SmallTransformer):
  """A control whose embeddings contain no positions."""

  def embed(self, ids: Tensor) -> Tensor:
    return materialize(self.tokens(ids) * math.sqrt(self.dim))


def make_unmasked(num_layers: int) -> Transformer:
  model = SmallTransformer(num_layers)
  model.decoder = UnmaskedDecoder(num_layers)
  return model


ENCODER_DECODERS: dict[str, Callable[[int], Transformer]] = {
  ENCODER_DECODER: SmallTransformer,
  NO_MASK: make_unmasked,
  NO_POSITIONS: NoPositions,
}
DECODER_MASKS: dict[str, Callable] = {
  DECODER_ONLY: causal_mask,
  DECODER_NO_MASK: lambda T, S: None,
}


class Size(NamedTuple):
  """The size of the experiment; controls train with one seed."""

  length: int
  num_layers: int
  steps: int
  num_seeds: int
  num_tests: int


def count_exact(model: Callable, source: np.ndarray) -> int:
  """Return how many of the sequences (B, S) greedy decoding reverses without an error."""
  predict = CompiledStep(lambda source, target: model(source, target).argmax(-1).realize())
  target = np.full((len(source), source.shape[1] + 1), START_ID, np.int32)
  for t in range(source.shape[1]):
    target[:, t + 1] = predict(source, target[:, :-1].copy())[:, t]
  return int((target[:, 1:] == source[:, ::-1]).all(1).sum())


def decoder_logits(model: small.Decoder, ids: Tensor) -> Tensor:
  """Return logits (B, T, V) of a decoder-only model with sinusoids."""
  return model(ids, sinusoids(ids.shape[1], DIM))


def run_config(size: Size, seed: int, batch: Callable[..., Any]) -> common.RunConfig:
  return common.RunConfig(
    size.steps,
    learning_rate=lambda step: learning_rate(step + 1, DIM, size.steps // 4),
    batch=lambda step: batch(size.length, seed, step),
    eval_interval=size.steps // 20,
  )


def train_encoder_decoder(experiment: common.Experiment, size: Size, name: str) -> list[dict]:
  """Return for each seed the training curve and the number of exact reversals."""
  trainer = common.MultiRunTrainer(
    functools.partial(ENCODER_DECODERS[name], size.num_layers),
    lambda model, source, read, target: loss(model(source, read), target, smoothing=0),
    betas=(0.9, 0.98),
  )

  def train_run(run: str, seed: int) -> dict[str, Any]:
    curve = trainer.train(experiment, run, seed, run_config(size, seed, reversal_batch))
    source = reversal_batch(size.length, seed, size.steps, count=size.num_tests)[0]
    return {"curve": curve, "exact": count_exact(trainer.model, source)}

  return run_seeds(experiment, size, name, train_run)


def train_decoder_only(experiment: common.Experiment, size: Size, name: str) -> list[dict]:
  """Return for each seed the training curve and the mean loss at each position."""
  trainer = common.MultiRunTrainer(
    lambda: small.Decoder(NUM_SYMBOLS + 1, DIM, HEADS, size.num_layers, mask=DECODER_MASKS[name]),
    lambda model, x, y: loss(decoder_logits(model, x), y, smoothing=0),
    betas=(0.9, 0.98),
  )

  def train_run(run: str, seed: int) -> dict[str, Any]:
    losses = token_losses(functools.partial(decoder_logits, trainer.model))
    curve = trainer.train(experiment, run, seed, run_config(size, seed, palindrome_batch))
    batch = palindrome_batch(size.length, seed, size.steps, count=size.num_tests)
    return {"curve": curve, "position_losses": losses(*batch).mean(0).tolist()}

  return run_seeds(experiment, size, name, train_run)


def run_seeds(
  experiment: common.Experiment, size: Size, name: str, train_run: Callable
) -> list[dict]:
  num_seeds = size.num_seeds if name in (ENCODER_DECODER, DECODER_ONLY) else 1
  runs = {
    seed: f"{name}, seed {seed}" for seed in range(experiment.seed, experiment.seed + num_seeds)
  }
  return [experiment.run_once(run, train_run, run, seed) for seed, run in runs.items()]


def exact_counts(results: Results, size: Size) -> dict[str, tuple[int, int]]:
  """Return the number of exact reversals and of test sequences, over all seeds."""
  return {
    name: (sum(run["exact"] for run in results[name]), size.num_tests * len(results[name]))
    for name in ENCODER_DECODERS
  }


def mean_position_losses(results: Results) -> dict[str, np.ndarray]:
  return {
    name: np.mean([run["position_losses"] for run in results[name]], 0) for name in DECODER_MASKS
  }


def half_losses(results: Results, size: Size) -> dict[str, tuple[float, float]]:
  """Return the decoder-only models' mean losses in the sequence and in its reversal."""
  return {
    name: (float(losses[: size.length].mean()), float(losses[size.length :].mean()))
    for name, losses in mean_position_losses(results).items()
  }


def print_results(results: Results, size: Size) -> None:
  rows = []
  for name, (exact, total) in exact_counts(results, size).items():
    final_loss = np.mean([run["curve"][-1][1] for run in results[name]])
    low, high = common.wilson_interval(exact, total)
    interval = f"{low:.1%} to {high:.1%}"
    rows.append([name, f"{final_loss:.4f}", f"{exact:,} of {total:,}", interval])
  common.print_table(["", "final train loss", "exact", "95% interval"], rows)
  common.print_table(
    ["nats per symbol", "in the sequence", "in its reversal"],
    [[name, *(f"{x:.3f}" for x in halves)] for name, halves in half_losses(results, size).items()],
  )


def draw(results: Results, size: Size, figure) -> None:
  left, right = figure.subplots(1, 2)
  for name, (exact, total) in exact_counts(results, size).items():
    curve = np.array(results[name][0]["curve"])
    left.semilogy(*curve.T[:2], label=f"{name}:\n{exact / total:.0%} exact")
  left.set(
    title="Without the causal mask, the loss is lower\nand most outputs are wrong",
    xlabel="step",
    ylabel="train loss, nats per symbol",
  )
  plots.label_lines(left, line_height=0.14)
  for name, losses in mean_position_losses(results).items():
    right.plot(range(1, 2 * size.length + 1), losses, ".-", label=name.replace(", ", ",\n"))
  right.axvline(size.length + 0.5, ls=":", c=plots.GRAY, lw=1)
  right.set(
    title="A decoder learns the reversal, and without\nthe mask also what cannot be known",
    xlabel="position: the sequence, then its reversal",
    ylabel="validation loss, nats per symbol",
  )
  plots.label_level(right, CHANCE_LOSS, f"chance: ln {NUM_SYMBOLS}", side="right")
  plots.label_lines(right, line_height=0.14)


def check_claims(results: Results, size: Size) -> dict[str, bool]:
  exact = {
    name: common.wilson_interval(*counts) for name, counts in exact_counts(results, size).items()
  }
  halves = half_losses(results, size)
  sequence_loss, reversal_loss = halves[DECODER_ONLY]
  lowest_loss = min(row[1] for row in results[NO_MASK][0]["curve"])
  return {
    "the encoder-decoder reverses more than 95% of new sequences": exact[ENCODER_DECODER][0] > 0.95,
    "control: without the causal mask its loss falls below 0.05, and most reversals are wrong": (
      lowest_loss < 0.05 and exact[NO_MASK][1] < 0.5
    ),
    "control: without positions it reverses less than a tenth": exact[NO_POSITIONS][1] < 0.1,
    "the decoder-only model learns the reversal, and stays at the chance level "
    f"ln {NUM_SYMBOLS} in the sequence": (
      reversal_loss < 0.1 and -0.02 < sequence_loss - CHANCE_LOSS < 0.15
    ),
    "control: without the causal mask it also predicts the sequence": (
      halves[DECODER_NO_MASK][0] < 0.1
    ),
  }


def main(argv: list[str] | None = None) -> int:
  args = common.argument_parser("reverse", __doc__).parse_args(argv)
  experiment = common.Experiment("reverse", args)
  size = Size(6, 1, 250, 1, 500) if experiment.quick else Size(10, 2, 600, 3, 1000)
  results: Results = {}
  for name in ENCODER_DECODERS:
    results[name] = train_encoder_decoder(experiment, size, name)
  for name in DECODER_MASKS:
    results[name] = train_decoder_only(experiment, size, name)
  print_results(results, size)
  experiment.save_figure(functools.partial(draw, results, size))
  return experiment.report_claims(check_claims(results, size))


if __name__ == "__main__":
  sys.exit(cli.run(main))
