"""The Transformer learns to translate German captions to English from pairs of them; of pairs that do not belong together it learns English alone."""

import functools
import gzip
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

from experiments import common
from tinyformer import cli
from tinyformer.checkpoints.safetensors import write_text
from tinyformer.generation import generate_seq2seq
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.kernels.attention import attention
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.cross_entropy import loss
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.linear import PackedLinear
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.metrics import bleu
from transformer import (
  Block,
  FeedForward,
  MultiHeadAttention,
  Transformer,
  causal_mask,
  learning_rate,
  padding_mask,
  post_norm,
  sinusoids,
  materialize,
)

CONTEXT = 64


class Translator(Transformer):
  """The paper's, with products, attention and norms that a CPU does sooner, and with what text.generate asks of an encoder-decoder. The last id is padding."""

  def __init__(self, vocab: int, dim: int, heads: int, ff_dim: int, layers: int, dropout: float):
    super().__init__(vocab, dim, heads, ff_dim, 0, dropout)

    def attn() -> MultiHeadAttention:
      return MultiHeadAttention(dim, heads, PackedLinear, attention_fn=attention)

    def blocks(cross: bool) -> list[Block]:
      return [
        Block(
          attn(),
          FeedForward(dim, ff_dim, linear=PackedLinear),
          lambda: LayerNorm(dim),
          functools.partial(post_norm, dropout=dropout),
          attn() if cross else None,
        )
        for _ in range(layers)
      ]

    self.encoder.blocks, self.decoder.blocks, self.context, self.padding = (
      blocks(False),
      blocks(True),
      CONTEXT,
      vocab - 1,
    )

  def embed(self, ids: Tensor, start=0) -> Tensor:
    """ids (B, T) of the places from `start` on -> (B, T, D)."""
    return materialize(
      (
        self.tokens(ids) * math.sqrt(self.dim)
        + sinusoids(CONTEXT, self.dim)[start : start + ids.shape[1]]
      ).dropout(self.dropout)
    )

  def head(self, x: Tensor) -> Tensor:
    return PackedLinear.product(x, self.tokens.weight)

  def __call__(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
    mask = padding_mask(source != self.padding)
    return self.head(
      materialize(self.decoder(self.embed(target), self.encoder(self.embed(source), mask), mask))
    )

  def cross_kv(self, source: Tensor, keep: Tensor) -> Tensor:
    """(B, S) -> (L, 2, B, H, S, K): what each block of the decoder attends to."""
    memory = self.encoder(self.embed(source), padding_mask(keep))
    return Tensor.stack(
      *(Tensor.stack(*block.cross.keys_values(memory)) for block in self.decoder.blocks)
    )

  def last_hidden_state(self, ids: Tensor, start, cache, at=None) -> Tensor:
    """The target's ids (B, T) from place `start` on -> (B, T, D); at: of these T the only place that is asked for -> (B, 1, D)."""
    x, T = self.embed(ids, start), ids.shape[1]
    for i, block in enumerate(self.decoder.blocks):
      x = block(
        x,
        cache.cross_kv[i],
        causal_mask(T, start + T) if T > 1 else None,
        cache.mask,
        cache.layer(i, start),
      ).realize()
    return x if at is None else x[:, at : at + 1]


def sentences(folder: Path, name: str) -> list[str]:
  """The lines of a file of Multi30k, also a gzipped one. Raises Usage where it is absent, ValueError where it is damaged."""
  path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
  if path is None:
    raise cli.Usage(
      f"{folder / name} is not there (nor .gz): --data takes the folder of Multi30k's task 1, raw: train, val, test_2016_flickr, each .de and .en"
    )
  opener: Callable = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rt", encoding="utf-8") as f:
      return f.read().removesuffix("\n").split("\n")
  except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise ValueError(f"{path} is not a whole UTF-8 text: {e}") from e


def paired(folder: Path, name: str) -> list[tuple[str, str]]:
  """German and English. Raises ValueError if they are not as many."""
  german, english = sentences(folder, f"{name}.de"), sentences(folder, f"{name}.en")
  if len(german) != len(english):
    raise ValueError(
      f"{folder}: {name} has {len(german):,} German sentences and {len(english):,} English ones"
    )
  return list(zip(german, english))


def encode(
  tokenizer: BytePairEncoding, pairs: Sequence[tuple[str, str]], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """source, what the decoder reads, what it is to write: (N, length) each, of the pairs that fit. Source and what is read are padded with the id after the last, the rest with -1."""
  end, pad = len(tokenizer) - 1, len(tokenizer)
  ids = [[tokenizer.encode(f" {text}") for text in pair] for pair in pairs]
  ids = [pair for pair in ids if max(map(len, pair)) < length]

  def rows(texts: list[list[int]], fill: int) -> np.ndarray:
    return np.array([t + [fill] * (length - len(t)) for t in texts], np.int32)

  return (
    rows([s for s, _ in ids], pad),
    rows([[end, *t] for _, t in ids], pad),
    rows([[*t, end] for _, t in ids], -1),
  )


def main(argv: list[str] | None = None) -> int:
  parser = common.parser("translate", __doc__)
  parser.add_argument(
    "--data",
    type=Path,
    default=Path("../shared/data/multi30k"),
    help="the folder of Multi30k's train, val and test_2016_flickr, .de and .en, also gzipped",
  )
  args = parser.parse_args(argv)
  parts = [paired(args.data, name) for name in ("train", "val", "test_2016_flickr")]
  lab = common.Lab("translate", args)
  vocab, length, steps, size, warmup, factor, sizes, every = (
    (999, 16, 250, 32, 80, 0.4, (128, 4, 512, 1, 0.0), 50)
    if lab.quick
    else (4095, 32, 5000, 64, 1500, 1.0, (256, 4, 1024, 3, 0.2), 500)
  )
  if lab.quick:
    parts = [[pair for pair in part if max(len(s.split()) for s in pair) < 10] for part in parts]
  learn, check, test = parts
  test = test[:40] if lab.quick else test
  tokenizer = BytePairEncoding.train([f" {s}" for pair in learn for s in pair], vocab)
  end = len(tokenizer) - 1

  def run(
    name: str, batches: tuple[np.ndarray, ...], teach: Callable[[], common.Teacher]
  ) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
      teacher, held = (
        teach(),
        [
          a[: len(a) // size * size].reshape(-1, size, length)[:8]
          for a in encode(tokenizer, check, length)
        ],
      )
      measure = CompiledStep(
        lambda source, read, target: loss(
          teacher.model(source, read), target, smoothing=0
        ).realize()
      )

      def batch(step: int) -> tuple[np.ndarray, ...]:
        i = np.random.default_rng([lab.seed, step]).integers(0, len(batches[0]), size)
        return tuple(b[i] for b in batches)

      rows = teacher.teach(
        lab,
        name,
        lab.seed,
        steps,
        lambda step: factor * learning_rate(step + 1, sizes[0], warmup),
        batch,
        every,
        lambda: [float(np.mean([measure(*b) for b in zip(*held)]))],
      )
      settings, key, texts = (
        GenerationConfig(end, end, num_beams=4, length_penalty=0.6, max_length=CONTEXT),
        f"translate {len(tokenizer)} {sizes}",
        list[str](),
      )
      bar = cli.Bar(f"{name}: beams")
      for german, _ in test:
        texts.append(
          tokenizer.decode(
            generate_seq2seq(
              teacher.model, tokenizer.encode(f" {german}")[:CONTEXT], settings, key=key
            )
          ).strip()
        )
        bar(len(texts), len(test))
      bar.clear()
      return {"curve": rows, "texts": texts}

    return lab.once(name, compute)

  made: list[common.Teacher] = []

  def teacher() -> common.Teacher:
    if not made:
      made.append(
        common.Teacher(
          lambda: Translator(len(tokenizer) + 1, *sizes),
          lambda model, source, read, target: loss(model(source, read), target),
          weight_decay=0,
          b2=0.98,
        )
      )
    return made[0]

  batches, references = encode(tokenizer, learn, length), [english for _, english in test]
  found = {"pairs": run("pairs", batches, teacher)}
  if lab.quick:
    found["shuffled pairs"] = run(
      "shuffled pairs",
      (batches[0][np.random.default_rng(lab.seed).permutation(len(batches[0]))], *batches[1:]),
      teacher,
    )
  scores = {name: bleu(r["texts"], references) for name, r in found.items()}
  others = np.roll(np.arange(len(test)), 1)
  scores["pairs, held against other sentences"] = bleu(
    found["pairs"]["texts"], [references[i] for i in others]
  )
  write_text(lab.out / "translations.txt", "\n".join(found["pairs"]["texts"]) + "\n")
  print(
    f"{len(batches[0]):,} pairs of fewer than {length} tokens, {len(tokenizer):,} tokens, {steps:,} steps of {size} pairs; {len(test):,} test sentences, 4 beams\n"
  )
  common.table(
    ["", "BLEU", "held-out nats a token"],
    [
      [name, f"{score:.1f}", f"{found[name]['curve'][-1][2]:.2f}" if name in found else ""]
      for name, score in scores.items()
    ],
  )
  print("\nThe first of the test and every so many more:")
  for i in range(0, len(test), len(test) // 5):
    print(f"  {test[i][0]}\n    {found['pairs']['texts'][i]}\n    (reference: {test[i][1]})")

  def draw(figure) -> None:
    axes = figure.add_subplot(xlabel="step", ylabel="nats a token", title="held-out captions")
    for name, r in found.items():
      axes.plot(
        *[list(zip(*r["curve"]))[i] for i in (0, 2)], label=f"{name}: BLEU {scores[name]:.1f}"
      )
    axes.legend()

  lab.picture(draw)
  first = scores["pairs"]
  if not lab.quick:
    return lab.verdict(
      {
        "BLEU is above 25": first > 25,
        "control: held against other sentences it is below 5": scores[
          "pairs, held against other sentences"
        ]
        < 5,
      }
    )
  loss_of = {name: r["curve"][-1][2] for name, r in found.items()}
  return lab.verdict(
    {
      "BLEU is above 8": first > 8,
      "control: shuffled pairs end at least 0.3 nats a token higher on held-out captions, with less than a third of the BLEU": loss_of[
        "pairs"
      ]
      < loss_of["shuffled pairs"] - 0.3
      and first > 3 * scores["shuffled pairs"],
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
