"""Files with one row per text: each row has one result, also after a kill or a bad row."""

import argparse
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, normal
from test_ask import WORDS, small_berts, t5  # noqa: F401 - t5 is a fixture

import ask
import gpt
import tinyformer
from tinyformer import cli
from tinyformer.cli import file_run, parquet_file
from tinyformer.cli.result_file import ResultFile
from tinyformer.cli.result_formats import Npy, format_of, to_json
from tinyformer.cli.row_reader import Part, RowReader
from tinyformer.model import METHODS, Model
from tinyformer.tasks import Answer, Entity, InputError, Prediction, nearest

TEXTS = ["paris", "", "the capital of france is paris .", 'rome , "x" ?', "wer ä lives in rome"]
SUFFIXES = (".jsonl", ".csv", ".npy")


def vector(text):
  """Return a stand-in for the embedding of a text, for tests without a model."""
  return np.array([len(text), 0.1, -1e-9], np.float32)


VECTORS = file_run.RowTask(file_run.each(vector), "embedding", {"model": "a"}, is_batched=True)

LINES = VECTORS._replace(function=file_run.each(lambda text: f'"{text}"\n\n{text}'), name="text")


def run_task(task, input_file, output_file, **options):
  """Run a task on a file, as the commands do."""
  args = argparse.Namespace(input=input_file, output=output_file, quiet=True, part=Part())
  args.__dict__.update(options)
  file_run.run(args, task)


def open_output(path):
  """Return the output file of VECTORS."""
  settings = VECTORS.settings | {"columns": ["text"], "part": "1/1"}
  return ResultFile(path, format_of(path, "embedding"), settings, path)


def write_vectors(path, result_file):
  """Yield the progress of VECTORS on a file."""
  reader = RowReader(path, ["text"])
  return file_run.write_results(reader, result_file, VECTORS, file_run.compute_chunks)


def read_vectors(path):
  """Return the vectors in an output file. Each row must have its number once, in order."""
  if path.suffix == ".npy":
    return np.load(path)
  if path.suffix == ".csv":
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    values = [[row[f"embedding_{i}"] for i in (1, 2, 3)] for row in rows]
  else:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    values = [row["embedding"] for row in rows]
  assert [int(row["row"]) for row in rows] == list(range(1, len(rows) + 1))
  return np.array(values, np.float32).reshape(-1, 3)


def write_rows(path, texts):
  """Write texts to a file in the format of its suffix."""
  with path.open("w", encoding="utf-8", newline="") as f:
    if path.suffix == ".csv":
      csv.writer(f).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    elif path.suffix == ".jsonl":
      f.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    else:
      f.writelines(text + "\n" for text in texts)
  return path


# models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return small_berts(tmp_path_factory)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
  """The folder of a small ViT."""
  path = tmp_path_factory.mktemp("vit") / "vit"
  shutil.copytree(FIXTURES / "vit-a", path)
  preprocessor = {"size": {"height": 12, "width": 12}}
  (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
  return path


def run_ask(capsys, *argv):
  """Run ask.py; return its exit status, standard output and standard error."""
  try:
    status = cli.run(lambda: ask.main([str(argument) for argument in argv]))
  except SystemExit as e:
    status = e.code
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_each_row_has_the_embedding_of_its_text_alone(capsys, folder, tmp_path):
  texts = [" ".join(WORDS[5 : 5 + n % 12]) for n in range(1, 40)]
  rows = write_rows(tmp_path / "in.txt", texts)
  status, out, err = run_ask(
    capsys, "-m", folder("Model"), "--input", rows, "--output", tmp_path / "out.npy"
  )
  assert (status, out) == (0, ""), err
  assert "39 rows" in err
  model = Model(folder("Model"))
  alone = np.concatenate([model.embed([text]) for text in texts])
  np.testing.assert_allclose(np.load(tmp_path / "out.npy"), alone, atol=1e-5)


def test_each_row_has_the_predictions_of_its_text_alone(capsys, folder, tmp_path):
  path = folder("ForSequenceClassification")
  rows = write_rows(tmp_path / "in.jsonl", TEXTS)
  argv = ("-m", path, "-k", 3, "-q", "--input", rows, "--output")
  assert run_ask(capsys, *argv, tmp_path / "out.jsonl") == (0, "", "")
  assert run_ask(capsys, *argv, tmp_path / "out.csv") == (0, "", "")
  model = Model(path)
  lines = (tmp_path / "out.jsonl").read_text().splitlines()
  records = csv.reader((tmp_path / "out.csv").open())
  assert next(records) == ["row", "label_1", "score_1", "label_2", "score_2", "label_3", "score_3"]
  for n, (text, line, record) in enumerate(zip(TEXTS, lines, records, strict=True), 1):
    expected = model.classify(text, 3)
    row = json.loads(line)
    assert row["row"] == n == int(record[0])
    predictions = [Prediction(**prediction) for prediction in row["predictions"]]
    assert [p.label for p in predictions] == [p.label for p in expected] == record[1::2]
    scores = [p.score for p in expected]
    assert [p.score for p in predictions] == pytest.approx(scores, abs=1e-5)
    assert [float(score) for score in record[2::2]] == pytest.approx(scores, abs=1e-5)


# What the method of each task returns for a row, in JSON, and two rows.
ROWS = {
  "ForMaskedLM": (
    "masks",
    lambda model, row: model.fill_mask(row["text"], 2),
    [{"text": "the [MASK] of france"}, {"text": "[MASK] is [MASK]"}],
  ),
  "ForTokenClassification": (
    "entities",
    lambda model, row: model.tag(row["text"]),
    [{"text": "ann lee lives in rome ."}, {"text": ""}],
  ),
  "ForQuestionAnswering": (
    "answers",
    lambda model, row: model.answer(row["question"], row["passage"], 2),
    [
      {"passage": "ann lee lives in rome .", "question": "who lives in rome ?"},
      {"passage": "rome", "question": "who ?"},
    ],
  ),
  "t5": (
    "text",
    lambda model, row: model.translate(row["text"], 4, 2),
    [{"text": "a red house"}, {"text": "red"}],
  ),
  "vit": ("predictions", lambda model, row: model.classify_image(row["text"], 2), None),
}


@pytest.fixture
def pictures(tmp_path):
  """Return rows with the names of two pictures."""
  image = pytest.importorskip("PIL.Image")
  rng = np.random.default_rng(0)
  for name in "ab":
    pixels = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / f"{name}.png")
  return [{"text": str(tmp_path / f"{name}.png")} for name in "ab"]


