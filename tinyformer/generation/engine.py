"""What a model writes, on from a text or in answer to one: the likeliest token, one by lot, or the best of several beams. Ids in, ids out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tinygrad import Tensor, UOp, nn

from tinyformer.generation.generation_config import LogitsProcessor, GenerationConfig, normalised
from tinyformer.generation.kv_cache import KVCache, EncoderDecoderCache
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.exact_top_k import ExactTopKHead
from transformer import padding_mask


class Engine:
  """A model that reads `batch` texts of one length side by side, piece by piece, each token once: the cache keeps what was read.

  place: how many tokens of each text it has read; at most `context`.  cache: the model's own for so many texts; without one, a new one.
  key: all that decides what the model computes but its weights, for the kernels to be kept between runs; None keeps nothing.
  likeliest: of how many tokens, the likeliest, a decoder's logits are asked for; those of the others may then be -inf, which can take less time.
  Its weights stay as they are now.
  """

  PIECES = (
    512,
    64,
    1,
  )  # tokens read at a time, each number traced when it is first needed: a long piece is padded, a short one read token by token

  def __init__(
    self,
    model,
    batch: int = 1,
    key: str | None = None,
    cache: KVCache | None = None,
    top_k: int | None = None,
  ):
    captured_buffers = nn.state.get_state_dict(model)
    Tensor.realize(*captured_buffers.values())
    self.cache: KVCache = cache or model.cache(batch)
    self.context, self.batch, self.position = self.cache.context, batch, 0
    captured_buffers |= {
      f"cache.{name}": t for name, t in nn.state.get_state_dict(self.cache).items()
    }
    head, self.top_k = model.head, top_k or None
    if top_k and ExactTopKHead.supports(model.unembedding, batch, top_k):
      head = ExactTopKHead(model.unembedding, top_k, key)
      captured_buffers |= {"shortlist.copy": head.copy, "shortlist.slack": head.slack}
      key = key and f"{key} {head.count}"

    def read(ids: Tensor, start: UOp, last: UOp) -> Tensor:
      return head(model.last_hidden_state(ids, start, self.cache, at=last)).float().realize()

    def token(ids: Tensor, start: UOp) -> Tensor:
      return head(model.last_hidden_state(ids, start, self.cache)).float().realize()

    start = UOp.variable("start", 0, self.cache.rows - 1)
    self.steps = {
      n: CompiledStep(read, (start, UOp.variable("last", 0, n - 1)), captured_buffers, key)
      if n > 1
      else CompiledStep(token, (start,), captured_buffers, key)
      for n in self.PIECES
    }

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """The next T tokens (B, T) of each text -> logits (B, V) for the one after them. Raises ValueError for none, or more than fit."""
    ids = np.asarray(ids, dtype=np.int32)
    if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.size:
      raise ValueError(f"ids of shape {ids.shape} are not {self.batch} texts of a token or more")
    if self.position + ids.shape[1] > self.context:
      raise ValueError(
        f"{self.position + ids.shape[1]:,} tokens are more than the context of {self.context:,}"
      )
    while left := ids.shape[1]:
      n = next(
        (n for n in self.PIECES if left > n / 2 and left > 8 and self.position + n <= self.context),
        1,
      )
      piece, ids, row = ids[:, :n], ids[:, n:], self.cache.reserve(self.position, n)
      if n == 1:
        logits = self.steps[1](piece, start=row)
      else:  # what is read past the piece is later than any query, and overwritten
        padded = np.pad(piece, ((0, 0), (0, n - piece.shape[1])))
        logits = self.steps[n](padded, start=row, last=piece.shape[1] - 1)
      self.position += piece.shape[1]
    return logits[:, -1].copy()


def probabilities(
  logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
  """(V,) -> (V,): softmax of logits / temperature over the top_k likeliest tokens (0: all), of which the likeliest that make up top_p.

  Fan et al. 2018, sec. 5.3 (top-k), Holtzman et al. 2020, sec. 3.1 (nucleus). A temperature of 0 leaves the likeliest alone.
  """
  if temperature == 0:
    return np.eye(1, len(logits), int(logits.argmax()))[0]
  x = (logits.astype(np.float64) - logits.max()) / temperature
  if 0 < top_k < len(x):
    x = np.where(x < np.partition(x, -top_k)[-top_k], -np.inf, x)
  p = np.exp(x)
  p /= p.sum()
  if top_p < 1:
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0  # the first token that reaches top_p stays
    p /= p.sum()
  return p


def process_logits(
  scores: np.ndarray, ids: Sequence[int], logits_processors: Sequence[LogitsProcessor]
) -> np.ndarray:
  """Scores (V,) of the token after ids, when each constraint in turn has had its say."""
  return functools.reduce(
    lambda scores, constrain: constrain(ids, scores), logits_processors, scores
  )


def generate(
  reader: Engine,
  ids: Sequence[int],
  tokens: int,
  temperature: float = 0.8,
  top_k: int = 40,
  top_p: float = 1.0,
  seed: int | None = None,
  end: int | None = None,
  logits_processors: Sequence[LogitsProcessor] = (),
) -> Iterator[list[int | None]]:
  """Has the reader read `ids` and write on: yields the next token of each of its texts, None for a text that has met `end`.

  It is over after `tokens` tokens, when all texts have met `end`, or when the context is full. The same seed draws the same tokens, and
  text n of several is what it would be among fewer. Raises ValueError if `ids` is empty or does not leave room for a token, and for a reader
  that gives the logits of fewer tokens than are drawn from.
  """
  if reader.top_k and (logits_processors or not 0 < (top_k if temperature else 1) <= reader.top_k):
    raise ValueError(f"this reader gives the logits of the {reader.top_k} likeliest tokens alone")
  if reader.position + len(ids) >= reader.context:
    raise ValueError(
      f"{reader.position + len(ids):,} tokens leave no room in a context of {reader.context:,}"
    )
  draws = [
    np.random.default_rng(None if seed is None else [seed, row]) for row in range(reader.batch)
  ]
  texts = [list(ids) for _ in draws]
  alive, logits = (
    [True] * reader.batch,
    reader(np.tile(np.array(ids, dtype=np.int32), (reader.batch, 1))),
  )
  for left in reversed(range(min(tokens, reader.context - reader.position))):
    scores = [process_logits(row, text, logits_processors) for row, text in zip(logits, texts)]
    chosen = [
      int(draw.choice(len(row), p=probabilities(row, temperature, top_k, top_p)))
      for draw, row in zip(draws, scores)
    ]
    for text, token in zip(texts, chosen):
      text.append(token)
    alive = [a and t != end for a, t in zip(alive, chosen)]
    yield [t if a else None for a, t in zip(alive, chosen)]
    if not left or not any(alive):
      return
    logits = reader(np.array([[t] for t in chosen]))


def beam_search(
  reader: Engine,
  ids: Sequence[int],
  tokens: int,
  length_penalty: Callable[[int], float] = float,
  end: int | None = None,
  logits_processors: Sequence[LogitsProcessor] = (),
  best_possible_score: Callable[[float, int], float] | None = None,
) -> list[tuple[list[int], float]]:
  """The continuations of `ids` that the model finds likeliest, best first, each with its score; as many as the reader's texts.

  A score is the sum of log-probabilities (nats) over length_penalty(number of tokens): `float` makes it the mean, `lambda n: 1` the sum,
  `lambda n: ((5 + n) / 6) ** 0.6` is that of Wu et al. 2016, sec. 7. A continuation that meets `end` is finished, `end` included.
  hope: what score an unfinished one may yet reach, from its sum and number of tokens; its score now, if None. When as many are finished and none
  of them scores less than the best unfinished one may, the search is over. Raises ValueError for a reader of the likeliest tokens' logits alone.
  """
  if reader.top_k:
    raise ValueError(
      "beams need the logits of all tokens, and this reader gives those of the likeliest alone"
    )
  beams = reader.batch
  best_possible_score = best_possible_score or (lambda total, n: total / length_penalty(n))
  logits = reader(np.tile(np.array(ids, dtype=np.int32), (beams, 1)))
  running: list[list[int]] = [[] for _ in range(beams)]
  sums = np.array([0.0] + [-np.inf] * (beams - 1))  # at first all are alike: one counts
  finished: list[tuple[list[int], float]] = []
  for n in range(1, min(tokens, reader.context - reader.position) + 1):
    log_p = [
      process_logits(normalised([], row), [*ids, *text], logits_processors)
      for row, text in zip(logits.astype(np.float64), running)
    ]
    totals = (sums[:, None] + log_p).ravel()
    best = np.argpartition(-totals, 2 * beams - 1)[: 2 * beams]
    best = best[np.lexsort((best, -totals[best]))]
    kept = []
    for rank, (row, token) in enumerate(zip(*divmod(best, len(log_p[0])))):
      if token != end:
        kept.append((int(row), int(token), float(totals[best[rank]])))
      elif rank < beams:
        finished.append(
          (running[row] + [int(token)], float(totals[best[rank]]) / length_penalty(n))
        )
    kept = kept[:beams]
    running, sums = (
      [running[row] + [token] for row, token, _ in kept],
      np.array([total for *_, total in kept]),
    )
    finished = sorted(finished, key=lambda f: -f[1])[:beams]
    if len(finished) == beams and finished[-1][1] >= best_possible_score(float(sums.max()), n):
      return finished
    if n < tokens and reader.position < reader.context:
      reader.cache.reorder([row for row, *_ in kept], reader.position)
      logits = reader(np.array([[token] for _, token, _ in kept]))
  return sorted(
    finished + [(r, float(s) / length_penalty(len(r))) for r, s in zip(running, sums)],
    key=lambda f: -f[1],
  )[:beams]


def generate_seq2seq(
  model,
  source: Sequence[int],
  settings: GenerationConfig,
  tokens: int | None = None,
  key: str | None = None,
) -> list[int]:
  """What an encoder-decoder writes for a source, as its settings have it: ids without the start and the end, at most `tokens` with the end.

  key: as in Reader. For its kernels to serve other sources too, a source is padded to a multiple of 64 tokens, as far as the model's context.
  Raises ValueError for a source of no tokens, or of more than the model has places for.
  """
  if not len(source):
    raise ValueError("a source of no tokens has no answer")
  length = min(tokens + 1 if tokens else settings.max_length or model.context, model.context)
  room = min(-(-len(source) // 64) * 64, max(len(source), model.context))
  ids, attention_mask = (
    np.array([[*source] + [0] * (room - len(source))], dtype=np.int32),
    np.arange(room)[None] < len(source),
  )
  captured_buffers = nn.state.get_state_dict(model)
  Tensor.realize(*captured_buffers.values())
  cross_kv = Tensor(
    CompiledStep(
      lambda ids, attention_mask: model.cross_kv(ids, attention_mask).realize(),
      captured_buffers=captured_buffers,
      key=key,
    )(ids, attention_mask).copy()
  )
  cache = EncoderDecoderCache(
    cross_kv, padding_mask(Tensor(attention_mask)), settings.num_beams, length
  )
  reader, begin, end = (
    Engine(model, settings.num_beams, key, cache),
    [settings.decoder_start_token_id],
    settings.eos_token_id,
  )
  logits_processors, power = settings.logits_processors(length), settings.length_penalty
  if settings.num_beams == 1:
    return [
      t
      for [t] in generate(
        reader, begin, length - 1, temperature=0, end=end, logits_processors=logits_processors
      )
      if t is not None
    ]
  hopes: dict[bool | str, Callable[[float, int], float]] = {  # transformers' early_stopping
    True: lambda total, n: -np.inf,
    False: lambda total, n: total / n**power,
    "never": lambda total, n: total / (length - 1 if power > 0 else n) ** power,
  }
  best, _ = beam_search(
    reader,
    begin,
    length - 1,
    lambda n: n**power,
    end,
    logits_processors,
    hopes[settings.early_stopping],
  )[0]
  return best[:-1] if best[-1] == end else best


def stop_at(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
  """The text of the pieces up to the first of the stop texts, each part as soon as it cannot be the beginning of one."""
  held = ""
  for piece in pieces:
    held += piece
    if found := [i for s in stops if (i := held.find(s)) >= 0]:
      yield held[: min(found)]
      return
    attention_mask = max(
      (n for s in stops for n in range(1, len(s)) if held.endswith(s[:n])), default=0
    )
    yield held[: len(held) - attention_mask]
    held = held[len(held) - attention_mask :]
  yield held
