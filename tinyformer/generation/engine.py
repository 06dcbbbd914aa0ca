"""The generation engine: a model with its KV cache and compiled steps."""

import copy
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes, nn

from tinyformer.backend import is_minigrad
from tinyformer.generation.kv_cache import KVCache, Size
from tinyformer.generation.step_engine import StepEngine
from tinyformer.kernels.compiled_step import (
  CompiledStep,
  checksums,
  memory_view,
  uses_graph_runner,
  variable,
)


def generate_simple(model, ids: list[int], max_new_tokens: int) -> list[int]:
  """Return the most probable next tokens, one after another, without a cache.

  This function is the specification of Engine with greedy decoding. model: token ids (1, T) ->
  logits (1, T, V), such as a decoder, or an encoder-decoder with its source bound.
  """
  ids = list(ids)
  for _ in range(max_new_tokens):
    logits = model(Tensor([ids])).numpy()
    ids.append(int(logits[0, -1].argmax()))
  return ids[len(ids) - max_new_tokens :]


class EmptyCache:
  """What a model reads of a cache without positions, to compute the mask of a whole text."""

  length = 0
  position = 0


def attention_inputs(model, ids: Tensor, cache: KVCache) -> dict[str, Any]:
  """Return the arguments of each block's attention besides x, for new tokens ids (B, T).

  If the cache has a bucket of S rows, the mask's last axis is S, and all arguments are realized, so
  that they are computed once for all blocks.
  """
  inputs = model.attention_inputs(ids, cache)
  if cache.bucket is None:
    return inputs
  start = cache.length
  T = ids.shape[1]
  # A mask depends on distances only: that of these queries is a part of that of all queries.
  all_ids = Tensor.zeros(1, cache.bucket, dtype=dtypes.int32)
  mask = model.attention_inputs(all_ids, EmptyCache())["mask"]
  return realize_inputs(inputs | {"mask": mask[..., start : start + T, :]}, cache.k[0].device)


def realize_inputs(inputs: dict[str, Any], device: Any) -> dict[str, Any]:
  """Realize the tensors among the inputs, and those in partial functions, such as RoPE's."""
  realized: dict[str, Any] = {}
  for name, value in inputs.items():
    if isinstance(value, Tensor):
      # A function of constants has no device, and tinygrad realizes it only if it is assigned.
      value = Tensor.empty(*value.shape, device=device).assign(value.float()).realize()
    elif isinstance(value, functools.partial):
      value = functools.partial(value.func, *value.args, **realize_inputs(value.keywords, device))
    realized[name] = value
  return realized


def with_materialized_sums(block):
  """Return a copy of a block that materializes the sum of each residual connection.

  A norm and the next sum read it. tinygrad would otherwise compute it for both.
  """
  copied = copy.copy(block)
  copied.residual = lambda *args: block.residual(*args).contiguous()
  return copied


def run_blocks(blocks: Sequence, x: Tensor, inputs: dict[str, Any], cache: KVCache) -> Tensor:
  """Return the output of the first blocks of a model for x (B, T, D).

  inputs: what attention_inputs returns. Each block's output is realized, which lets tinygrad reuse
  one block's schedule for all.
  """
  for i, block in enumerate(blocks):
    if cache.bucket is not None:
      x = x.contiguous()
      block = with_materialized_sums(block)
    x = block(x, **inputs, **cache.block_inputs(i)).realize()
  return x


def last_hidden_state(model, ids: Tensor, cache: KVCache) -> Tensor:
  """Return the model's last hidden state (B, 1, D) of a new token ids (B, 1)."""
  inputs = attention_inputs(model, ids, cache)
  blocks = model.blocks
  if cache.bucket is not None and model.parts.decode_block:
    blocks = [model.parts.decode_block(block) for block in blocks]
  return model.norm(run_blocks(blocks, model.embed(ids, cache), inputs, cache))


def hidden_state_at(model, ids: Tensor, cache: KVCache, index: Any) -> Tensor:
  """Return position `index` of the last hidden state of new tokens ids (B, T), as (B, 1, D).

  The head needs one position only, so the last block computes a single query. The keys and values
  of all T positions are stored in the cache before, because that query attends to them.
  """
  start = cache.length
  inputs = attention_inputs(model, ids, cache)
  *blocks, last_block = model.blocks
  x = run_blocks(blocks, model.embed(ids, cache), inputs, cache)
  store_keys_values(last_block, x, cache.layer(len(blocks)), inputs.get("rope"))
  cache.length = start + index
  inputs = attention_inputs(model, ids[:, index : index + 1], cache)
  x = last_block(x[:, index : index + 1], **inputs, **cache.block_inputs(len(blocks))).realize()
  return model.norm(x)


def store_keys_values(block, x: Tensor, cache: Callable, rope: Callable | None) -> None:
  """Store the keys and values of a block's input x (B, T, D), without computing its attention."""

  def store(normalized: Tensor) -> Tensor:
    cache(*block.attn.keys_values(normalized, rope))
    return normalized

  # `residual` calls `store` with the attention's input. The sum that it returns is not computed,
  # because nothing reads it.
  block.residual(x, store, block.attn_norm)


