"""log.csv, the log of a training run with one line per evaluation."""

from pathlib import Path

from tinyformer.files import write_text

HEADER = "step,tokens,train_loss,val_loss,bits_per_byte,seconds"


def read_log(path: Path, step: int) -> list[str]:
  """Return the header of a log and its lines up to a step, or only HEADER if there is no file."""
  lines = path.read_text().splitlines() if path.exists() else [HEADER]
  return lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]


def parse_losses(lines: list[str]) -> tuple[list[int], list[float], list[float]]:
  """Return the steps, training losses and validation losses of a log, in nats per token.

  Raises ValueError or IndexError if a line has no such numbers.
  """
  rows = [line.split(",") for line in lines[1:]]
  steps = [int(row[0]) for row in rows]
  train_losses = [float(row[2]) for row in rows]
  val_losses = [float(row[3]) for row in rows]
  return steps, train_losses, val_losses


class TrainingLog:
  """The lines of log.csv in an output folder, up to a step.

  A run that was killed after it wrote the log, but before it saved, repeats the later steps.
  """

  def __init__(self, file: Path, step: int):
    self.file = file
    self.lines = read_log(file, step)

  def add(self, step: int, tokens: int, losses: tuple[float, float, float], seconds: float) -> None:
    """Add a line.

    losses: the training loss and the validation loss in nats per token, and the validation loss in
    bits per byte.
    """
    numbers = ",".join(f"{x:.4f}" for x in losses)
    self.lines.append(f"{step},{tokens},{numbers},{seconds:.0f}")

  def contains(self, step: int) -> bool:
    """Return whether the last line is that of a step."""
    return self.lines[-1].startswith(f"{step},")

  def write(self) -> None:
    """Write the file atomically."""
    write_text(self.file, "\n".join(self.lines) + "\n")
