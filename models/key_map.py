"""A key map states which tensor of a checkpoint holds which parameter of a model."""

import re
from dataclasses import dataclass, field

from tinygrad import nn


@dataclass(frozen=True)
class KeyMap:
  """The tensor names of an architecture's checkpoints. All patterns are regular expressions.

  rules: beginning of a parameter's name -> beginning of the tensor's name; the first match applies.
    If several parameters map to one tensor, the tensor is their concatenation, in model order.
  by_head: matches tensors that hold several parameters with their rows ordered by attention head:
    those of head 0 from each parameter, then those of head 1. The number of heads is the config's.
  transposed: matches tensors that the checkpoint stores as (inputs, outputs).
  ignored: tensors that a checkpoint may contain but the model does not need -> the reason.
  legacy: parts of names in older checkpoints -> the current spelling.
  stacked: tensors that are concatenated to form one parameter -> the name of the result.
    Group 2 of the pattern must match the index of the tensor, such as 3 in `experts.3.w1`.
  optional: tensors that a checkpoint may lack -> the reason.
    The parameter keeps its initial value if the tensor is missing.
  tied: a tensor of a tied head -> the tensor that it must equal if a checkpoint contains it, then
    other tensors of that head. Without them, the model has another head and ignores the tensor.
  """

  rules: dict[str, str]
  by_head: str = "$^"  # matches nothing
  transposed: str = "$^"
  ignored: dict[str, str] = field(default_factory=dict)
  legacy: dict[str, str] = field(default_factory=dict)
  stacked: dict[str, str] = field(default_factory=dict)
  optional: dict[str, str] = field(default_factory=dict)
  tied: dict[str, tuple[str, ...]] = field(default_factory=dict)

  def table(self, model) -> dict[str, list[str]]:
    """Return the name of each tensor in a checkpoint and the names of the parameters it holds."""
    table: dict[str, list[str]] = {}
    for parameter in nn.state.get_state_dict(model):
      pattern = next(p for p in self.rules if re.match(p, parameter))
      tensor = re.sub(pattern, self.rules[pattern], parameter)
      table.setdefault(tensor, []).append(parameter)
    return table


def tied_decoder(tokens: str, rules: dict[str, str]) -> dict[str, tuple[str, ...]]:
  """Return KeyMap.tied for MaskedLMHead, whose decoder shares the weights of `tokens` and a bias.

  rules: those of the key map.
  """
  bias, decoder = rules[r"head\.bias"], rules[r"head\.decoder"]
  return {f"{decoder}.weight": (tokens, bias), f"{decoder}.bias": (bias,)}
