"""The Transformer learns to translate German captions; from shuffled pairs it learns only English.

The captions are Multi30k's. The control trains on sources that are shuffled against their targets.
"""

import argparse
import functools
import gzip
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor

from experiments import common
from layers.attention import CachedAttention
from tinyformer import cli
from tinyformer.files import write_text
from tinyformer.generation import generate_seq2seq
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.kernels.attention import attention
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.cross_entropy import loss
from tinyformer.kernels.fused import materialize
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.linear import PackedLinear
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training import plots
from tinyformer.training.metrics import bleu
from transformer import (
  Block,
  FeedForward,
  Transformer,
  causal_mask,
  learning_rate,
  padding_mask,
  post_norm,
  sinusoids,
)

CONTEXT = 64
NUM_VAL_BATCHES = 8
PAIRS = "pairs"
SHUFFLED_PAIRS = "shuffled pairs"
OTHER_REFERENCES = "pairs, scored against other references"

Pair = tuple[str, str]  # German, English
Results = dict[str, dict[str, Any]]


class Translator(Transformer):
  """The paper's Transformer with CPU kernels and the interface that generate_seq2seq needs.

  The last id of the vocabulary is padding.
  """

  def __init__(
    self, vocab_size: int, dim: int, heads: int, ff_dim: int, num_layers: int, dropout: float
  ):
    super().__init__(vocab_size, dim, heads, ff_dim, 0, dropout)

    def attn() -> CachedAttention:
      return CachedAttention(dim, heads, PackedLinear, attention)

    def blocks(cross: bool) -> list[Block]:
      return [
        Block(
          attn(),
          FeedForward(dim, ff_dim, linear=PackedLinear),
          lambda: LayerNorm(dim),
          functools.partial(post_norm, dropout=dropout),
          attn() if cross else None,
        )
        for _ in range(num_layers)
      ]

    self.encoder.blocks = blocks(False)
    self.decoder.blocks = blocks(True)
    self.parts = CPU_KERNELS
    self.context = CONTEXT
    self.padding = vocab_size - 1

  def embed(self, ids: Tensor, cache=None) -> Tensor:
    """Return embeddings plus positions: ids (B, T) -> (B, T, D)."""
    start = 0 if cache is None else cache.length
    positions = sinusoids(CONTEXT, self.dim)[start : start + ids.shape[1]]
    x = self.tokens(ids) * math.sqrt(self.dim) + positions
    return materialize(x.dropout(self.dropout))

  def encode(self, source: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the memory of a source: ids (B, S), attention_mask (B, S) -> (B, S, D)."""
    return self.encoder(self.embed(source), padding_mask(attention_mask))

  def head(self, x: Tensor) -> Tensor:
    """x (B, T, D) -> logits (B, T, V)."""
    return PackedLinear.product(x, self.tokens.weight)

  def __call__(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """source (B, S), target (B, T) -> logits (B, T, V). The model masks padding itself."""
    is_token = source != self.padding
    memory = self.encode(source, is_token)
    return self.head(materialize(self.decoder(self.embed(target), memory, padding_mask(is_token))))

  def attention_inputs(self, ids: Tensor, cache=None) -> dict[str, Tensor]:
    """Return the mask of the decoder's self-attention."""
    T = ids.shape[1]
    return {"mask": causal_mask(T, T if cache is None else cache.length + T)}

  @property
  def blocks(self) -> list[Block]:
    """Return the decoder's blocks."""
    return self.decoder.blocks

  def norm(self, x: Tensor) -> Tensor:
    """Return x: post-norm blocks need no further norm."""
    return x


def read_sentences(folder: Path, name: str) -> list[str]:
  """Return the lines of a file of Multi30k, which may be gzipped.

  Raises cli.UsageError if the file does not exist, and ValueError if it is damaged.
  """
  path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
  if path is None:
    raise cli.UsageError(
      f"neither {folder / name} nor {name}.gz exists: --data must be the folder of the raw files "
      "of Multi30k's task 1: train, val and test_2016_flickr, each .de and .en"
    )
  opener: Callable = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rt", encoding="utf-8") as f:
      return f.read().removesuffix("\n").split("\n")
  except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise ValueError(f"{path} is not a complete UTF-8 text: {e}") from e


def read_pairs(folder: Path, name: str) -> list[Pair]:
  """Return pairs of German and English sentences. Raises ValueError if their numbers differ."""
  german = read_sentences(folder, f"{name}.de")
  english = read_sentences(folder, f"{name}.en")
  if len(german) != len(english):
    raise ValueError(
      f"{folder}: {name}.de has {len(german):,} sentences, but {name}.en has {len(english):,}"
    )
  return list(zip(german, english, strict=True))


def encode(
  tokenizer: BytePairEncoding, pairs: Sequence[Pair], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokenize pairs -> source, decoder input and target, (N, length) each.

  Pairs of `length` or more tokens are left out. Source and decoder input are padded with the id
  after the vocabulary, targets with -1.
  """
  end = len(tokenizer) - 1
  padding = len(tokenizer)
  tokenized = [[tokenizer.encode(f" {text}") for text in pair] for pair in pairs]
  short = [pair for pair in tokenized if max(map(len, pair)) < length]

  def pad(rows: list[list[int]], value: int) -> np.ndarray:
    return np.array([row + [value] * (length - len(row)) for row in rows], np.int32)

  source = pad([german for german, _ in short], padding)
  decoder_input = pad([[end, *english] for _, english in short], padding)
  target = pad([[*english, end] for _, english in short], -1)
  return source, decoder_input, target


class Config(NamedTuple):
  """Settings of the experiment.

  length: pairs of `length` or more tokens are left out.
  learning_rate_factor: multiplies the paper's learning rate.
  """

  vocab_size: int
  length: int
  steps: int
  batch_size: int
  warmup: int
  learning_rate_factor: float
  eval_interval: int
  dim: int
  heads: int
  ff_dim: int
  num_layers: int
  dropout: float

  @property
  def model_sizes(self) -> tuple[int, int, int, int, float]:
    """The arguments of Translator after the vocabulary size."""
    return self.dim, self.heads, self.ff_dim, self.num_layers, self.dropout


FULL = Config(4095, 32, 5000, 64, 1500, 1.0, 500, 256, 4, 1024, 3, 0.2)
QUICK = Config(999, 16, 250, 32, 80, 0.4, 50, 128, 4, 512, 1, 0.0)


def load_data(folder: Path, quick: bool) -> tuple[list[Pair], list[Pair], list[Pair]]:
  """Return pairs for training, validation and testing; if quick, only short and fewer ones."""
  train, val, test = (read_pairs(folder, name) for name in ("train", "val", "test_2016_flickr"))
  if not quick:
    return train, val, test

  def short(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if max(len(text.split()) for text in pair) < 10]

  return short(train), short(val), short(test)[:40]


class TranslationExperiment:
  """Training runs that share a tokenizer and a trainer."""

  def __init__(self, experiment: common.Experiment, data: tuple[list[Pair], ...]):
    self.experiment = experiment
    self.config = QUICK if experiment.quick else FULL
    train, val, self.test = data
    texts = [f" {text}" for pair in train for text in pair]
    self.tokenizer = BytePairEncoding.train(texts, self.config.vocab_size)
    length = self.config.length
    self.train_arrays = encode(self.tokenizer, train, length)
    val_arrays = encode(self.tokenizer, val, length)
    size = self.config.batch_size
    self.val_batches = [
      a[: len(a) // size * size].reshape(-1, size, length)[:NUM_VAL_BATCHES] for a in val_arrays
    ]

  @functools.cached_property
  def trainer(self) -> common.MultiRunTrainer:
    sizes = self.config.model_sizes
    return common.MultiRunTrainer(
      lambda: Translator(len(self.tokenizer) + 1, *sizes),
      lambda model, source, read, target: loss(model(source, read), target),
      weight_decay=0,
      betas=(0.9, 0.98),
    )

  def train_run(self, run: str, arrays: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Return the training curve and the translations of the test sentences."""
    config = self.config
    trainer = self.trainer
    seed = self.experiment.seed
    val_loss = CompiledStep(
      lambda source, read, target: loss(trainer.model(source, read), target, smoothing=0).realize()
    )

    def batch(step: int) -> tuple[np.ndarray, ...]:
      rng = np.random.default_rng([seed, step])
      i = rng.integers(0, len(arrays[0]), config.batch_size)
      return tuple(a[i] for a in arrays)

    def rate(step: int) -> float:
      return config.learning_rate_factor * learning_rate(step + 1, config.dim, config.warmup)

    def evaluate() -> list[float]:
      batches = zip(*self.val_batches, strict=True)
      return [float(np.mean([val_loss(*b) for b in batches]))]

    run_config = common.RunConfig(config.steps, rate, batch, config.eval_interval, evaluate)
    curve = trainer.train(self.experiment, run, seed, run_config)
    return {"curve": curve, "texts": self.translate_test(run)}

  def translate_test(self, run: str) -> list[str]:
    """Translate the test sentences with 4 beams and length penalty 0.6."""
    end = len(self.tokenizer) - 1
    generation_config = GenerationConfig(
      end, end, num_beams=4, length_penalty=0.6, max_length=CONTEXT
    )
    key = f"translate {len(self.tokenizer)} {self.config.model_sizes}"
    texts: list[str] = []
    bar = cli.Bar(f"{run}: beam search")
    for german, _ in self.test:
      source = self.tokenizer.encode(f" {german}")[:CONTEXT]
      ids = generate_seq2seq(self.trainer.model, source, generation_config, key=key)
      texts.append(self.tokenizer.decode(ids).strip())
      bar(len(texts), len(self.test))
    bar.clear()
    return texts

  def run(self) -> Results:
    """Return the results of all runs, by name."""
    run_once = self.experiment.run_once
    results = {PAIRS: run_once(PAIRS, self.train_run, PAIRS, self.train_arrays)}
    if self.experiment.quick:
      source, decoder_input, target = self.train_arrays
      order = np.random.default_rng(self.experiment.seed).permutation(len(source))
      arrays = (source[order], decoder_input, target)
      results[SHUFFLED_PAIRS] = run_once(SHUFFLED_PAIRS, self.train_run, SHUFFLED_PAIRS, arrays)
    return results

  def bleu_scores(self, results: Results) -> dict[str, float]:
    """Return BLEU of each run, and of the first one with each reference moved to the next text."""
    references = [english for _, english in self.test]
    scores = {run: bleu(result["texts"], references) for run, result in results.items()}
    other_references = references[-1:] + references[:-1]
    scores[OTHER_REFERENCES] = bleu(results[PAIRS]["texts"], other_references)
    return scores


def print_results(runs: TranslationExperiment, results: Results, scores: dict[str, float]) -> None:
  config = runs.config
  texts = results[PAIRS]["texts"]
  print(
    f"{len(runs.train_arrays[0]):,} pairs of fewer than {config.length} tokens, "
    f"{len(runs.tokenizer):,} tokens, {config.steps:,} steps of {config.batch_size} pairs; "
    f"{len(texts):,} test sentences, 4 beams\n"
  )
  rows = []
  for name, score in scores.items():
    val_loss = f"{results[name]['curve'][-1][2]:.2f}" if name in results else ""
    rows.append([name, f"{score:.1f}", val_loss])
  common.print_table(["", "BLEU", "validation loss, nats per token"], rows)
  print("\nExamples from the test set:")
  for i in range(0, len(texts), len(texts) // 5):
    german, english = runs.test[i]
    print(f"  {german}\n    {texts[i]}\n    (reference: {english})")


def draw(results: Results, scores: dict[str, float], figure) -> None:
  left, right = figure.subplots(1, 2)
  for run, result in results.items():
    steps, _, val_loss = zip(*result["curve"], strict=True)
    left.plot(steps, val_loss, label=run.replace(" ", "\n"))
  left.set(
    title="The loss is lower with true pairs",
    xlabel="step",
    ylabel="validation loss, nats per token",
  )
  plots.label_lines(left, line_height=0.14)
  colors = [plots.COLORS[0], *[plots.COLORS[6]] * (len(scores) - 1)]
  names = [name.replace(", ", ",\n") for name in scores]
  bars = right.barh(names, list(scores.values()), color=colors)
  right.bar_label(bars, [f"{score:.1f}" for score in scores.values()], padding=4)
  right.yaxis.set_inverted(True)
  right.set(title="and only that model translates", xlabel="BLEU")


def check_claims(results: Results, scores: dict[str, float], quick: bool) -> dict[str, bool]:
  if not quick:
    return {
      "BLEU is above 25": scores[PAIRS] > 25,
      "control: scored against other references it is below 5": scores[OTHER_REFERENCES] < 5,
    }
  val_loss = {run: result["curve"][-1][2] for run, result in results.items()}
  return {
    "BLEU is above 8": scores[PAIRS] > 8,
    "control: with shuffled pairs, the validation loss is at least 0.3 nats per token higher, "
    "and BLEU is less than a third": (
      val_loss[PAIRS] < val_loss[SHUFFLED_PAIRS] - 0.3
      and scores[PAIRS] > 3 * scores[SHUFFLED_PAIRS]
    ),
  }


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = common.argument_parser("translate", __doc__)
  p.add_argument(
    "--data",
    type=Path,
    default=Path("../shared/data/multi30k"),
    help="folder of Multi30k's train, val and test_2016_flickr, each .de and .en, which may be "
    "gzipped (default: %(default)s)",
  )
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  data = load_data(args.data, args.quick)
  experiment = common.Experiment("translate", args)
  runs = TranslationExperiment(experiment, data)
  results = runs.run()
  scores = runs.bleu_scores(results)
  write_text(experiment.out / "translations.txt", "\n".join(results[PAIRS]["texts"]) + "\n")
  print_results(runs, results, scores)
  experiment.save_figure(functools.partial(draw, results, scores))
  return experiment.report_claims(check_claims(results, scores, experiment.quick))


if __name__ == "__main__":
  sys.exit(cli.run(main))