@pytest.mark.parametrize("name", ROWS)
def test_each_task_writes_what_its_method_returns(capsys, folder, tmp_path, request, name):
  key, function, rows = ROWS[name]
  if name == "t5":
    path = request.getfixturevalue("t5")
  elif name == "vit":
    path = request.getfixturevalue("vit")
    rows = request.getfixturevalue("pictures")
  else:
    path = folder(name)
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  argv = ("-m", path, "-k", 2, "-q", "--input", tmp_path / "in.jsonl", "--output")
  if name == "t5":
    argv = ("-n", 4, "-b", 2, *argv)
  assert run_ask(capsys, *argv, tmp_path / "out.jsonl") == (0, "", "")
  model = Model(path)
  results = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
  expected = [to_json(function(model, row)) for row in rows]
  assert results == [{"row": n, key: value} for n, value in enumerate(expected, 1)]
  assert run_ask(capsys, *argv, tmp_path / "out.csv") == (0, "", "")
  records = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
  if name == "ForQuestionAnswering":
    answers = [[answer["text"] for answer in value] + [""] * (2 - len(value)) for value in expected]
    assert [[record["text_1"], record["text_2"]] for record in records] == answers
  elif name == "vit":
    labels = [[prediction["label"] for prediction in value] for value in expected]
    assert [[record["label_1"], record["label_2"]] for record in records] == labels
  elif name == "t5":
    assert [record["text"] for record in records] == expected
  else:
    assert [json.loads(record[key]) for record in records] == expected


def test_a_picture_that_does_not_exist_is_named_with_its_row(capsys, vit, pictures, tmp_path):
  names = [pictures[0]["text"], "no.png", pictures[1]["text"]]
  rows = write_rows(tmp_path / "in.txt", names)
  output = tmp_path / "out.jsonl"
  status, _, err = run_ask(capsys, "-m", vit, "-q", "--input", rows, "--output", output)
  assert (status, err.count("\n")) == (2, 1)
  assert f"{rows}, row 2: no.png" in err
  assert output.read_text().count("\n") == 1


def test_each_row_continues_its_prompt_as_if_it_were_alone(capsys, tmp_path):
  prompts = ["Once upon a time", "The old man", "He shook his"]
  rows = write_rows(tmp_path / "in.csv", prompts)
  options = ["-m", "tiny", "-n", "5", "-s", "1", "--stop", "the", "-q"]
  argv = [*options, "--input", str(rows), "--output", str(tmp_path / "out.jsonl")]
  assert cli.run(lambda: gpt.main(argv)) == 0
  model = tinyformer.load("tiny")
  results = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
  expected = [model.generate(prompt, 5, ["the"], seed=1) for prompt in prompts]
  assert [result["text"] for result in results] == expected
  write_rows(rows, [*prompts, ""])
  assert cli.run(lambda: gpt.main(argv)) == 2
  assert "row 4 (line 5): the prompt is empty" in capsys.readouterr().err
  for conflicting in (["-N", "2"], ["-p", "x"], ["-i"]):
    assert cli.run(lambda more=conflicting: gpt.main([*argv, *more])) == 2


