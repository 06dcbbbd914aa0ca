"""Folders of pictures and several picture files, with a stand-in for a model."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FIXTURES
from tinygrad import Tensor

import ask
import tinyformer
from tinyformer import cli
from tinyformer.cli import file_run, pictures
from tinyformer.tasks import Prediction
from tinyformer.tasks.encoder import softmax


class FakeModel:
  """An image model whose label for a picture is the content of the file."""

  task = "image-classification"
  module = SimpleNamespace(labels=["cat", "dog"])
  folder = Path("vit")

  def classify_image(self, path, top_k):
    return [Prediction(Path(path).read_text(), 0.75), Prediction("other", 0.25)][:top_k]


@pytest.fixture
def photos(tmp_path):
  """A folder with three pictures, another file and a folder."""
  folder = tmp_path / "photos"
  folder.mkdir()
  for name, label in {"c.PNG": "cow", "a.jpg": "ant", "b.jpeg": "bee", "notes.txt": "x"}.items():
    (folder / name).write_text(label)
  (folder / "old.jpg").mkdir()
  return folder


def output(*argv):
  args = ask.parse_arguments(["-m", "x", *map(str, argv)])
  return [line for lines in ask.run_task(args, FakeModel(), args.text) for line in lines]


def test_each_picture_of_a_folder_has_a_line_with_its_name(photos):
  names = [photos / name for name in ("a.jpg", "b.jpeg", "c.PNG")]
  expected = [f"{path}:  75.0%  {path.read_text()}" for path in names]
  assert output("-k", "1", photos) == expected
  assert output("-k", "1", *names) == expected
  assert output("-k", "1", names[2], photos) == [expected[2], *expected]
  # A picture alone needs no name.
  assert output(names[0]) == [" 75.0%  ant", " 25.0%  other"]


def test_a_folder_without_pictures_is_a_usage_error(photos):
  with pytest.raises(cli.UsageError, match="has no picture files"):
    pictures.expand_folders([str(photos / "old.jpg")])


def write_results(folder, path, *options):
  argv = ["-m", "x", "-q", "-k", "1", "--input", str(folder), "--output", str(path), *options]
  args = ask.parse_arguments(argv)
  file_run.run(args, ask.row_task(args, FakeModel()))


def test_the_rows_of_a_folder_have_the_names_of_their_files(photos, tmp_path):
  write_results(photos, tmp_path / "out.jsonl")
  rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
  assert [(row["row"], row["file"], row["predictions"][0]["label"]) for row in rows] == [
    (1, "a.jpg", "ant"),
    (2, "b.jpeg", "bee"),
    (3, "c.PNG", "cow"),
  ]
  write_results(photos, tmp_path / "part.csv", "--part", "2/2")
  records = list(csv.reader((tmp_path / "part.csv").open(newline="")))
  assert records == [["row", "file", "label_1", "score_1"], ["2", "b.jpeg", "bee", "0.75"]]


def test_a_run_over_a_folder_continues_with_new_pictures(photos, tmp_path):
  write_results(photos, tmp_path / "out.csv")
  (photos / "d.png").write_text("dog")
  write_results(photos, tmp_path / "out.csv")
  lines = (tmp_path / "out.csv").read_text().splitlines()
  assert lines[-1] == "4,d.png,dog,0.75"
  assert len(lines) == 5
  # A picture between the others changes the numbers of the rows.
  (photos / "aa.png").write_text("x")
  with pytest.raises(cli.UsageError, match="one has been changed"):
    write_results(photos, tmp_path / "out.csv")


@pytest.mark.slow
def test_rows_of_a_folder_are_written_to_parquet(photos, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  write_results(photos, tmp_path / "out.parquet")
  table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
  assert [(row["row"], row["file"]) for row in table] == [(1, "a.jpg"), (2, "b.jpeg"), (3, "c.PNG")]
  assert table[0]["predictions"] == [{"label": "ant", "score": 0.75}]


def test_a_picture_that_cannot_be_read_is_named_with_its_row(photos, tmp_path):
  (photos / "b.jpeg").write_bytes(b"\xff")
  with pytest.raises(ValueError, match="photos, row 2: "):
    write_results(photos, tmp_path / "out.jsonl")
  assert (tmp_path / "out.jsonl").read_text().count("\n") == 1


def test_pictures_of_different_sizes_share_a_compiled_step(tmp_path, monkeypatch):
  image = pytest.importorskip("PIL.Image")
  from tinyformer.vision.image_processor import Preprocessor

  for name in ("config.json", "model.safetensors"):
    shutil.copy(FIXTURES / "vit-a" / name, tmp_path)
  preprocessor = {"size": {"height": 12, "width": 12}}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
  model = tinyformer.load(tmp_path)
  forward = type(model.module).__call__
  pictures, calls = [], []
  for size in ((20, 30), (50, 12), (12, 12)):
    noise = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    pictures.append(image.fromarray(noise))
  pixels = [Preprocessor.load(tmp_path)(picture) for picture in pictures]
  expected = [softmax(forward(model.module, Tensor(p)).numpy()[0]) for p in pixels]

  def record(module, pixels):
    calls.append(pixels.shape)
    return forward(module, pixels)

  monkeypatch.setattr(type(model.module), "__call__", record)
  for picture, probabilities in zip(pictures, expected, strict=True):
    picture.save(tmp_path / "a.png")
    found = {p.label: p.score for p in model.classify_image(tmp_path / "a.png", None)}
    for label, probability in zip(model.module.labels, probabilities, strict=True):
      assert abs(found[label] - probability) < 1e-5
  assert len(calls) == 1
