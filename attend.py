"""`python attend.py -p "sentence"` shows who attends to whom in any model, in shades, as a picture, or as a page with what it predicts and why."""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tinyformer import cli
from tinyformer.device import select_device


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="attend.py", description="Show who attends to whom in a sentence or a picture."
  )
  what = p.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "-p",
    "--prompt",
    help="the sentence, or for a model that looks at pictures the file of one; - is standard input",
  )
  what.add_argument(
    "--picture", metavar="FILE", help="the picture, for a model that looks at pictures"
  )
  cli.model_arguments(
    p, "gpt2, owner/repo, or a folder (default: tiny, the model that comes with the project)"
  )
  p.add_argument(
    "--target",
    metavar="TEXT",
    help="what an encoder-decoder is to have written (default: what it writes, always the likeliest token)",
  )
  p.add_argument(
    "--html",
    type=Path,
    metavar="FILE",
    help="write a page: every head, what each layer predicts, and what adds to that",
  )
  p.add_argument("--png", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
  p.add_argument(
    "--layer",
    type=cli.number(int, 0),
    help="only this layer, the first is 0; of a page, the one that is open",
  )
  p.add_argument(
    "--head",
    type=cli.number(int, 0),
    help="only this head, the first is 0; of a page, the one that is open",
  )
  p.add_argument(
    "--last",
    type=cli.number(int, 1),
    metavar="N",
    help="read the last N tokens alone; more than 256 are too many to look at",
  )
  return p.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Raises Usage for files that could not be written, before anything is computed."""
  for path in (args.html, args.png):
    if path and path.is_dir():
      raise cli.Usage(f"{path} is a folder: name a file in it")
    if path and not path.parent.is_dir():
      raise cli.Usage(f"there is no folder {path.parent}: make it with mkdir -p, or name another")
  if args.png and args.png == args.html:
    raise cli.Usage("--png and --html name the same file")
  if args.png:
    try:
      import tinyformer.interpret.figure  # noqa: F401
    except ImportError as e:
      raise cli.Usage(str(e)) from e


def observe(args: argparse.Namespace, folder: Path, prompt: str):
  """The scene that the arguments ask for. Raises Usage for a model, or a text, that do not fit them."""
  from tinyformer import checkpoints
  from tinyformer.interpret import inspection
  from tinyformer.interpret.recorder import Recorder
  from tinyformer.tokenization import load_tokenizer

  recorder = Recorder()
  model = checkpoints.load_module(folder, args.dtype, attention_fn=recorder)
  if args.target is not None and model.task != "text2text-generation":
    raise cli.Usage(f"{args.model or 'tiny'} is no encoder-decoder: it has no --target")
  if args.picture and model.task != "image-classification":
    raise cli.Usage(f"{args.model or 'tiny'} reads text: -p takes it, not --picture")
  try:
    if model.task == "image-classification":
      if args.last:
        raise cli.Usage("a picture has no end to see alone: leave --last out")
      if not Path(prompt).is_file():
        raise cli.Usage(f"there is no file {prompt}: this model looks at pictures")
      return inspection.of_picture(model, recorder, folder, prompt)
    tokenizer = load_tokenizer(folder, model.vocab_size)
    if model.task == "text2text-generation":
      return inspection.of_pair(model, tokenizer, recorder, folder, prompt, args.target, args.last)
    return inspection.of_text(model, tokenizer, recorder, prompt, args.last)
  except (inspection.TooLong, ImportError) as e:
    raise cli.Usage(str(e)) from e


def shades(scene, layer: int | None, head: int | None) -> Iterator[str]:
  """The lines of every head, or of some, for a terminal."""
  from tinyformer.interpret.terminal import drawn, plain

  width = shutil.get_terminal_size((160, 24)).columns
  for m in scene.maps:
    layers, heads = m.weights.shape[:2]
    names = [plain(name) for name in scene.texts[m.rows].labels]
    for i in range(layers) if layer is None else [layer] * (layer < layers):
      maps = m.weights[i]
      if scene.picture:  # what the class token attends to, laid out as the patches are
        maps, names = (
          maps[:, 0, 1:].reshape(heads, scene.picture.rows, scene.picture.columns),
          [""] * scene.picture.rows,
        )
      if head is None or head < heads:
        yield from drawn(
          f"{m.name}{', ' if m.name else ''}layer {i}",
          range(heads) if head is None else [head],
          maps,
          names,
          width,
        )


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  prompt = args.picture or cli.read_prompt(args.prompt)
  if args.target is not None:
    cli.read_prompt(args.target)
  check(args)
  select_device(args.device)
  folder = cli.find_model(args, args.model or "tiny")
  scene = observe(args, folder, prompt)
  for axis, name, value in ((0, "layer", args.layer), (1, "head", args.head)):
    if value is not None and value >= (most := max(m.weights.shape[axis] for m in scene.maps)):
      raise cli.Usage(f"--{name} {value}: this model has {name}s 0 to {most - 1}")
  if args.png:
    from tinyformer.interpret import figure

    figure.draw(scene, args.png, args.layer, args.head)
  if args.html:
    from tinyformer.checkpoints.safetensors import write_text
    from tinyformer.interpret.labels import safe
    from tinyformer.interpret.page import data, page

    name = safe(args.model or "tiny")
    sizes = ", ".join(
      f"{m.name + ': ' if m.name else ''}{m.weights.shape[0]} layers of {m.weights.shape[1]} heads"
      for m in scene.maps
    )
    write_text(
      args.html,
      page(
        data(scene, f"Who attends to whom in {name}", f"{name} · {sizes}", args.layer, args.head)
      ),
    )
  for path in (args.png, args.html):
    if path and not args.quiet:
      cli.note(f"{path}: {path.stat().st_size / 1000:,.0f} kB")
  if not args.png and not args.html:
    for line in shades(scene, args.layer, args.head):
      print(line)
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
