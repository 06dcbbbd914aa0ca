"""Test bench.py's table, its random weights, and its handling of a peer that fails.

A full benchmark takes half an hour, so no test runs one.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import bench
from benchmarks import (
  contexts,
  embeddings,
  first_token,
  large_model,
  llama_cpp,
  llama_session,
  plot_contexts,
  training,
  weights,
)
from benchmarks.first_token import first_token_code, first_token_command
from benchmarks.measurements import batch_and_length
from benchmarks.report import ratio, table
from benchmarks.rounds import Process, Schedule, measure_in_rounds
from benchmarks.systems import PEERS, missing
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors

OURS = "tinyformer float32"
PEER = "torch float32"


@pytest.mark.parametrize(
  "figure, ours, peer, expected",
  [
    ("decode after 8 tokens", [30, 40, 50], [20, 25, 90], "1.60"),
    ("peak memory, MB", [500], [1000], "2.00"),
    ("training step, ms", [50, 60, 70], [30, 30, 90], "0.50"),
    ("first token, warm cache, s", [], [1.0], "–"),
  ],
)
def test_ratio_compares_medians_and_exceeds_one_if_ours_is_better(figure, ours, peer, expected):
  results = {OURS: {figure: ours} if ours else {}, PEER: {figure: peer}}
  assert ratio(figure, results, [OURS], [PEER]) == expected


def test_table_shows_medians_ranges_and_percentages_of_the_limit():
  machine = {"all cores read, GB/s": 20.0, "matrix product, GFLOP/s": 250.0}
  text = table(
    {
      OURS: {"decode after 8 tokens": [20, 10, 30], "installed, MB": 123.0},
      PEER: {"installed, MB": 1120.0},
    },
    machine,
  )
  # Each decoding step reads 0.498 GB of weights.
  assert "| decode after 8 tokens | 20.0 (10.0–30.0) 50% | – | – |" in text
  assert "| installed, MB | 123 | 1,120 | 9.11 |" in text


def test_minigrad_runs_every_measurement_on_numpy(tmp_path):
  """Run the real measurements in processes of their own, with a small model."""
  name, folder = "minigrad float32", ROOT / "weights" / "tiny"
  code = f"""
import numpy, pathlib
from benchmarks import measurements, systems
systems.NEW_TOKENS, systems.random_ids = 2, lambda b, n: numpy.zeros((b, n), int)
measure = measurements.speeds({name!r}, pathlib.Path({str(folder)!r}), 1)
print(measure("decode, batch 8"), measure("prefill 9"))
import tinygrad, minigrad
assert tinygrad is minigrad
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  first_token = first_token_code("minigrad", "float32", folder)
  result = subprocess.run([sys.executable, "-c", first_token], cwd=ROOT, capture_output=True)
  assert (result.returncode, result.stderr) == (0, b"")


def test_a_training_step_on_minigrad_takes_milliseconds():
  code = (
    "from benchmarks.training import small_model_steps\n"
    "print(small_model_steps('minigrad float32', None, 1)('training step, ms'))"
  )
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert len(json.loads(result.stdout)) == 4, result.stderr


