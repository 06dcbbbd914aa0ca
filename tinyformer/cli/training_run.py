"""A run of train.py: its batches, evaluations, log and checkpoints."""

import argparse
import math
import sys
import time
from typing import Any

import numpy as np

from tinyformer import cli
from tinyformer.cli.sampler import Sampler
from tinyformer.cli.training_model import ModelFolder
from tinyformer.cli.training_resume import CHECKPOINT, CHECKPOINT_KEY, run_settings
from tinyformer.training import batches, plot_loss
from tinyformer.training.checkpoint import restore_checkpoint, save_checkpoint
from tinyformer.training.documents import Corpus
from tinyformer.training.log import TrainingLog, parse_losses
from tinyformer.training.schedules import cosine_schedule
from tinyformer.training.trainer import Trainer

# Sequences of the validation text that an evaluation uses at most.
MAX_EVAL_SEQUENCES = 128


class TextRun:
  """What training.trainer.train needs to train a GPT-2 on text; see training.run.Run.

  progress: the result of training_resume.initial_progress.
  """

  def __init__(
    self,
    args: argparse.Namespace,
    progress: dict[str, Any],
    trainer: Trainer,
    corpus: Corpus,
    folder: ModelFolder,
  ):
    self.args = args
    self.trainer = trainer
    self.corpus = corpus
    self.folder = folder
    self.steps: int = args.steps
    self.eval_interval: int = args.eval_interval
    self.step: int = progress["step"]
    self.recent_losses: list[float] = progress["recent"]
    self.best_val_loss: float = progress["best"]
    self.text_hash: str = progress["text"]
    self.settings = run_settings(args)
    self.checkpoint_file = args.out / CHECKPOINT
    self.saved_step = self.step
    if args.resume:
      restore_checkpoint(self.checkpoint_file, trainer, CHECKPOINT_KEY)
      folder.delete_partial_files()
    else:
      # From its first file on, the folder contains the checkpoint, which marks it as a run's.
      folder.clear()
      self.save_checkpoint()
      folder.create()
    folder.copy_tokenizer()
    self.log = TrainingLog(args.out / "log.csv", self.step)
    self.sampler = Sampler(args, folder, corpus.num_documents)
    self.plotted = False
    self.bar = cli.Bar("train")
    self.start_clock()

  @property
  def tokens_per_step(self) -> int:
    return self.args.batch * self.args.grad_accum_steps * self.args.context

  def start_clock(self) -> None:
    """Begin to measure the duration of the steps until the next evaluation."""
    self.first_step = self.step
    self.start = time.monotonic()

  def learning_rate(self, step: int) -> float:
    return cosine_schedule(step, self.steps, self.args.warmup, self.args.lr)

  def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random inputs and targets, both (batch * grad_accum_steps, context)."""
    count = self.args.batch * self.args.grad_accum_steps
    sequences = batches.sample_batch(
      self.corpus.train_ids, self.args.context, count, self.args.seed, step
    )
    return batches.inputs_and_targets(sequences)

  def report(self, loss: float) -> None:
    """Show the loss and the speed. Raises ValueError if the loss is NaN or infinite."""
    self.check_loss(loss)
    speed = (self.step - self.first_step) * self.tokens_per_step / (time.monotonic() - self.start)
    self.bar(self.step, self.steps, f"loss {loss:.3f} {speed:,.0f} tokens/s")

  def check_loss(self, value: float) -> None:
    """Raise ValueError if a loss is NaN or infinite."""
    if math.isfinite(value):
      return
    remedy = "try a lower --lr"
    if self.saved_step > 0:
      remedy = f"{self.checkpoint_file} is the last good checkpoint"
    raise ValueError(f"the loss of step {self.step} is {value}: {remedy}")

  def evaluate(self) -> None:
    """Compute the validation loss, save the model if it is the best, and write the log."""
    self.bar.clear()
    val_loss = self.val_loss()
    train_loss = float(np.mean(self.recent_losses))
    self.recent_losses = []
    bits_per_byte = val_loss * self.corpus.bits_per_byte
    seconds = time.monotonic() - self.start
    tokens = self.step * self.tokens_per_step
    self.log.add(self.step, tokens, (train_loss, val_loss, bits_per_byte), seconds)
    self.check_loss(val_loss)
    cli.note(
      f"step {self.step}: train loss {train_loss:.3f}, validation loss {val_loss:.3f} "
      f"nats per token, {bits_per_byte:.3f} bits per byte"
    )
    if val_loss < self.best_val_loss:
      self.best_val_loss = val_loss
      self.folder.save(self.folder.best)
    self.sampler.print_sample(self.trainer)
    self.log.write()
    self.plotted = plot_loss.plot(self.log.lines, self.args.out / "loss.png")

  def val_loss(self) -> float:
    """Return the mean loss of evenly spaced sequences of the validation text."""
    windows = batches.windows(self.corpus.val_ids, self.args.context)
    sequences = batches.eval_batches(windows, MAX_EVAL_SEQUENCES, self.args.batch)
    losses = [self.trainer.evaluate(*batches.inputs_and_targets(batch)) for batch in sequences]
    return float(np.mean(losses))

  def evaluate_resumed_step(self) -> None:
    """Evaluate and save before the first step, if a new --eval-interval requires it."""
    is_due = self.step > 0 and self.step % self.eval_interval == 0
    if is_due and not self.log.contains(self.step):
      self.evaluate()
      self.save()

  def save_is_due(self) -> bool:
    """Return whether this step has just been evaluated."""
    return self.log.contains(self.step)

  def save(self) -> None:
    """Save the last model and a checkpoint of the training state."""
    self.folder.save(self.folder.last)
    self.save_checkpoint()
    self.start_clock()

  def save_checkpoint(self) -> None:
    """Save a checkpoint of the training state."""
    progress = {
      "step": self.step,
      "best": self.best_val_loss,
      "recent": self.recent_losses,
      "text": self.text_hash,
      "settings": self.settings,
    }
    save_checkpoint(self.checkpoint_file, self.trainer, CHECKPOINT_KEY, progress)
    self.saved_step = self.step

  def finish(self, signal_number: int) -> int:
    """Plot the losses in the terminal if there is no PNG file, and return the exit status.

    signal_number: the signal that stopped the run, or 0.
    """
    self.bar.clear()
    if len(self.log.lines) > 2 and not self.plotted and cli.fancy(sys.stderr):
      steps, _, val_losses = parse_losses(self.log.lines)
      cli.note(plot_loss.terminal_plot(steps, val_losses))
    if self.step >= self.steps:
      return 0
    cli.note(f"stopped after step {self.step}: continue with --resume")
    return 128 + signal_number
