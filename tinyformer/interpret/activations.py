"""Run a model once and return its activations as numpy arrays.

The activations are the attention weights, the output of each head and each sublayer, and the
residual stream. A sublayer is an attention or a feed-forward network, together with its residual
connection and norm. A stack is an encoder, a decoder, or a model that consists of only one of them.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.interpret.recorder import Recorder, ResidualCall, StreamRecorder
from transformer import padding_mask

# tinygrad keeps the kernels for each length that a text has had in this process. Padding to a
# multiple of this number of tokens bounds their memory, and saves compiling them for each length.
LENGTH_MULTIPLE = 32


class Norm(NamedTuple):
  """A LayerNorm (centered) or an RMSNorm (not centered). bias: None if there is none.

  With its scale (T, 1) fixed at the computed value, a norm is linear apart from the bias.
  """

  weight: np.ndarray
  bias: np.ndarray | None
  eps: float
  centered: bool

  @classmethod
  def from_module(cls, module: Callable) -> "Norm | None":
    """Return the norm of a module, or None for a function that returns its argument.

    Raises ValueError for any other module.
    """
    if isinstance(module, nn.RMSNorm):
      return cls(to_numpy(module.weight), None, module.eps, centered=False)
    if isinstance(module, nn.LayerNorm):
      bias = None if module.bias is None else to_numpy(module.bias)
      return cls(to_numpy(module.weight), bias, module.eps, centered=True)
    probe = object()
    if module(probe) is probe:
      return None
    raise ValueError(
      f"cannot read a norm of type {type(module).__name__}: use LayerNorm, RMSNorm or the identity"
    )

  def scale(self, x: np.ndarray) -> np.ndarray:
    """Return the factor (T, 1) by which the norm multiplies each row of x (T, D)."""
    x = x - x.mean(-1, keepdims=True) if self.centered else x
    return 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Return the norm of x (T, D)."""
    centered = x - x.mean(-1, keepdims=True) if self.centered else x
    y = self.scale(x) * centered * self.weight
    return y if self.bias is None else y + self.bias

  def vjp(self, g: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the directions at the input for directions g (T, D) at the output y.

    With the scale fixed, g . (y - bias) = vjp(g) . x (a vector-Jacobian product).
    """
    g = g * self.weight * scale
    return g - g.mean(-1, keepdims=True) if self.centered else g


def to_numpy(t: Tensor | None) -> np.ndarray:
  """Return a tensor as a float64 array."""
  assert t is not None
  return t.float().numpy().astype(np.float64)


class Sublayer(NamedTuple):
  """The activations of a sublayer; the fields after is_post_norm are None for a feed-forward.

  kind: attn, cross or ff.  x (T, D): the residual stream before the sublayer.
  output (T, D): what the sublayer adds to it.
  is_post_norm: the norm applies to the sum, not to the input of the sublayer.
  weights (H, T, S): attention weights.  heads (H, T, K): the output of each head.
  out_weight (D, H K), out_bias (D): the projection of the concatenated heads.
  """

  kind: str
  layer: int
  x: np.ndarray
  output: np.ndarray
  norm: Norm | None
  is_post_norm: bool
  weights: np.ndarray | None = None
  heads: np.ndarray | None = None
  out_weight: np.ndarray | None = None
  out_bias: np.ndarray | None = None

  @property
  def stream_after(self) -> np.ndarray:
    """Return the residual stream after the sublayer (T, D)."""
    y = self.x + self.output
    return self.norm(y) if self.is_post_norm and self.norm else y


class Activations(NamedTuple):
  """The activations of a stack.

  token_embeddings (T, D): the embeddings of tokens or patches only.
  embeddings (T, D): the same plus positions and everything else that is added to them.
  embedding_norm, final_norm: the norms of the embeddings and of the last block's output, or None.
  """

  token_embeddings: np.ndarray
  embeddings: np.ndarray
  embedding_norm: Norm | None
  sublayers: list[Sublayer]
  final_norm: Norm | None

  def attention_weights(self, kind: str = "attn") -> np.ndarray:
    """Return attention weights (layers, H, T, S), a row per query and a column per key."""
    sublayers = [s for s in self.sublayers if s.kind == kind]
    return np.stack([s.weights for s in sublayers if s.weights is not None])

  def residual_streams(self) -> list[np.ndarray]:
    """Return the residual stream (T, D) before each layer and after the last one."""
    before_layers = [s.x for s in self.sublayers if s.kind == "attn"]
    return [*before_layers, self.sublayers[-1].stream_after]

  @property
  def is_complete(self) -> bool:
    """Return True if only the recorded sublayers change the residual stream."""
    pairs = itertools.pairwise(self.sublayers)
    return all(np.allclose(a.stream_after, b.x, atol=1e-3) for a, b in pairs)


class NormCall(NamedTuple):
  """A call of a stack's own norm: sublayers_before ran before it, and x (B, T, D) is its input."""

  sublayers_before: int
  norm: Callable
  x: Tensor


class StackRecorder:
  """Replace attention functions, residual connections and norms of a stack, and record their calls.

  They are replaced during a run only.
  length, source_length: the tokens or patches of the stack's input, and of the encoder's, without
    padding.
  """

  def __init__(self, stack, recorder: Recorder, length: int | None, source_length: int | None):
    self.stack = stack
    self.recorder = recorder
    self.length = length
    self.source_length = source_length
    self.stream = StreamRecorder(recorder)
    self.norm_calls: list[NormCall] = []

  @contextlib.contextmanager
  def recording(self) -> Iterator[None]:
    """Record while the context is open; restore the stack at its end."""
    blocks = self.stack.blocks
    attentions = [attn for block in blocks for attn in (block.attn, block.cross) if attn]
    functions = [attn.attention_fn for attn in attentions]
    residuals = [block.residual for block in blocks]
    norms: dict[str, Callable] = {}
    for name in ("norm", "embed_norm"):
      norm = getattr(self.stack, name, None)
      if callable(norm):
        norms[name] = norm
    try:
      for attn in attentions:
        attn.attention_fn = self.recorder.wrap(attn.attention_fn)
      for block in blocks:
        block.residual = self.stream.wrap(block)
      for name, norm in norms.items():
        setattr(self.stack, name, self.wrap_norm(norm))
      yield
    finally:
      for attn, function in zip(attentions, functions, strict=True):
        attn.attention_fn = function
      for block, residual in zip(blocks, residuals, strict=True):
        block.residual = residual
      for name, norm in norms.items():
        setattr(self.stack, name, norm)

  def wrap_norm(self, norm: Callable) -> Callable:
    """Return a function that computes this norm and records the call."""

    def recorded_norm(x: Tensor) -> Tensor:
      x = x.contiguous()
      self.norm_calls.append(NormCall(len(self.stream.calls), norm, x))
      return norm(x)

    return recorded_norm

  @property
  def tensors(self) -> list[Tensor]:
    """Return all recorded tensors."""
    stream = [t for call in self.stream.calls for t in (call.x, call.output)]
    return stream + [call.x for call in self.norm_calls]

  def find_norm_call(self, sublayers_before: int) -> NormCall | None:
    """Return the call of a norm after this number of sublayers, or None if there was none."""
    calls = (call for call in self.norm_calls if call.sublayers_before == sublayers_before)
    return next(calls, None)

  def activations(self, token_part: Callable[[np.ndarray], np.ndarray]) -> Activations:
    """Return the activations of the recorded run.

    token_part: takes the embeddings (T, D) and returns the part of the tokens only.
    """
    calls = self.stream.calls
    first = self.find_norm_call(0)
    last = self.find_norm_call(len(calls))
    embeddings = to_numpy((first.x if first else calls[0].x)[0])[: self.length]
    return Activations(
      token_part(embeddings),
      embeddings,
      embedding_norm=Norm.from_module(first.norm) if first else None,
      sublayers=[self.sublayer(call) for call in calls],
      final_norm=Norm.from_module(last.norm) if last else None,
    )

  def sublayer(self, call: ResidualCall) -> Sublayer:
    """Return the activations of one sublayer."""
    block = call.block
    kinds = ("attn", "cross", "ff")
    kind = next(kind for kind in kinds if getattr(block, f"{kind}_norm") is call.norm)
    layer = next(i for i, other in enumerate(self.stack.blocks) if other is block)
    sublayer = Sublayer(
      kind,
      layer,
      x=to_numpy(call.x[0])[: self.length],
      output=to_numpy(call.output[0])[: self.length],
      norm=Norm.from_module(call.norm),
      is_post_norm=call.is_post_norm,
    )
    if call.attention_call is None:
      return sublayer
    out = getattr(block, kind).out
    heads = to_numpy(self.recorder.heads[call.attention_call][0])[:, : self.length]
    weights = to_numpy(self.recorder.weights[call.attention_call][0])
    num_keys = self.source_length if kind == "cross" else self.length
    out_bias = None if out.bias is None else to_numpy(out.bias)
    # The projection of the identity is its matrix in float32, whatever the dtype of the weights.
    identity = Tensor.eye(heads.shape[0] * heads.shape[2])
    return sublayer._replace(
      weights=weights[:, : self.length, :num_keys],
      heads=heads,
      out_weight=(to_numpy(out(identity)) - (0 if out_bias is None else out_bias)).T,
      out_bias=out_bias,
    )


def token_embeddings(model, inputs: Tensor, embeddings: np.ndarray) -> np.ndarray:
  """Return the part of embeddings (T, D) that comes from tokens or patches, without positions."""
  if model.task == "image-classification":
    rows, columns = (int(n) // p for n, p in zip(inputs.shape[2:], model.patch, strict=True))
    return embeddings - to_numpy(model.interpolated_positions(rows, columns)[0])
  tokens = to_numpy(model.tokens(inputs)[0])[: len(embeddings)]
  return tokens * getattr(model, "scale", 1.0)


def padded(ids: Sequence[int], context: int | None) -> list[int]:
  """Return ids with zeros appended to a multiple of LENGTH_MULTIPLE, or to the context if less."""
  length = -(-len(ids) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
  if context is not None:
    length = max(len(ids), min(length, context))
  return [*ids, *[0] * (length - len(ids))]


def mask_of_padding(ids: Tensor, length: int) -> Tensor:
  """Return the attention mask (1, S) of ids (1, S) of which the first `length` are tokens.

  It is an array, because tinygrad would compile kernels for each length if it were computed.
  """
  return Tensor((np.arange(int(ids.shape[1])) < length)[None])


def run(model, *inputs: Sequence[int] | np.ndarray) -> dict[str, Activations]:
  """Run a model and return the activations of each stack: "encoder" and "decoder", or only "".

  inputs: the token ids of a text, or pixels (1, C, height, width) for an image model.
  An encoder-decoder takes the token ids of a source and those of a target.
  """
  recorder = Recorder()
  is_encoder_decoder = model.task == "text2text-generation"
  stacks: dict[str, Any] = {"": model}
  if is_encoder_decoder:
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
  lengths = [None if isinstance(x, np.ndarray) else len(x) for x in inputs]
  stack_recorders = {
    name: StackRecorder(stack, recorder, length, lengths[0])
    for (name, stack), length in zip(stacks.items(), lengths, strict=True)
  }
  context = getattr(model, "context", None)
  tensors = [Tensor(x if isinstance(x, np.ndarray) else [padded(x, context)]) for x in inputs]
  with contextlib.ExitStack() as contexts:
    for stack_recorder in stack_recorders.values():
      contexts.enter_context(stack_recorder.recording())
    if is_encoder_decoder:
      mask = mask_of_padding(tensors[0], len(inputs[0]))
      y = model.decode(tensors[1], model.encode(tensors[0], mask), padding_mask(mask))
    elif model.task in ("image-classification", "text-generation"):
      # A causal mask hides the padding from the tokens, because it follows them.
      y = model.last_hidden_state(tensors[0])
    else:
      mask = mask_of_padding(tensors[0], len(inputs[0]))
      y = model.last_hidden_state(tensors[0], attention_mask=mask)
    recorded = [t for stack_recorder in stack_recorders.values() for t in stack_recorder.tensors]
    Tensor.realize(y, *recorder.weights, *recorder.heads, *recorded)
  results = {}
  for (name, stack_recorder), x in zip(stack_recorders.items(), tensors, strict=True):
    results[name] = stack_recorder.activations(functools.partial(token_embeddings, model, x))
  return results