# search


def test_the_nearest_vectors_have_the_largest_cosine_similarities(monkeypatch):
  monkeypatch.setattr(nearest, "CHUNK_ROWS", 7)
  vectors = normal(50, 5) * np.arange(1, 51)[:, None]
  query = normal(5, seed=1)
  cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
  found = nearest.nearest_vectors(vectors, query, 9)
  assert [i for i, _ in found] == np.argsort(-cosines)[:9].tolist()
  assert [cosine for _, cosine in found] == pytest.approx(np.sort(cosines)[:-10:-1], abs=1e-5)
  assert len(nearest.nearest_vectors(vectors, query, 99)) == 50
  [(first, _), (second, _)] = nearest.nearest_vectors(np.ones((30, 3), np.float32), query[:3], 2)
  assert (first, second) == (0, 1)


def test_ask_prints_the_texts_that_are_nearest_to_a_query(capsys, folder, tmp_path):
  texts = ["paris is the capital", "who lives in rome ?", "ann lee"]
  rows = write_rows(tmp_path / "in.csv", texts)
  corpus = tmp_path / "corpus.npy"
  argv = ("-m", folder("Model"), "-q")
  assert run_ask(capsys, *argv, "--input", rows, "--output", corpus)[0] == 0
  search = (*argv, "--nearest", 2, "--corpus", corpus)
  status, out, err = run_ask(capsys, *search, texts[1])
  assert (status, err) == (0, "")
  lines = out.splitlines()
  assert lines[0] == f"1.0000  {texts[1]}"
  assert len(lines) == 2 and lines[1].split("  ")[1] in texts
  moved = rows.rename(tmp_path / "moved.csv")
  assert run_ask(capsys, *search, "--texts", moved, texts[1])[1] == out
  status, _, err = run_ask(capsys, *search, texts[1])
  assert status == 1 and "in.csv does not exist" in err
  write_rows(rows, [*texts[:2], "other"])
  status, _, err = run_ask(capsys, *search, texts[1])
  assert status == 2 and "has other texts than those from which" in err
  (tmp_path / "corpus.npy.run.json").unlink()
  assert "1.0000  row 2\n" in run_ask(capsys, *search, texts[1])[1]


def test_a_corpus_of_another_model_is_refused(capsys, folder, tmp_path):
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  corpus = tmp_path / "corpus.npy"
  assert run_ask(capsys, "-m", folder("Model"), "--input", rows, "--output", corpus)[0] == 0
  copy = shutil.copytree(folder("Model"), tmp_path / "copy")
  status, _, err = run_ask(capsys, "-m", copy, "--nearest", 1, "--corpus", corpus, "x")
  assert status == 2
  assert f"{corpus} has embeddings of {folder('Model').resolve()}, not of {copy}" in err


def test_a_model_has_the_same_name_on_all_machines_unless_it_is_a_folder(tmp_path):
  assert file_run.model_name("gpt2", tmp_path) == "gpt2"
  assert file_run.model_name("owner/repo", tmp_path) == "owner/repo"
  assert file_run.model_name(str(tmp_path), tmp_path) == str(tmp_path.resolve())
  assert file_run.model_name(None, tmp_path) == str(tmp_path.resolve())


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--nearest", "2", "x"], "--nearest and --corpus need each other"),
    (["--corpus", "a.npy", "x"], "--nearest and --corpus need each other"),
    (["--texts", "a.txt", "x"], "--texts needs --corpus"),
    (["--nearest", "2", "--corpus", "wide.npy", "x"], "has vectors of 99 numbers"),
    (["--nearest", "2", "--corpus", "flat.npy", "x"], "must have rows of floats"),
    (["--nearest", "2", "--corpus", "damaged.npy", "x"], "is not a valid .npy file"),
    (["--nearest", "2", "--corpus", "none.npy", "x"], "none.npy does not exist"),
  ],
)
def test_a_corpus_that_does_not_fit_is_refused(
  capsys, folder, tmp_path, monkeypatch, argv, message
):
  monkeypatch.chdir(tmp_path)
  np.save("wide.npy", np.ones((2, 99), np.float32))
  np.save("flat.npy", np.ones(3, np.float32))
  Path("damaged.npy").write_bytes(b"abc")
  status, out, err = run_ask(capsys, "-m", folder("Model"), *argv)
  assert (status, out) == (1 if "exist" in message else 2, "")
  assert message in err
  assert err.count("\n") == 1