def test_failing_peer_is_reported_and_other_peers_are_still_measured(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(PEERS, "nosuch float32", ("nosuch", [], [1]))
  measure = Process.measure
  calls = []

  def measure_or_count(process, figure):
    calls.append(process.name)
    return measure(process, figure) if "nosuch" in process.name else [float(len(calls))]

  monkeypatch.setattr(Process, "measure", measure_or_count)
  names = ["nosuch float32", OURS]
  figures = ["decode after 8 tokens"]
  schedule = Schedule(repeat=3, warmup=1)
  results = measure_in_rounds("speeds", names, tmp_path, figures, schedule)
  assert calls == ["nosuch float32", *[OURS] * 4]
  assert results == {
    "nosuch float32": {},
    OURS: {"decode after 8 tokens": [3.0, 4.0, 5.0]},
  }
  assert "nosuch float32: KeyError: 'nosuch'\n" in capsys.readouterr().err


def test_each_width_has_a_table_with_its_own_ratio():
  speeds = {
    "tinyformer int8": 30,
    "llama.cpp int8": 20,
    "tinyformer int4": 30,
    "llama.cpp int4": 60,
  }
  results = {name: {"prefill 512": speed} for name, speed in speeds.items()}
  tables = table(results | {"torch float32": {}}, {}, "llama-1b").split("\n\n")
  assert [text.splitlines()[-1] for text in tables] == [
    "| prefill 512 | 30.0 | 20.0 | 1.50 |",
    "| prefill 512 | 30.0 | 60.0 | 0.50 |",
  ]


@pytest.mark.parametrize(
  "task, expected",
  [("decode after 8 tokens", (1, 8)), ("decode, batch 8", (8, 8)), ("prefill 1000", (1, 1000))],
)
def test_a_task_names_its_batch_size_and_the_length_of_its_prompt(task, expected):
  assert batch_and_length(task) == expected


def test_a_peer_that_is_not_installed_is_named_with_the_remedy(tmp_path, monkeypatch):
  reason = missing("llama.cpp int8", tmp_path)
  assert reason is not None and "build_llama_cpp.py" in reason
  for program in llama_cpp.PROGRAMS:
    file = llama_cpp.program(tmp_path, program)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
  assert missing("llama.cpp int8", tmp_path) is None
  assert missing("tinyformer int8", tmp_path) is None
  monkeypatch.delitem(safetensors.DTYPES, "int8")
  assert missing("tinyformer int8", tmp_path) is not None


SMALL_LLAMA = weights.LLAMA_1B | {
  "vocab_size": 50,
  "hidden_size": 12,
  "intermediate_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 6,
}
SMALL_MINILM = weights.MINILM | {
  "vocab_size": 300,
  "hidden_size": 12,
  "intermediate_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}


def test_random_llama_is_a_valid_sharded_checkpoint(tmp_path):
  weights.make_llama(tmp_path, SMALL_LLAMA)
  assert len(list(tmp_path.glob("*.safetensors"))) == 3
  model = checkpoints.load_module(tmp_path, "bfloat16")
  values = model.blocks[1].ff.up.weight.float().numpy()
  assert values.shape == (20, 12) and 0.015 < values.std() < 0.025


@pytest.mark.slow
def test_random_minilm_embeds_the_generated_sentences(tmp_path):
  weights.make_minilm(tmp_path, SMALL_MINILM)
  texts = embeddings.sentences(tmp_path)
  assert len(texts) == 1000 and len(set(map(len, texts))) > 50
  vectors = embeddings.tinyformer_embedder(tmp_path)(texts[:3], 0)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


FAKE = """#!{python}
import sys
print('[{{"avg_ts": 5.0}}, {{"avg_ts": 7.5}}]' if "json" in sys.argv else
      '{{"speed_tg": 40.0}}')
"""


@pytest.mark.skipif(os.name != "posix", reason="the programs are scripts")
def test_the_best_result_of_llama_bench_counts(tmp_path):
  for program in llama_cpp.PROGRAMS:
    file = llama_cpp.program(tmp_path / "llama.cpp", program)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FAKE.format(python=sys.executable))
    file.chmod(0o755)
  system = llama_cpp.LlamaCpp(tmp_path, "int8", 1)
  assert system.speed("decode after 8 tokens", 1, 8) == 7.5
  assert system.speed("prefill 512", 1, 512) == 7.5
  assert system.speed("decode, batch 8", 8, 8) == 40.0
  assert system.memory() > 1
  command = first_token_command("llama.cpp", "int4", tmp_path)
  assert str(tmp_path / "llama.cpp-int4.gguf") in command


def test_the_cache_of_an_earlier_run_is_not_used_for_the_first_token(tmp_path, monkeypatch):
  cache = tmp_path / f"cache of {OURS}"
  cache.mkdir()
  (cache / "old").touch()
  monkeypatch.setattr(first_token, "first_token_command", lambda *_: ["true"])
  results = first_token.first_tokens([OURS, PEER], tmp_path, 2)
  assert not (cache / "old").exists()
  # One round begins with an empty cache, and one more is not counted.
  counts = {name: [len(times) for times in figures.values()] for name, figures in results.items()}
  assert counts == {OURS: [1, 2], PEER: [2]}


def test_a_schedule_can_fix_the_number_of_threads(tmp_path, monkeypatch):
  monkeypatch.setattr(Process, "measure", lambda process, figure: [float(process.command[-1])])
  schedule = Schedule(repeat=1, threads=3)
  results = measure_in_rounds("speeds", [PEER], tmp_path, ["prefill 512"], schedule)
  assert results == {PEER: {"prefill 512": [3.0]}}


def test_quick_measures_fewer_rounds_and_no_slow_peer(tmp_path):
  args = bench.parse_arguments(["--quick", "--llama-cpp", str(tmp_path)])
  assert args.repeat < bench.parse_arguments([]).repeat
  assert not any(name.startswith("torch.compile") for name in bench.measurable(args))


def test_a_large_model_is_not_measured_in_32_bits(tmp_path):
  args = bench.parse_arguments(["--model", "llama-1b", "--llama-cpp", str(tmp_path)])
  names = bench.measurable(args)
  assert "tinyformer bfloat16" in names and not any("float32" in name for name in names)


def test_contexts_are_measured_for_llama_only(capsys):
  assert "contexts" not in bench.parse_arguments([]).figures
  assert "contexts" in bench.parse_arguments(["--model", "llama-1b"]).figures
  with pytest.raises(SystemExit):
    bench.parse_arguments(["--figures", "contexts"])
  assert "--model llama-1b" in capsys.readouterr().err


def test_the_memory_of_a_context_is_measured_only_while_the_contexts_grow(tmp_path, monkeypatch):
  filled = []

  class System:
    def __init__(self, *_):
      pass

    def fill(self, length):
      filled.append(length)
      return lambda: None

  monkeypatch.setattr(contexts, "LongTorch", System)
  measure = contexts.contexts("torch bfloat16", tmp_path, 1)
  counts = [len(measure(figure)) for figure in contexts.FIGURES * 2]
  assert counts == [1, 1] * 4 + [1, 0] * 4
  assert filled == [*contexts.LENGTHS] * 2


def test_a_session_contains_the_keys_and_values_of_each_layer(tmp_path):
  file = tmp_path / "session"
  llama_session.write_session(file, SMALL_LLAMA, 5)
  numbers = 2 * 2 * 5 * 6  # keys and values of two layers, five tokens, one head of width 6
  headers = 4 * 3 + 4 * 6 + 4 + len("llama") + 4 * 2 + 4 * 3 * 5 + 4 * 2 + 2 * 2 * (4 + 8)
  assert file.stat().st_size == headers + 2 * numbers
  last = np.frombuffer(file.read_bytes()[-2 * 5 * 6 :], np.float16)
  assert 0.5 < last.astype(np.float32).std() < 1.5


FAKE_COMPLETION = """#!{python}
print("main: loaded a session with prompt size of 8 tokens")
print("prompt eval time =  100.00 ms /  2 tokens (  50.00 ms per token,  20.00 tokens per second)")
print("       eval time =  300.00 ms / 12 runs   (  25.00 ms per token,  40.00 tokens per second)")
"""


@pytest.mark.skipif(os.name != "posix", reason="the program is a script")
def test_the_time_after_a_session_is_that_of_new_tokens(tmp_path):
  file = llama_cpp.program(tmp_path / "llama.cpp", "llama-completion")
  file.parent.mkdir(parents=True)
  file.write_text(FAKE_COMPLETION.format(python=sys.executable))
  file.chmod(0o755)
  (tmp_path / "config.json").write_text(json.dumps(SMALL_LLAMA))
  milliseconds, memory = llama_session.decode(tmp_path, "int4", 1, 7)
  assert milliseconds == 25.0 and memory > 1
  with pytest.raises(RuntimeError, match="llama-completion"):
    llama_session.decode(tmp_path, "int4", 1, 8)  # the session was not read


def test_the_plot_shows_the_medians_of_systems_that_were_measured_at_each_length():
  figures = {contexts.TIME.format(n): [n, n + 1, n + 5] for n in contexts.LENGTHS}
  results = {OURS: figures, PEER: dict([*figures.items()][1:])}
  assert plot_contexts.curves(results, contexts.TIME) == {OURS: [n + 1 for n in contexts.LENGTHS]}
  assert plot_contexts.curves(results, contexts.MEMORY) == {}


def test_random_q4_0_model_is_loaded_as_it_is(tmp_path):
  sizes = {
    "llama.vocab_size": 50,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.rope.dimension_count": 32,
  }
  file = tmp_path / "model.gguf"
  large_model.write_model(file, large_model.LLAMA_7B | sizes)
  model = checkpoints.load_module(file, "int4")
  tensor = checkpoints.read_tensors(file)["model.layers.1.mlp.up_proj.weight"]
  assert (model.blocks[1].ff.up.weight.numpy() == tensor.int4(0, 96)).all()
  assert 0.015 < tensor.numpy().std() < 0.025


def test_the_first_training_step_with_an_empty_cache_is_measured_once_for_tinyformer(
  tmp_path, monkeypatch
):
  def measure(kind, names, folder, figures, schedule):
    return {names[0]: {figure: [1.0] for figure in figures}}

  monkeypatch.setattr(training, "measure_in_rounds", measure)
  cache = training.cache_folder(OURS, tmp_path)
  cache.mkdir()
  results = training.first_and_later_steps([OURS, PEER], tmp_path, repeat=2)
  assert not cache.exists()
  counts = {name: [len(results[name].get(f, [])) for f in STEP_FIGURES] for name in results}
  assert counts == {OURS: [1, 2, 3, 3], PEER: [0, 2, 3, 3]}


STEP_FIGURES = (training.FIRST_EMPTY, training.FIRST_WARM, training.STEP, training.MEMORY)


@pytest.mark.slow
def test_training_is_measured_from_the_start_of_the_process(tmp_path, monkeypatch):
  monkeypatch.setattr(training, "GPT2_124M", training.NANOGPT)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  measure = training.steps_of_124m(OURS, tmp_path, 1)
  [first] = measure(training.FIRST_WARM)
  steps = measure(training.STEP)
  assert first > max(steps) and len(steps) == 2
  assert measure(training.MEMORY)[0] > 10


@pytest.mark.slow
def test_a_filled_cache_is_that_of_the_engine(tmp_path):
  weights.make_llama(tmp_path, SMALL_LLAMA | {"max_position_embeddings": 32_768})
  system = contexts.LongTinyformer(tmp_path, "bfloat16", 1)
  step = system.fill(2048)
  engine = system.engine(1)
  assert engine.position == 2048
  assert np.isfinite(step()).all() and engine.position == 2049
  values = engine.cache.v[1].numpy()
  assert 0.9 < values[:, :, :2048].std() < 1.1
