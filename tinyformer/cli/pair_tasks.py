"""Options of tasks that read two texts at a time: `--pair`, `--rerank` and `--labels`."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tinyformer.cli import file_run
from tinyformer.cli.errors import UsageError
from tinyformer.tasks import Prediction

HYPOTHESIS_TEMPLATE = "This example is {}."


def add_arguments(p: argparse.ArgumentParser) -> None:
  """Add the options of a text classifier that was trained on pairs of texts."""
  group = p.add_argument_group("pairs of texts")
  group.add_argument(
    "--pair",
    action="store_true",
    help="classify pairs: the first two texts, the next two, and so on; in a file, the columns of "
    "--column and --pair-column",
  )
  group.add_argument(
    "--pair-column",
    metavar="NAME",
    help="column that contains the second text of a pair (default: text_pair)",
  )
  group.add_argument(
    "--rerank",
    metavar="QUERY",
    help="sort the texts by their relevance to a query; in a file, give each row a score",
  )
  group.add_argument(
    "--labels",
    metavar="A,B,...",
    help="classify into these labels, with a model for natural-language inference",
  )
  group.add_argument(
    "--hypothesis-template",
    metavar="TEXT",
    help="hypothesis about a text, with {} for the label of --labels (default: "
    f"{HYPOTHESIS_TEMPLATE!r})",
  )
  group.add_argument(
    "--multi-label",
    action="store_true",
    help="several of --labels may fit a text: give each a probability of its own",
  )


def check_arguments(args: argparse.Namespace) -> None:
  """Raise UsageError if options exclude each other, or if one lacks another that it needs."""
  modes = {"--pair": args.pair, "--rerank": args.rerank, "--labels": args.labels}
  used = [name for name, value in modes.items() if value not in (None, False)]
  if args.nearest is not None:
    used.append("--nearest")
  if len(used) > 1:
    raise UsageError(f"{used[0]} and {used[1]} are different tasks: leave one of them out")
  if args.labels is None and (args.multi_label or args.hypothesis_template is not None):
    name = "--multi-label" if args.multi_label else "--hypothesis-template"
    raise UsageError(f"{name} needs --labels")
  if args.pair_column is not None and not (args.pair and args.input):
    raise UsageError("--pair-column needs --pair and --input")
  if args.labels is not None and not label_list(args):
    raise UsageError("--labels has no label: pass labels with commas between them")


def label_list(args: argparse.Namespace) -> list[str]:
  """Return the labels of --labels."""
  return [label.strip() for label in args.labels.split(",") if label.strip()]


def zero_shot(args: argparse.Namespace, model, texts: Sequence[str]) -> list[list[Prediction]]:
  """Classify texts into --labels, and return at most --top labels of each."""
  template = args.hypothesis_template or HYPOTHESIS_TEMPLATE
  options = (label_list(args), template, args.multi_label)
  return [labels[: args.top] for labels in model.classify_zero_shot_many(texts, *options)]


def pairs_of(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yield the first two texts, the next two, and so on. Raises UsageError for an odd number."""
  if len(texts) % 2:
    raise UsageError(
      f"--pair needs two texts for each pair, but got {len(texts)}: pass one more, or one less"
    )
  return zip(texts[::2], texts[1::2], strict=True)


def results(
  args: argparse.Namespace, model, texts: list[str], lines: Callable[[Any], Iterator[str]]
) -> Iterable[Iterator[str]] | None:
  """Return the output lines of each pair or text, or None if no option of this file is used.

  lines: formats the predictions of a text or a pair.
  """
  if args.pair:
    return (lines(model.classify(pair, args.top)) for pair in pairs_of(texts))
  if args.labels is not None:
    return map(lines, zero_shot(args, model, texts))
  if args.rerank is not None:
    ranking = model.rerank(args.rerank, texts, args.top)
    return [iter([f"{found.score:.4f}  {found.text}" for found in ranking])]
  return None


def row_task(args: argparse.Namespace, model, settings: dict[str, Any]) -> file_run.RowTask | None:
  """Return what to compute for each row of --input, or None if no option of this file is used.

  settings: the options that determine the results of every task.
  """
  columns = (args.column,)
  if args.labels is not None:
    labels = label_list(args)
    options = {
      "top": args.top,
      "labels": labels,
      "hypothesis_template": args.hypothesis_template or HYPOTHESIS_TEMPLATE,
      "multi_label": args.multi_label,
    }

    def classify(rows: Sequence[tuple[str, ...]]) -> list[list[Prediction]]:
      return zero_shot(args, model, [text for (text,) in rows])

    task = file_run.RowTask(classify, "predictions", settings | options, columns, is_batched=True)
    return task._replace(fields=Prediction._fields, width=min(args.top, len(labels)))
  if args.rerank is not None:
    query = args.rerank

    def score(rows: Sequence[tuple[str, ...]]) -> list[float]:
      ranking = model.rerank(query, [text for (text,) in rows])
      return [found.score for found in sorted(ranking, key=lambda found: found.corpus_id)]

    options = {"rerank": query}
    return file_run.RowTask(score, "score", settings | options, columns, is_batched=True)
  if args.pair and model.task != "text-classification":
    raise UsageError(f"--pair needs a model for text-classification, not for {model.task}")
  return None