def test_a_text_that_is_too_long_is_named_and_the_rows_before_it_are_kept(capsys, folder, tmp_path):
  texts = ["the " * n for n in (1, 20, 3, 40, 5)]
  rows = write_rows(tmp_path / "in.txt", texts)
  output = tmp_path / "out.jsonl"
  argv = ("-m", folder("ForSequenceClassification"), "-q", "--input", rows, "--output", output)
  status, _, err = run_ask(capsys, *argv)
  assert status == 2
  assert f"{rows}, row 4: the text has 42 tokens" in err
  assert err.count("\n") == 1
  first_rows = output.read_text()
  assert first_rows.count("\n") == 3
  texts[3] = "the"
  write_rows(rows, texts)
  assert run_ask(capsys, *argv)[0] == 0
  assert output.read_text().startswith(first_rows)
  assert [json.loads(line)["row"] for line in output.open()] == [1, 2, 3, 4, 5]


# reading


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_reader_yields_the_texts_of_a_file(tmp_path, suffix):
  path = write_rows(tmp_path / f"in{suffix}", TEXTS)
  rows = list(RowReader(path, ["text"]))
  assert [(row.number, row.values) for row in rows] == [(n + 1, (t,)) for n, t in enumerate(TEXTS)]
  assert rows[-1].end == path.stat().st_size
  windows = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n").rstrip(b"\r\n")
  path.write_bytes(b"\xef\xbb\xbf" + windows)
  assert [row.values for row in RowReader(path, ["text"])] == [(text,) for text in TEXTS]


def test_a_field_of_a_csv_file_may_have_several_lines(tmp_path):
  texts = ["one\ntwo", 'a "b"', "x, y", "long " * 50_000]
  path = write_rows(tmp_path / "in.csv", texts)
  assert [row.values[0] for row in RowReader(path, ["text"])] == texts


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_each_row_is_in_exactly_one_part(tmp_path, suffix):
  path = write_rows(tmp_path / f"in{suffix}", [str(i) for i in range(20)])
  parts = [[row.number for row in RowReader(path, ["text"], Part(i, 8))] for i in range(1, 9)]
  assert parts[1] == [2, 10, 18]
  assert sorted(row for part in parts for row in part) == list(range(1, 21))


@pytest.mark.slow
def test_a_parquet_file_has_the_texts_that_were_written(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "in.parquet"
  texts = [f"ä {i}" for i in range(3000)]
  table = pyarrow.table({"id": list(range(3000)), "text": texts, "more": ["x", *[None] * 2999]})
  parquet.write_table(table, path, row_group_size=700)
  rows = list(RowReader(path, ["text"], Part(2, 3)))
  assert [row.values[0] for row in rows] == texts[1::3]
  assert [row.number for row in rows] == list(range(2, 3001, 3))
  with pytest.raises(InputError, match=r"row 2: more must be a string, not None"):
    list(RowReader(path, ["text", "more"]))
  with pytest.raises(InputError, match=r"header: there is no column t; .*: id, text, more"):
    list(RowReader(path, ["t"]))
  data = bytearray(path.read_bytes())
  for damaged in (data[:-50], data[:2000] + bytes(8000) + data[10000:], b""):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"row \d+: the file is damaged") as raised:
      list(RowReader(path, ["text"]))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_row_of_a_parquet_file_that_is_not_utf_8_is_named_and_those_before_it_are_read(
  tmp_path,
):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  offsets = pyarrow.array([0, 1, 3, 4], pyarrow.int32()).buffers()[1]
  buffers = [None, offsets, pyarrow.py_buffer(b"ab\xffc")]
  texts = pyarrow.Array.from_buffers(pyarrow.utf8(), 3, buffers)
  parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "in.parquet")
  rows = iter(RowReader(tmp_path / "in.parquet", ["text"]))
  assert next(rows).values == ("a",)
  with pytest.raises(
    InputError, match=r"row 2: byte 2 of text is not UTF-8 .*: convert the column"
  ):
    next(rows)


def test_a_parquet_file_needs_pyarrow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  (tmp_path / "in.parquet").write_bytes(b"")
  with pytest.raises(cli.UsageError, match=r"needs pyarrow: pip install -e '\.\[parquet\]'"):
    list(RowReader(tmp_path / "in.parquet", ["text"]))


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "a/b", "-1/2", "1/0", "٣/٤"])
def test_invalid_parts_are_refused(text):
  with pytest.raises(ValueError, match="is not a part such as 2/8"):
    Part.parse(text)


