"""Convert a GGUF file to a folder that this project and transformers can open.

For example: `python convert.py model.gguf weights/mine`.
"""

import argparse
import sys
from pathlib import Path

from tinyformer import __version__, cli


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="convert.py",
    description="Convert a GGUF file to a folder as save_pretrained of transformers writes it.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument("file", type=Path, help="GGUF file")
  p.add_argument("folder", type=Path, help="new folder")
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16"],
    default="float32",
    help="data type of the weights in the folder; float32 represents quantized weights exactly",
  )
  p.add_argument("-q", "--quiet", action="store_true", help="print no notes and no progress bar")
  p.add_argument("--version", action="version", version=f"tinyformer {__version__}")
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  from tinyformer.checkpoints.convert import convert_gguf

  bar = cli.Bar("convert", args.quiet)

  def report(done: int, total: int) -> None:
    bar(done, total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} million weights")

  try:
    convert_gguf(args.file, args.folder, args.dtype, report)
  finally:
    bar.clear()
  if not args.quiet:
    cli.note(f"wrote {args.folder}")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
