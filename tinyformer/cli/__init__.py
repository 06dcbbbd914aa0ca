"""What the commands share: arguments, progress on standard error, and how a command ends."""

from tinyformer.cli.arguments import (
  HelpFormatter,
  find_model,
  model_arguments,
  number,
  read_input,
  read_prompt,
)
from tinyformer.cli.errors import UsageError, deferred_interrupt, run
from tinyformer.cli.progress import Bar, clock, escape_controls, fancy, note, write

__all__ = [
  "Bar",
  "HelpFormatter",
  "UsageError",
  "clock",
  "deferred_interrupt",
  "escape_controls",
  "fancy",
  "find_model",
  "model_arguments",
  "note",
  "number",
  "read_input",
  "read_prompt",
  "run",
  "write",
]