@pytest.mark.parametrize(
  "name, content, row, problem",
  [
    ("in.jsonl", b'{"text": "a"}\n\n{"text": \n', "row 2 (line 3)", "the line is not JSON"),
    ("in.jsonl", b'{"text": "a"}\n["b"]\n', "row 2", "must be a JSON object, not list"),
    ("in.jsonl", b'{"text": "a"}\n{"t": "b"}\n', "row 2", "no column text; the columns are: t."),
    ("in.jsonl", b'{"text": "a"}\n{"text": 5}\n', "row 2", "text must be a string, not 5"),
    ("in.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', "row 2", "half of a surrogate pair"),
    ("in.txt", b"a\nb\xe4c\n", "row 2", "byte 2 of the line is not UTF-8"),
    ("in.csv", b"text\na\nb\xe4c\n", "row 2 (line 3)", "byte 2 of the line is not UTF-8"),
    ("in.csv", b"text,id\na,1\nb\n", "row 2 (line 3)", "has 2 columns, but this row has 1"),
    ("in.csv", b'text\na\n"b" c\n', "row 2 (line 3)", "the row is not CSV"),
    ("in.csv", b'text\na\n"b\n', "row 2 (line 3)", "the row is not CSV"),
    (
      "in.csv",
      b"text,id\na,1\nb,2,3\nc,4\n",
      "row 2 (line 3)",
      "has 2 columns, but this row has 3",
    ),
    ("in.csv", b'text\na\n"b\nc\nd\n', "row 2 (line 5)", "the row begins at line 3: check its"),
    ("in.txt", b"a\n" + "b\n".encode("utf-16-le"), "row 2", "byte 2 of the line is zero"),
  ],
)
def test_the_number_of_an_invalid_row_is_given_and_the_rows_before_it_are_kept(
  tmp_path, name, content, row, problem
):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(InputError) as raised:
    run_task(VECTORS, path, tmp_path / "out.npy")
  assert str(raised.value).startswith(f"{path}, {row}: ")
  assert problem in str(raised.value)
  assert "\n" not in str(raised.value)
  np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [vector("a")])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.jsonl"])
def test_a_file_in_another_unicode_encoding_is_refused_at_its_first_row(tmp_path, name, encoding):
  path = write_rows(tmp_path / name, TEXTS)
  path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
  with pytest.raises(
    InputError, match=r"(row 1|header).*: byte \d of .*: convert the file to UTF-8"
  ):
    list(RowReader(path, ["text"]))


def test_a_missing_column_of_a_csv_file_is_an_error_of_its_header(tmp_path):
  path = write_rows(tmp_path / "in.csv", ["a"])
  with pytest.raises(InputError, match=r"header.*no column title; the columns are: id, text"):
    list(RowReader(path, ["title"]))


def test_a_long_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr("tinyformer.cli.row_reader.MAX_LINE_BYTES", 100)
  (tmp_path / "in.txt").write_text("a\n" + "b" * 100 + "\n")
  with pytest.raises(InputError, match="row 2: the line has more than 100 bytes"):
    list(RowReader(tmp_path / "in.txt", ["text"]))


def test_a_file_larger_than_the_memory_is_read_in_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(file_run, "CHUNK_ROWS", 10)
  monkeypatch.setattr(file_run, "CHUNK_CHARACTERS", 30)
  rows = RowReader(write_rows(tmp_path / "in.txt", ["a"] * 25 + ["b" * 25] * 4), ["text"])
  sizes = []
  for chunk in file_run.chunks(rows, file_run.CHUNK_ROWS):
    sizes.append(len(chunk))
    assert chunk[-1].end == rows.end  # nothing is read ahead
  assert sizes == [10, 10, 7, 2]


def test_an_incomplete_last_line_of_a_growing_file_is_left_to_the_next_run(tmp_path):
  path = tmp_path / "in.txt"
  path.write_text("a\nbb\nc")

  def append(text):
    with path.open("a") as f:
      f.write("c")
    return vector(text)

  task = VECTORS._replace(function=file_run.each(append), is_batched=False)
  run_task(task, path, tmp_path / "out.npy")
  assert path.read_text() == "a\nbb\nccc"
  np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], [1, 2])
  run_task(VECTORS, path, tmp_path / "out.npy")
  np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], [1, 2, 3])


def test_a_growing_file_is_read_to_the_end_that_it_had_at_the_start(tmp_path):
  path = write_rows(tmp_path / "in.txt", ["a", "bb"])

  def append(text):
    with path.open("a") as f:
      f.write("ccc\n")
    return vector(text)

  task = VECTORS._replace(function=file_run.each(append), is_batched=False)
  run_task(task, path, tmp_path / "out.npy")
  np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], [1, 2])
  run_task(VECTORS, path, tmp_path / "out.npy")
  np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], [1, 2, 3, 3])


def test_a_last_line_that_was_completed_later_is_detected(tmp_path):
  path = tmp_path / "in.txt"
  path.write_text("a\nb")
  run_task(VECTORS, path, tmp_path / "out.npy")
  path.write_text("a\nbb\n")
  with pytest.raises(cli.UsageError, match="row 2 or an earlier one has been changed"):
    run_task(VECTORS, path, tmp_path / "out.npy")


# continuing


