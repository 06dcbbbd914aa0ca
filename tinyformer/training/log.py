"""log.csv, the log of a training run with one line per evaluation."""

from pathlib import Path

from tinyformer.files import printable, read_text, write_text

HEADER = "step,tokens,train_loss,val_loss,bits_per_byte,seconds"


def read_lines(path: Path) -> list[str]:
  """Return the lines of a log. Raises OSError, or ValueError if the file is not UTF-8."""
  try:
    return read_text(path).splitlines()
  except ValueError as e:
    raise ValueError(f"{path} is not a log of train.py: {e}") from e


def read_log(path: Path, step: int) -> list[str]:
  """Return the header of a log and its lines up to a step, or only HEADER if there is no file.

  Raises ValueError if the file is damaged.
  """
  lines = read_lines(path) if path.exists() else [HEADER]
  steps, _, _ = parse_losses(lines, path)
  return lines[:1] + [line for line, n in zip(lines[1:], steps, strict=True) if n <= step]


def parse_losses(
  lines: list[str], source: str | Path = "log.csv"
) -> tuple[list[int], list[float], list[float]]:
  """Return the steps, training losses and validation losses of a log, in nats per token.

  Raises ValueError if a line has no such numbers. source: the file's name in error messages.
  """
  steps, train_losses, val_losses = [], [], []
  for n, line in enumerate(lines[1:], 2):
    try:
      step, _, train_loss, val_loss, *_ = line.split(",")
      steps.append(int(step))
      train_losses.append(float(train_loss))
      val_losses.append(float(val_loss))
    except ValueError as e:
      raise ValueError(
        f"{source} is not a log of train.py: line {n} has no step and losses: {printable(line)}"
      ) from e
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