class Engine(StepEngine):
  """A StepEngine whose steps compute a model.

  model: a decoder or an encoder-decoder, with the decoder's `embed`, `attention_inputs`, `blocks`,
    `norm` and `head`, and with `parts` and `context`. Its weights must not be replaced later. If
    they are changed in place, call `follow_weights`.
  batch: the number of texts.
  key: a string, such as the model's config, that differs if the kernels differ. It need not cover
    the weights. The kernels are saved under this key for later processes; None does not save them.
  cache: a cache for `batch` texts; None creates a KVCache.
  top_k: only the top_k largest logits of a decoder are needed. The engine may then set all other
    logits to -inf, which takes less time, or moves less data. None or 0 computes all logits.
  """

  # The numbers of cached keys that attention reads if shapes are fixed, besides the whole cache.
  # Each has compiled steps of its own, so the lengths are few.
  BUCKETS = (256, 1024, 4096, 16384, 65536)

  def __init__(
    self,
    model,
    batch: int = 1,
    key: str | None = None,
    cache: KVCache | None = None,
    top_k: int | None = None,
  ):
    cache = cache or KVCache.for_model(model, batch)
    super().__init__(batch, cache.context, top_k)
    self.model = model
    self.cache: KVCache = cache
    if self.bucket(0):
      self.cache.clear()
    captured_buffers = nn.state.get_state_dict(model)
    Tensor.realize(*captured_buffers.values())
    self.weights = list(captured_buffers.values())
    # Of the weights from which the keys and values in the cache were computed; empty if unknown.
    self.weight_checksums: list[np.ndarray] = []
    for name, tensor in nn.state.get_state_dict(self.cache).items():
      captured_buffers[f"cache.{name}"] = tensor
    self.head = model.head
    self.top_k_head = None
    make_head = model.parts.top_k_head
    if top_k and make_head and (head := make_head(model.unembedding, top_k, batch, key)):
      self.head = self.top_k_head = head
      captured_buffers |= {"top_k_head.copy": head.copy, "top_k_head.slack": head.slack}
      key = key and f"{key} {head.count}"
    self.top_k_selection = None
    make_selection = model.parts.top_k_selection
    if top_k and make_selection and not self.top_k_head:
      self.top_k_selection = make_selection(batch, int(model.unembedding.shape[0]), top_k)
    if self.top_k_selection:
      captured_buffers["top_k_selection.logits"] = self.top_k_selection.logits
    self.captured_buffers = captured_buffers
    self.key = key
    # By the number of tokens and the bucket.
    self.steps: dict[tuple[int, int | None], CompiledStep] = {}

  def step(self, size: int, bucket: int | None) -> CompiledStep:
    """Return the step for chunks of `size` tokens that attend to `bucket` rows of the cache.

    minigrad compiles nothing, so all sizes of chunks share one step.
    """
    if is_minigrad():
      size = min(size, 2)
    if (size, bucket) not in self.steps:
      function: Callable = Engine.process_token if size == 1 else Engine.process_chunk
      variables = [variable("start", 0, self.cache.rows - 1)]
      if size > 1:
        variables.append(variable("last", 0, size - 1))
      # Without a cycle of references, an engine's tensors are freed as soon as it is not used any
      # more. tinygrad keeps an entry of 80 bytes for each tensor that the garbage collector frees.
      step = functools.partial(function, weakref.proxy(self), bucket=bucket)
      buffers = self.captured_buffers
      self.steps[size, bucket] = CompiledStep(step, tuple(variables), buffers, self.key)
    return self.steps[size, bucket]

  def bucket(self, rows: int) -> int | None:
    """Return the number of cached keys that a step reads if it needs the first `rows` of them.

    None reads exactly those. The CPU's kernels take a length that varies, but tinygrad's kernels
    for other devices are much slower if a shape is symbolic.
    """
    if is_minigrad() or uses_graph_runner():
      return None
    return next((n for n in self.BUCKETS if rows <= n < self.cache.rows), self.cache.rows)

  def process_chunk(self, ids: Tensor, start: Size, last: Size, bucket: int | None) -> Tensor:
    """Return `result` of position `last` of a chunk ids (B, T) from row `start` on."""
    self.cache.length = start
    self.cache.bucket = bucket
    return self.result(hidden_state_at(self.model, ids, self.cache, last))

  def process_token(self, ids: Tensor, start: Size, bucket: int | None) -> Tensor:
    """Return `result` of one token ids (B, 1) in row `start`."""
    self.cache.length = start
    self.cache.bucket = bucket
    return self.result(last_hidden_state(self.model, ids, self.cache))

  def result(self, x: Tensor) -> Tensor:
    """Return the logits (B, 1, V) of a hidden state x (B, 1, D), or the selected ones."""
    logits = self.head(x).float()
    if self.top_k_selection:
      logits = self.top_k_selection.select(logits)
    return logits.realize()

  def read_logits(self, result: np.ndarray) -> np.ndarray:
    """Return the logits (B, V) in a step's result, -inf for those that are not selected."""
    if self.top_k_selection:
      return self.top_k_selection.expand(result)
    return super().read_logits(result)

  def follow_weights(self, keep_cache: bool) -> None:
    """Follow changes of the weights in place, such as an optimizer makes, since the last call.

    keep_cache: keep the processed tokens if no weight has changed, which takes about as long as
      generating two tokens. Otherwise rewind to position 0.
    """
    if self.top_k_head:
      self.top_k_head.update()
    earlier = self.weight_checksums
    self.weight_checksums = [checksums(weight) for weight in self.weights] if keep_cache else []
    is_known = keep_cache and bool(earlier)
    if not is_known or not all(map(np.array_equal, earlier, self.weight_checksums)):
      self.position = 0

  def set_cached_rows(self, name: str, rows: np.ndarray) -> None:
    """Set the first rows (B, G, T, K) of a buffer of the KV cache, by its captured name."""
    view = memory_view(self.captured_buffers[name])
    assert view is not None
    view[:, :, : rows.shape[2]] = rows