@pytest.mark.parametrize(
  "suffix, task", [*((suffix, VECTORS) for suffix in SUFFIXES), (".csv", LINES)]
)
def test_a_run_continues_after_a_kill_in_the_middle_of_a_write(tmp_path, suffix, task):
  texts = ["a", "", "ccc"]
  rows = write_rows(tmp_path / "in.jsonl", texts)
  output = tmp_path / f"out{suffix}"
  run_file = tmp_path / f"{output.name}.run.json"
  with open_output(output):
    first_run = run_file.read_text()
  run_task(task, rows, output)
  complete = output.read_bytes()
  for length in range(0, len(complete), 3):
    output.write_bytes(complete[:length])
    run_file.write_text(first_run)
    run_task(task, rows, output)
    assert output.read_bytes() == complete, length
  run_task(task, rows, output)
  assert output.read_bytes() == complete
  if task is VECTORS:
    np.testing.assert_array_equal(read_vectors(output), [vector(text) for text in texts])


def test_the_header_of_a_npy_file_is_completed_after_a_kill(tmp_path):
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  output = tmp_path / "out.npy"
  run_task(VECTORS, rows, output)
  complete = output.read_bytes()
  output.write_bytes(Npy().make_header(2, 3) + complete[Npy.HEADER_BYTES :])
  assert len(np.load(output)) == 2
  run_task(VECTORS, rows, output)
  assert output.read_bytes() == complete


SLOW = """
import argparse, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from tinyformer.cli import file_run
from tinyformer.cli.row_reader import Part
def slow(text):
  time.sleep(0.01)
  return text.upper()
task = file_run.RowTask(file_run.each(slow), "text", {})
paths = dict(input=Path(sys.argv[1]), output=Path(sys.argv[2]))
file_run.run(argparse.Namespace(quiet=True, part=Part(), **paths), task)
"""


def count_lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_and_repeats_no_row(tmp_path):
  texts = [f"text {i}" for i in range(60)]
  rows = write_rows(tmp_path / "in.txt", texts)
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-c", SLOW, str(rows), str(output)]
  lengths = []
  for wanted in (3, 20):
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None and (
      not output.exists() or len(output.read_bytes()) < wanted * 30
    ):
      time.sleep(0.005)
    process.kill()
    process.wait()
    lengths.append(count_lines(output))
  assert subprocess.run(command, cwd=ROOT).returncode == 0
  assert 0 < lengths[0] < lengths[1] < 60
  results = [json.loads(line) for line in output.open()]
  assert results == [{"row": n, "text": t.upper()} for n, t in enumerate(texts, 1)]


class FullDisk:
  """Replace a file on a disk on which `free` more bytes fit."""

  def __init__(self, file, free):
    self.file = file
    self.free = free

  def __getattr__(self, name):
    return getattr(self.file, name)

  def write(self, data):
    if not self.free:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written = self.file.write(data[: self.free])
    self.free -= written
    return written


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_keeps_the_complete_rows(tmp_path, suffix):
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  output = tmp_path / f"out{suffix}"
  run_task(VECTORS, rows, tmp_path / f"all{suffix}")
  complete = (tmp_path / f"all{suffix}").read_bytes()
  third_row = len(b"".join(complete.splitlines(keepends=True)[:3]))
  if suffix == ".npy":
    third_row = Npy.HEADER_BYTES + 3 * vector("").nbytes
  with open_output(output) as result_file:
    result_file.file = FullDisk(result_file.file, third_row + 5)
    with pytest.raises(OSError, match=r"row \d: .*out.* which is full: .*run the same") as raised:
      list(write_vectors(rows, result_file))
  if suffix == ".npy":  # Its header is not updated before the next run.
    assert output.stat().st_size == third_row
    next_row = 4
  else:
    assert output.read_bytes() == complete[:third_row]
    next_row = len(read_vectors(output)) + 1
  assert f"row {next_row}:" in str(raised.value)
  run_task(VECTORS, rows, output)
  assert output.read_bytes() == complete


# Parquet files, to which no row can be appended


# The results of each kind for a text.
RESULTS = {
  "embedding": vector,
  "text": str.upper,
  "score": lambda text: len(text) / 7,
  "predictions": lambda text: [Prediction(text, 0.1), Prediction("x", 1 / 3)][: len(text) % 3],
  "masks": lambda text: [[Prediction(text, 0.25)], []],
  "answers": lambda text: [Answer(text, 0, len(text), 1e-9)],
  "entities": lambda text: [Entity("PER", text, 1, 2, 0.5)] * (len(text) % 2),
  "another": lambda text: {"text": text},
}


def read_parquet(path):
  """Return the rows of a Parquet file, and the number of rows of each row group."""
  parquet = pytest.importorskip("pyarrow.parquet")
  with parquet.ParquetFile(path) as file:
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file.read().to_pylist(), groups


