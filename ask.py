"""Run any model that is not decoder-only on texts or pictures: `python ask.py -m MODEL TEXT`.

The checkpoint's config.json determines the task: fill-mask, text-classification,
token-classification, question-answering, feature-extraction, text2text-generation (such as
translation) or image-classification.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer import cli
from tinyformer.cli import file_run, nearest, pair_tasks, pictures, ray_run
from tinyformer.device import select_device
from tinyformer.model import Model
from tinyformer.tasks import Answer, Prediction


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="ask.py",
    description="Fill masks, classify texts, tag tokens, answer questions, compare sentences, "
    "translate or classify images: the checkpoint determines the task.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument(
    "text",
    nargs="*",
    help="texts, picture files or folders of pictures; a question-answering model takes a question "
    "and a passage; "
    "- reads standard input (default: one text per line of standard input)",
  )
  cli.model_arguments(p, "owner/repo on the Hugging Face hub, or a folder", required=True)
  p.add_argument(
    "-k",
    "--top",
    metavar="K",
    type=cli.number(int, 1, cli.MAX_COUNT),
    default=5,
    help="number of candidates, labels, answers or ranked texts to print",
  )
  p.add_argument(
    "-n",
    "--max-new-tokens",
    metavar="N",
    type=cli.number(int, 1, cli.MAX_COUNT),
    help="maximum number of tokens of a translation or summary (default: the checkpoint's)",
  )
  p.add_argument(
    "-b",
    "--beams",
    metavar="N",
    type=cli.number(int, 1, 100),
    help="number of beams; 1 selects greedy decoding (default: the checkpoint's)",
  )
  long_texts = p.add_argument_group("long texts")
  long_texts.add_argument(
    "--stride",
    metavar="N",
    type=cli.number(int, 0, cli.MAX_COUNT),
    help="number of tokens that two windows of a long text or passage have in common (default: "
    "128, or half of a window if it is less)",
  )
  long_texts.add_argument(
    "--max-seq-len",
    metavar="N",
    type=cli.number(int, 1, cli.MAX_COUNT),
    help="number of tokens of a question and a window of the passage (default: 384, or the context "
    "if it is less)",
  )
  long_texts.add_argument(
    "--aggregation-strategy",
    choices=["simple", "first", "average", "max"],
    help="how the labels of tokens form entities, as in transformers (default: the label of each "
    "word's first token)",
  )
  file_run.add_arguments(
    p,
    ".jsonl, .csv or .parquet, or for embeddings .npy",
    "column that contains the text or the name of the picture; a "
    "question-answering model reads the columns question and passage",
  )
  nearest.add_arguments(p)
  pair_tasks.add_arguments(p)
  return p.parse_args(argv)


def read_texts(args: argparse.Namespace) -> list[str]:
  """Return the non-empty texts of the command line, or the lines of standard input.

  On the command line, "-" stands for all of standard input. Raises UsageError without any text.
  """
  if args.text:
    texts = [cli.read_input() if text == "-" else text for text in args.text]
  elif sys.stdin.isatty():
    raise cli.UsageError("no text: pass one as an argument, or pipe it to standard input")
  else:
    texts = cli.read_input().splitlines()
  texts = [text for text in texts if text.strip()]
  if not texts:
    raise cli.UsageError("the text is empty")
  return texts


def format_predictions(predictions: Sequence[Prediction]) -> Iterator[str]:
  """Yield a line for each prediction: its probability and its label."""
  for label, score in predictions:
    yield f"{score:6.1%}  {label}"


def fill_mask(model: Model, text: str, top: int) -> Iterator[str]:
  """Yield the most probable tokens for each mask, with an empty line between masks."""
  for n, predictions in enumerate(model.fill_mask(text, top)):
    if n:
      yield ""
    yield from format_predictions(predictions)


def format_scores(predictions: Sequence[Prediction], is_probability: bool) -> Iterator[str]:
  """Yield a line for each label and its score, which may be a value of a regression model."""
  if is_probability:
    yield from format_predictions(predictions)
  else:
    for label, value in predictions:
      yield f"{value:.4f}  {label}"


def classify(model: Model, text: str, top: int) -> Iterator[str]:
  """Yield the most probable labels; for a regression model, each value with its label."""
  yield from format_scores(model.classify(text, top), model.scores_are_probabilities)


def classify_images(model: Model, paths: list[str], top: int) -> Iterator[str]:
  """Yield the most probable labels of each picture, with its name if there are several."""
  for path in paths:
    for line in format_predictions(model.classify_image(path, top)):
      yield line if len(paths) == 1 else f"{path}: {line}"


def tag(model: Model, text: str, args: argparse.Namespace) -> Iterator[str]:
  """Yield the entities of a text: the mean probability, the label and the text."""
  for entity in model.tag(text, args.aggregation_strategy, args.stride):
    yield f"{entity.score:6.1%}  {entity.label}  {entity.text}"


def answer(model: Model, texts: list[str], args: argparse.Namespace) -> Iterator[str]:
  """Yield the most probable answers to a question about a passage, with their probabilities."""
  question, passage = texts
  for found in model.answer(question, passage, args.top, args.stride, args.max_seq_len):
    yield f"{found.score:6.1%}  {found.text}"


def compare(model: Model, texts: list[str]) -> Iterator[str]:
  """Yield the embedding of a single text, or the cosine similarity of each pair of texts."""
  embeddings = model.embed(texts)
  if len(texts) == 1:
    yield " ".join(f"{x:.6f}" for x in embeddings[0])
  lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
  normalized = embeddings / np.maximum(lengths, 1e-12)
  for i, text in enumerate(texts):
    for j, earlier in enumerate(texts[:i]):
      yield f"{normalized[i] @ normalized[j]:.4f}  {earlier}  |  {text}"


def translate(model: Model, text: str, args: argparse.Namespace) -> Iterator[str]:
  """Yield the text that an encoder-decoder generates."""
  yield model.translate(text, args.max_new_tokens, args.beams)


def check_window_options(args: argparse.Namespace, task: str) -> None:
  """Raise UsageError if an option for long texts does not belong to the task."""
  tasks_of_options = {
    "--stride": (args.stride, ("token-classification", "question-answering")),
    "--max-seq-len": (args.max_seq_len, ("question-answering",)),
    "--aggregation-strategy": (args.aggregation_strategy, ("token-classification",)),
  }
  for option, (value, tasks) in tasks_of_options.items():
    if value is not None and task not in tasks:
      raise cli.UsageError(f"{option} needs a model for {' or '.join(tasks)}, not for {task}")


def run_task(args: argparse.Namespace, model: Model, texts: list[str]) -> Iterable[Iterator[str]]:
  """Return the output lines of each text, or of all texts together if the task relates them.

  Raises UsageError if the model is decoder-only, or if the number of texts does not fit the task.
  """
  if model.task == "text-generation":
    raise cli.UsageError(f"{args.model} is a model for {model.task}: use gpt.py")
  check_window_options(args, model.task)
  if args.nearest:
    return (search(args, model, text) for text in texts)

  def lines(predictions: list[Prediction]) -> Iterator[str]:
    return format_scores(predictions, args.labels is not None or model.scores_are_probabilities)

  if (results := pair_tasks.results(args, model, texts, lines)) is not None:
    return results
  if model.task == "text2text-generation":
    return (translate(model, text, args) for text in texts)
  if model.task == "image-classification":
    return [classify_images(model, pictures.expand_folders(texts), args.top)]
  if model.task == "feature-extraction":
    return [compare(model, texts)]
  if model.task == "question-answering":
    if len(texts) != 2:
      raise cli.UsageError(
        f"this model answers a question about a passage, but got {len(texts)} text(s): "
        "pass the question and the passage (- is standard input)"
      )
    return [answer(model, texts, args)]
  if model.task == "token-classification":
    return (tag(model, text, args) for text in texts)
  function = fill_mask if model.task == "fill-mask" else classify
  return (function(model, text, args.top) for text in texts)


def row_task(args: argparse.Namespace, model: Model) -> file_run.RowTask:
  """Return what to compute for each row of --input. Raises UsageError if there is no such task."""
  check_window_options(args, model.task)
  top = args.top
  common = {"model": file_run.model_name(args.model, model.folder), "dtype": args.dtype}
  with_top = common | {"top": top}
  text = (args.column,)
  if (pair_task := pair_tasks.row_task(args, model, common)) is not None:
    return pair_task
  if model.task == "feature-extraction":

    def embed(rows: Sequence[tuple[str, ...]]) -> list[np.ndarray]:
      return list(model.embed([row[0] for row in rows]))

    return file_run.RowTask(embed, "embedding", common, text, is_batched=True)
  if model.task == "text-classification":
    return classification_task(args, model, with_top)
  if model.task == "image-classification":
    # The rows of a folder are names of its files.
    folder = args.input if args.input.is_dir() else Path()
    function = file_run.each(lambda path: model.classify_image(folder / path, top))
    task = file_run.RowTask(function, "predictions", with_top, text, reads_files=True)
    return task._replace(fields=Prediction._fields, width=min(top, len(model.module.labels)))
  if model.task == "question-answering":
    windows = {"doc_stride": args.stride, "max_seq_len": args.max_seq_len}
    function = file_run.each(lambda *texts: model.answer(texts[0], texts[1], top, **windows))
    task = file_run.RowTask(function, "answers", with_top | windows, ("question", "passage"))
    return task._replace(fields=Answer._fields, width=top)
  if model.task == "fill-mask":
    function = file_run.each(lambda text: model.fill_mask(text, top))
    return file_run.RowTask(function, "masks", with_top, text)
  if model.task == "token-classification":
    options = {"aggregation_strategy": args.aggregation_strategy, "stride": args.stride}
    function = file_run.each(lambda text: model.tag(text, **options))
    return file_run.RowTask(function, "entities", common | options, text)
  if model.task == "text2text-generation":
    options = {"max_new_tokens": args.max_new_tokens, "beams": args.beams}
    function = file_run.each(lambda text: model.translate(text, *options.values()))
    return file_run.RowTask(function, "text", common | options, text)
  raise cli.UsageError(f"{args.model} is a model for {model.task}: use gpt.py")


def classification_task(
  args: argparse.Namespace, model: Model, settings: dict[str, Any]
) -> file_run.RowTask:
  """Return the task of a text classifier, for texts or for pairs."""
  columns = (args.column, args.pair_column or "text_pair") if args.pair else (args.column,)

  def classify_rows(rows: Sequence[tuple[str, ...]]) -> list[list[Prediction]]:
    texts = [(row[0], row[1]) if args.pair else row[0] for row in rows]
    return model.classify_many(texts, args.top)

  # A regression model returns all its values.
  num_labels = len(model.module.labels)
  width = min(args.top, num_labels) if model.scores_are_probabilities else num_labels
  task = file_run.RowTask(classify_rows, "predictions", settings, columns, is_batched=True)
  return task._replace(fields=Prediction._fields, width=width)


def load_task(args: argparse.Namespace) -> file_run.RowTask:
  """Load the model, and return what to compute for each row of --input. An actor of --ray calls it.

  Raises UsageError if there is no such task.
  """
  select_device(args.device)
  return row_task(args, Model(cli.find_model(args, args.model), args.dtype))


def search(args: argparse.Namespace, model: Model, text: str) -> Iterator[str]:
  """Yield the texts of --corpus that are most similar to a text: the similarity and the text."""
  corpus = nearest.Corpus(args.corpus, args.texts, file_run.model_name(args.model, model.folder))
  for similarity, found in corpus.find(model.embed([text])[0], args.nearest):
    yield f"{similarity:.4f}  {found}"


def print_answers(args: argparse.Namespace, model: Model, texts: list[str]) -> None:
  """Print the results of the texts, with an empty line between them."""
  for n, lines in enumerate(run_task(args, model, texts)):
    if n:
      cli.write("\n")
    for line in lines:
      cli.write(f"{line}\n")


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  file_run.check_arguments(args, bool(args.text))
  nearest.check_arguments(args)
  pair_tasks.check_arguments(args)
  if args.ray is not None:
    ray_run.run(args, "ask")
    return 0
  texts = [] if args.input else read_texts(args)
  start = time.monotonic()
  device = select_device(args.device)
  model = Model(cli.find_model(args, args.model), args.dtype)
  if args.input:
    file_run.run(args, row_task(args, model))
  else:
    print_answers(args, model, texts)
  if args.verbose:
    seconds = time.monotonic() - start
    cli.note(f"{model.folder} in {args.dtype} on {device}: {seconds:.1f} s")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
