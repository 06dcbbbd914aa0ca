"""The generation engine: a model with its KV cache and compiled steps."""

import numpy as np
from tinygrad import Tensor, UOp, nn

from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.exact_top_k import ExactTopKHead


class Engine:
  """Process a batch of texts of the same length incrementally: each token is processed once.

  model: a decoder, or an encoder-decoder's decoder. The model's weights must not be replaced later.
  batch: the number of texts.
  key: identifies everything that determines the kernels, apart from the weights, such as the
    model's config. The kernels are saved under this key for later processes; None does not save
    them.
  cache: a cache for `batch` texts; None creates the model's own.
  top_k: only the top_k largest logits of a decoder are needed. The engine may then set all other
    logits to -inf, which can take less time. None or 0 computes all logits.

  Attributes: `position` is the number of tokens of each text processed so far; `context` is the
  maximum. Setting `position` rewinds the texts (see KVCache.resume_position).
  """

  # The numbers of tokens that one step processes, each compiled on first use. A chunk is padded to
  # the next of these sizes if more than half of it is filled; a short remainder is processed token
  # by token.
  CHUNK_SIZES = (512, 64, 1)

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
    self.context = self.cache.context
    self.batch = batch
    self.position = 0
    self.top_k = top_k or None
    for name, tensor in nn.state.get_state_dict(self.cache).items():
      captured_buffers[f"cache.{name}"] = tensor
    head = model.head
    if top_k and ExactTopKHead.supports(model.unembedding, batch, top_k):
      head = ExactTopKHead(model.unembedding, top_k, key)
      captured_buffers |= {"top_k_head.copy": head.copy, "top_k_head.slack": head.slack}
      key = key and f"{key} {head.count}"

    def process_chunk(ids: Tensor, start: UOp, last: UOp) -> Tensor:
      hidden_state = model.last_hidden_state(ids, start, self.cache, at=last)
      return head(hidden_state).float().realize()

    def process_token(ids: Tensor, start: UOp) -> Tensor:
      return head(model.last_hidden_state(ids, start, self.cache)).float().realize()

    start = UOp.variable("start", 0, self.cache.rows - 1)
    self.steps: dict[int, CompiledStep] = {}  # by number of tokens
    for size in self.CHUNK_SIZES:
      if size > 1:
        variables = (start, UOp.variable("last", 0, size - 1))
        self.steps[size] = CompiledStep(process_chunk, variables, captured_buffers, key)
      else:
        self.steps[size] = CompiledStep(process_token, (start,), captured_buffers, key)

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """Process the next tokens ids (B, T) of each text; return the logits (B, V) of the last one.

    Raises ValueError if T is 0, B is not the batch size, or the tokens exceed the context.
    """
    ids = np.asarray(ids, dtype=np.int32)
    if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.size:
      raise ValueError(
        f"ids of shape {ids.shape} are not {self.batch} texts of at least one token: "
        f"pass the shape ({self.batch}, T)"
      )
    if self.position + ids.shape[1] > self.context:
      raise ValueError(
        f"{self.position + ids.shape[1]:,} tokens are more than the context of {self.context:,}: "
        "shorten the text"
      )
    while remaining := ids.shape[1]:
      size = 1
      if remaining > 8:
        fitting = (n for n in self.CHUNK_SIZES if self.position + n <= self.context)
        size = next((n for n in fitting if remaining > n / 2), 1)
      chunk = ids[:, :size]
      ids = ids[:, size:]
      start = self.cache.reserve(self.position, size)
      if size == 1:
        logits = self.steps[1](chunk, start=start)
      else:
        # Padding changes no result: its keys are masked here and overwritten by the next chunk.
        padded_chunk = np.pad(chunk, ((0, 0), (0, size - chunk.shape[1])))
        logits = self.steps[size](padded_chunk, start=start, last=chunk.shape[1] - 1)
      self.position += chunk.shape[1]
    return logits[:, -1].copy()