def expected_vectors(texts):
  return [{"row": n, "embedding": vector(text).tolist()} for n, text in enumerate(texts, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_a_parquet_file_has_the_results_of_the_json_file(tmp_path, name):
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  task = file_run.RowTask(file_run.each(RESULTS[name]), name, {})
  for suffix in (".jsonl", ".parquet"):
    run_task(task, rows, tmp_path / f"out{suffix}", part=Part(2, 2))
  lines = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
  results = read_parquet(tmp_path / "out.parquet")[0]
  if name == "another":
    results = [result | {name: json.loads(result[name])} for result in results]
  elif name == "embedding":
    lines = [line | {name: np.array(line[name], np.float32).tolist()} for line in lines]
  assert results == lines
  assert [line["row"] for line in lines] == [2, 4]
  outputs = ["out.jsonl", "out.parquet"]
  files = ["in.txt", *outputs, *(f"{output}.run.json" for output in outputs)]
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.slow
def test_rows_are_added_to_a_parquet_file_in_groups(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet_file, "GROUP_ROWS", 4)
  rows, output = tmp_path / "in.txt", tmp_path / "out.parquet"
  for count in (0, 10, 13, 13, 14):
    texts = [str(2**n) for n in range(count)]
    write_rows(rows, texts)
    run_task(VECTORS, rows, output)
    results, groups = read_parquet(output)
    assert results == expected_vectors(texts)
    assert max(groups, default=0) <= 4
  monkeypatch.setattr(parquet_file, "GROUP_BYTES", 1)
  write_rows(rows, [*texts, "a", "b"])
  run_task(VECTORS, rows, output)
  assert read_parquet(output)[1][-2:] == [1, 1]


@pytest.mark.slow
def test_a_parquet_file_is_completed_after_a_kill_at_any_time(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  rows, output = tmp_path / "in.txt", tmp_path / "out.parquet"
  part, run_file = tmp_path / "out.parquet.part", tmp_path / "out.parquet.run.json"
  write_rows(rows, TEXTS)
  run_task(VECTORS, rows, tmp_path / "out.jsonl")
  lines = (tmp_path / "out.jsonl").read_bytes()
  with pytest.raises(InputError):
    run_task(VECTORS._replace(function=file_run.each(int)), rows, output)
  first_run = run_file.read_text()
  for length in range(0, len(lines) + 1, 30):  # killed while rows were appended
    output.unlink(missing_ok=True)
    run_file.write_text(first_run)
    part.write_bytes(lines[:length])
    run_task(VECTORS, rows, output)
    assert read_parquet(output)[0] == expected_vectors(TEXTS), length
    assert not part.exists()
  # Killed while the Parquet file was written, and after it was.
  unfinished = tmp_path / ".out.parquet.1.part"
  unfinished.write_bytes(b"PAR1")
  part.write_bytes(lines)
  run_task(VECTORS, rows, output)
  assert read_parquet(output)[0] == expected_vectors(TEXTS)
  assert not unfinished.exists() and not part.exists()
  # Rows were added, and the process was killed before they were joined.
  write_rows(rows, [*TEXTS, "more", "x"])
  part.write_text(json.dumps({"row": 6, "embedding": to_json(vector("more"))}) + "\n")
  run_task(VECTORS, rows, output)
  assert read_parquet(output)[0] == expected_vectors([*TEXTS, "more", "x"])
  for content in (b"PAR1", parquet_of_another_program(parquet)):
    output.write_bytes(content)
    with pytest.raises(cli.UsageError, match="not a Parquet file that this command wrote"):
      run_task(VECTORS, rows, output)
    assert output.read_bytes() == content


def parquet_of_another_program(parquet):
  file = io.BytesIO()
  parquet.write_table(pytest.importorskip("pyarrow").table({"id": [1]}), file)
  return file.getvalue()


@pytest.mark.slow
def test_a_full_disk_keeps_the_rows_of_a_parquet_file(tmp_path, monkeypatch):
  parquet = pytest.importorskip("pyarrow.parquet")
  rows, output = write_rows(tmp_path / "in.txt", TEXTS), tmp_path / "out.parquet"

  def write_table(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(parquet.ParquetWriter, "write_table", write_table)
    with pytest.raises(OSError, match=r"out.parquet does not fit .* full: .*run the same command"):
      run_task(VECTORS, rows, output)
  assert not output.exists()
  never = VECTORS._replace(function=lambda _: pytest.fail("computed again"))
  run_task(never, rows, output)
  assert read_parquet(output)[0] == expected_vectors(TEXTS)


def test_a_full_disk_is_reported_with_the_row_after_which_no_progress_was_recorded(
  tmp_path, monkeypatch
):
  rows, output = write_rows(tmp_path / "in.txt", TEXTS), tmp_path / "out.jsonl"
  write = ResultFile.write_run

  def full(result_file):
    if result_file.rows >= 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.jsonl.run.json")
    write(result_file)

  with monkeypatch.context() as patch:
    patch.setattr("tinyformer.cli.result_file.UPDATE_INTERVAL", -1)
    patch.setattr(ResultFile, "rows", 0, raising=False)
    patch.setattr(ResultFile, "write_run", full)
    task = VECTORS._replace(is_batched=False)
    with pytest.raises(OSError, match=r"cannot continue after row 2: .*run\.json does not fit"):
      run_task(task, rows, output)
  assert len(read_vectors(output)) == 2
  run_task(VECTORS, rows, output)
  assert len(read_vectors(output)) == len(TEXTS)


def test_results_in_a_parquet_file_need_pyarrow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  with pytest.raises(cli.UsageError, match=r"needs pyarrow: pip install -e '\.\[parquet\]'"):
    run_task(VECTORS, rows, tmp_path / "out.parquet")
  assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_results_of_other_settings_or_texts_are_not_mixed(tmp_path):
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  output = tmp_path / "out.jsonl"
  run_task(VECTORS, rows, output)
  complete = output.read_bytes()
  with pytest.raises(cli.UsageError, match="was written with model a, not b"):
    run_task(VECTORS._replace(settings={"model": "b"}), rows, output)
  with pytest.raises(cli.UsageError, match="was written with part 1/1, not 1/2"):
    run_task(VECTORS, rows, output, part=Part(1, 2))
  write_rows(rows, ["other", *TEXTS[1:]])
  with pytest.raises(cli.UsageError, match="row 5 or an earlier one has been changed"):
    run_task(VECTORS, rows, output)
  write_rows(rows, TEXTS[:3])
  with pytest.raises(cli.UsageError, match="has fewer rows than"):
    run_task(VECTORS, rows, output)
  assert output.read_bytes() == complete
  (tmp_path / "out.jsonl.run.json").unlink()
  with pytest.raises(cli.UsageError, match=r"but .*run\.json does not"):
    run_task(VECTORS, rows, output)
  assert output.read_bytes() == complete


def test_two_runs_cannot_write_to_one_file(tmp_path):
  pytest.importorskip("fcntl")
  rows = write_rows(tmp_path / "in.txt", TEXTS)
  output = tmp_path / "out.jsonl"
  with open_output(output), pytest.raises(cli.UsageError, match="another run is writing to"):
    run_task(VECTORS, rows, output)
  run_task(VECTORS, rows, output)


# options


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--input", "in.txt"], "--input and --output need each other"),
    (["--output", "out.csv"], "--input and --output need each other"),
    (["--part", "1/2", "x"], "--part needs a file"),
    (["--part", "3/2", "x"], "is not a part such as 2/8"),
    (["--input", "in.txt", "--output", "out.csv", "x"], "leave one of them out"),
    (["--input", "in.txt", "--output", "in.txt"], "would replace the input"),
    (
      ["--input", "in.txt", "--output", "out.txt"],
      "out.txt must be a .jsonl, .csv or .parquet file",
    ),
    (["--input", "in.txt", "--output", "out.npy"], "only embeddings are written to .npy"),
    (
      ["--input", "in.pdf", "--output", "out.csv"],
      "in.pdf is not a .txt, .csv, .jsonl or .parquet file",
    ),
    (["--input", "no.txt", "--output", "out.csv"], "no.txt does not exist"),
  ],
)
def test_options_that_do_not_fit_are_refused(capsys, folder, tmp_path, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  write_rows(Path("in.txt"), TEXTS)
  write_rows(Path("in.pdf"), TEXTS)
  status, out, err = run_ask(capsys, "-m", folder("ForSequenceClassification"), *argv)
  assert (status, out) == (1 if "exist" in message else 2, "")
  assert message in err
  assert "Traceback" not in err
  assert not Path("out.csv").exists()


# the page


def page_rows():
  """Return whether each task of docs/tasks.md is removed from transformers, and its example."""
  text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split("\n## ")[0]
  rows = re.findall(r"^\| `([a-z0-9-]+)`([^|]*)\| (yes|no)[^|]*\|(.*)\|$", text, re.M)
  return {
    task: ("removed" in notes, runs == "yes", example.strip())
    for task, notes, runs, example in rows
  }


def test_each_task_that_runs_here_is_on_the_page_with_a_command():
  running = {task for task, (_, runs, example) in page_rows().items() if runs and example}
  assert set(METHODS) < running
  # The example of each other task is a model for text2text-generation or text-classification.
  assert running - set(METHODS) == {"summarization", "translation", "zero-shot-classification"}


@pytest.mark.slow
def test_the_page_lists_the_pipelines_of_transformers_and_their_default_models():
  pipelines = pytest.importorskip("transformers.pipelines")
  page = page_rows()
  assert {task for task, (is_removed, *_) in page.items() if not is_removed} == set(
    pipelines.SUPPORTED_TASKS
  )
  text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
  for task, settings in pipelines.SUPPORTED_TASKS.items():
    model = settings["default"]["model"]
    name = (model["pt"] if isinstance(model, dict) else model)[0]
    if task != "text-generation":  # its example is SmolLM2, which has been run
      assert name in text
