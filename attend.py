"""Show the attention weights of any model: `python attend.py -p "sentence"`.

The output is text in the terminal, a PNG, or an HTML page. The page also shows what each layer
predicts and what contributes to the prediction.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tinyformer import cli
from tinyformer.device import select_device
from tinyformer.files import write_text
from tinyformer.interpret.scale import LINEAR, SCALES, Scale


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Parse the command line; argv=None means sys.argv."""
  p = argparse.ArgumentParser(
    prog="attend.py",
    description=(
      "Show attention weights of any model in the terminal, as a picture, or as a page."
    ),
  )
  source = p.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "-p",
    "--prompt",
    metavar="TEXT",
    help="text, or the name of an image file if the model reads images; - reads standard input",
  )
  source.add_argument("--picture", metavar="FILE", help="image file, if the model reads images")
  cli.model_arguments(
    p, "gpt2, owner/repo, or a folder (default: tiny, which is part of the repository)"
  )
  p.add_argument(
    "--target",
    metavar="TEXT",
    help="target text for an encoder-decoder (default: its own output, by greedy decoding)",
  )
  p.add_argument(
    "--html",
    type=Path,
    metavar="FILE",
    help="write a page with all heads, the prediction after each layer, and its contributions",
  )
  p.add_argument("--png", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
  p.add_argument(
    "--layer",
    type=cli.number(int, 0, cli.MAX_COUNT),
    metavar="N",
    help="show only layer N, counted from 0; with --html, select layer N at first",
  )
  p.add_argument(
    "--head",
    type=cli.number(int, 0, cli.MAX_COUNT),
    metavar="N",
    help="show only head N, counted from 0; with --html, select head N at first",
  )
  p.add_argument(
    "--last",
    type=cli.number(int, 1, cli.MAX_COUNT),
    metavar="N",
    help="read only the last N tokens of the text (at most 256 can be displayed)",
  )
  p.add_argument(
    "--scale",
    choices=SCALES,
    default=LINEAR.name,
    help="linear: the shade is proportional to the weight; sqrt: to its square root, which shows "
    "small weights better; with --html, the scale selected at first (default: %(default)s)",
  )
  return p.parse_args(argv)


def check_output_files(args: argparse.Namespace) -> None:
  """Raise UsageError if a file cannot be written, before anything is computed."""
  for path in (args.html, args.png):
    if path and path.is_dir():
      raise cli.UsageError(f"{path} is a folder: pass the name of a file")
    if path and not path.parent.is_dir():
      raise cli.UsageError(
        f"the folder {path.parent} does not exist: create it with mkdir -p, or pass another path"
      )
  if args.png and args.png == args.html:
    raise cli.UsageError(f"--png and --html are both {args.png}: pass two different files")
  if args.png:
    try:
      import tinyformer.interpret.figure  # noqa: F401
    except ImportError as e:
      raise cli.UsageError(str(e)) from e


def inspect(args: argparse.Namespace, folder: Path, prompt: str):
  """Run the model and return its InspectedRun.

  Raises UsageError if the model does not support an argument, or if the input cannot be displayed.
  """
  from tinyformer.inspected_run import inspect
  from tinyformer.model import Model

  model = Model(folder, args.dtype)
  name = args.model or "tiny"
  if args.target is not None and model.task != "text2text-generation":
    raise cli.UsageError(f"{name} is not an encoder-decoder: omit --target")
  if args.picture and model.task != "image-classification":
    raise cli.UsageError(f"{name} reads text, not images: use -p instead of --picture")
  if args.last and model.task == "image-classification":
    raise cli.UsageError("--last applies to texts, but this model reads images: omit --last")
  try:
    run = inspect(model, prompt, args.target, args.last)
  except ImportError as e:
    raise cli.UsageError(str(e)) from e
  run.name = name
  return run


def terminal_lines(
  inspection, layer: int | None, head: int | None, scale: Scale = LINEAR
) -> Iterator[str]:
  """Yield the lines that show heads in a terminal, and a legend. layer, head: None means all."""
  from tinyformer.interpret.terminal import legend, render_heads, terminal_label

  width = shutil.get_terminal_size((160, 24)).columns
  image = inspection.image
  for attention_map in inspection.maps:
    num_layers, num_heads = attention_map.weights.shape[:2]
    labels = [terminal_label(label) for label in inspection.texts[attention_map.rows].labels]
    heads = range(num_heads) if head is None else [head]
    if head is not None and head >= num_heads:
      continue
    for i in range(num_layers):
      if layer not in (None, i):
        continue
      weights = attention_map.weights[i]
      if image:  # show the attention of the class token, arranged like the patches
        weights = weights[:, 0, 1:].reshape(num_heads, image.rows, image.columns)
        largest = weights.max((1, 2), keepdims=True)
        shades = scale.shade(weights, largest)
        labels = [""] * image.rows
      else:
        shades = scale.shade(weights)
      title = f"{attention_map.name}, layer {i}" if attention_map.name else f"layer {i}"
      yield from render_heads(title, heads, shades, labels=labels, width=width)
  yield legend(scale, is_image=image is not None)


def check_layer_and_head(inspection, layer: int | None, head: int | None) -> None:
  """Raise UsageError if no attention map has this layer or head."""
  for axis, name, index in ((0, "layer", layer), (1, "head", head)):
    count = max(m.weights.shape[axis] for m in inspection.maps)
    if index is not None and index >= count:
      raise cli.UsageError(
        f"--{name} {index} does not exist: this model has {name}s 0 to {count - 1}"
      )


def main(argv: list[str] | None = None) -> int:
  """Run the command and return its exit status. Raises UsageError for invalid arguments."""
  args = parse(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  prompt = args.picture or cli.read_prompt(args.prompt)
  if args.target is not None:
    cli.read_prompt(args.target)  # raises Usage for a target that is empty or not text
  check_output_files(args)
  select_device(args.device)
  folder = cli.find_model(args, args.model or "tiny")
  run = inspect(args, folder, prompt)
  check_layer_and_head(run.inspection, args.layer, args.head)
  if args.png:
    run.save_picture(args.png, args.layer, args.head, args.scale)
  if args.html:
    write_text(args.html, run.page(args.layer, args.head, args.scale))
  for path in (args.png, args.html):
    if path and not args.quiet:
      cli.note(f"{path}: {path.stat().st_size / 1000:,.0f} kB")
  if not args.png and not args.html:
    for line in terminal_lines(run.inspection, args.layer, args.head, SCALES[args.scale]):
      cli.write(f"{line}\n")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
