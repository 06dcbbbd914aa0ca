"""Convert a GGUF file to a folder that this project and transformers can open, or a folder to GGUF.

For example: `python convert.py model.gguf weights/mine`, `python convert.py weights/mine new.gguf`.
"""

import argparse
import sys
from pathlib import Path

from tinyformer import __version__, cli
from tinyformer.backend import use_minigrad

DESCRIPTION = """Convert a GGUF file to a folder as save_pretrained of transformers writes it, or
such a folder to a GGUF file for llama.cpp."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="convert.py", description=DESCRIPTION, formatter_class=cli.HelpFormatter
  )
  p.add_argument("source", type=Path, help="GGUF file, or folder of a model")
  p.add_argument("target", type=Path, help="new folder, or new file whose name ends in .gguf")
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "q8_0"],
    default="float32",
    help="data type of the weights that are written; float32 represents quantized weights exactly, "
    "and q8_0 (8 bits per weight) is for GGUF files only",
  )
  p.add_argument("-q", "--quiet", action="store_true", help="print no notes and no progress bar")
  p.add_argument("--version", action="version", version=f"tinyformer {__version__}")
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  if "tinygrad" not in sys.modules:
    use_minigrad()  # a conversion computes nothing, so it needs neither a device nor a compiler
  from tinyformer.checkpoints.convert import convert_folder, convert_gguf

  is_folder = args.source.is_dir()
  if is_folder != (args.target.suffix == ".gguf"):
    raise cli.UsageError("convert a GGUF file to a folder, or a folder to a file named *.gguf")
  bar = cli.Bar("convert", args.quiet)

  def report(done: int, total: int) -> None:
    bar(done, total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} million weights")

  try:
    (convert_folder if is_folder else convert_gguf)(args.source, args.target, args.dtype, report)
  finally:
    bar.clear()
  if not args.quiet:
    cli.note(f"wrote {args.target}")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
