"""Downloads from a hostile hub end with whole files, or with a clear error.

Whatever a hub sends, a file has its final name only if it equals the hub's file byte by byte, and
an honest hub completes the download afterwards.
"""

import json
import random

import numpy as np
import pytest
from chaos.hostile_hub import BEHAVIORS, IDENTITIES, SLOW, HostileHub

from tinyformer.checkpoints import download, hub
from tinyformer.checkpoints.safetensors import write_safetensors

CHECKSUMS = ("sha256", "git")
FAST = sorted(BEHAVIORS.keys() - SLOW)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
  """Return two versions of a model's files. Two of the files differ, but not in their length."""
  folder = tmp_path_factory.mktemp("versions")
  result = []
  for n in (1, 2):
    weights = {"a": np.full((40, 30), n, np.float32), "b": np.arange(7 * n, dtype=np.float32)}
    write_safetensors(folder / "weights", weights)
    config = {"model_type": "gpt2", "version": n, "comment": "x" * 2000}
    merges = "".join(f"a{i} b{i}\n" for i in range(1000 * n))
    result.append(
      {
        "config.json": json.dumps(config).encode() + b"\n",
        "vocab.json": json.dumps({f"token{i}": i for i in range(100 * n)}, indent=1).encode(),
        "merges.txt": b"#version: 0.2\n" + merges.encode(),
        "tokenizer_config.json": b"{}",
        "model.safetensors": (folder / "weights").read_bytes(),
      }
    )
  return result


@pytest.fixture
def server(versions, monkeypatch, tmp_path):
  for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
    monkeypatch.delenv(name, raising=False)
  server = HostileHub(versions)
  server.mirror = HostileHub(versions)
  monkeypatch.setenv("HF_ENDPOINT", server.url)
  monkeypatch.setenv("HF_TOKEN", "secret")
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "weights")
  set_limits(monkeypatch, idle=5, opening=10)
  yield server
  server.mirror.close()
  server.close()


def set_limits(monkeypatch, **limits):
  """Make downloads wait less than usual."""
  limits = {"pause": 0, "retry_after": 0, "small_file": 1 << 18} | limits
  monkeypatch.setattr(download, "LIMITS", download.Limits(**limits))


def is_detectable(behavior: str, file: str, identity: str) -> bool:
  """Return whether a client can notice what a hub does to a file.

  Other bytes of the right length, and a text that ends after the stated length, differ from the
  file in their checksum only.
  """
  if identity in CHECKSUMS:
    return True
  return behavior != "wrong_bytes" and (behavior != "length_too_small" or file != "merges.txt")


def attempt() -> Exception | None:
  """Download the model, and return the error, which must be one line."""
  try:
    hub.find("someone/model")
  except (OSError, ValueError) as e:
    assert str(e) and "\n" not in str(e)
    return e
  return None


def check_files(server: HostileHub) -> None:
  """Check that each file is whole, and that no file but partial ones is left over."""
  folder = hub.WEIGHTS / "someone--model"
  for path in folder.glob("*"):
    name = path.name.removesuffix(".json").removesuffix(".part")
    if path.name == hub.COMMIT:
      continue
    if path.name in server.versions[0]:
      data, originals = path.read_bytes(), [version[path.name] for version in server.versions]
      if path.suffix == ".json" and server.identity not in CHECKSUMS:
        # Nothing but a checksum shows that the line break after a JSON object is missing.
        data, originals = data.rstrip(), [original.rstrip() for original in originals]
      assert data in originals, path.name
    else:
      assert name in server.versions[0] and ".part" in path.name, path.name


def check_honest_ending(server: HostileHub, monkeypatch) -> None:
  """Check that an honest hub completes the download."""
  server.choose = lambda file: "honest"
  set_limits(monkeypatch, idle=60, opening=600, window=600)
  assert attempt() is None
  folder = hub.WEIGHTS / "someone--model"
  assert hub.is_complete(folder)
  assert not list(folder.glob("*.part*"))
  check_files(server)
  if server.identity == "git":
    # The hub names commits, so no file is from another one.
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != hub.COMMIT}
    assert any(files.items() <= version.items() for version in server.versions)


def check_token(server: HostileHub) -> None:
  """Check that the token was sent to the hub only."""
  assert all(h.get("Authorization") == "Bearer secret" for _, _, h in server.requests)
  assert not any("Authorization" in h for _, _, h in server.mirror.requests)


def run_random_sequence(server: HostileHub, seed: int, behaviors: list[str], monkeypatch) -> None:
  """Download from a hub that behaves at random, until it succeeds or has failed four times."""
  rng = random.Random(seed)
  server.rng.seed(seed)
  server.identity = server.mirror.identity = rng.choice(IDENTITIES)
  honesty = rng.choice([0.2, 0.5, 0.8])

  def choose(file: str) -> str:
    behavior = "honest" if rng.random() < honesty else rng.choice(behaviors)
    return behavior if is_detectable(behavior, file, server.identity) else "cut"

  server.choose = choose
  for _ in range(4):
    error = attempt()
    check_files(server)
    if error is None:
      break
  check_honest_ending(server, monkeypatch)
  check_token(server)


@pytest.mark.parametrize("behavior", FAST)
def test_each_behavior_ends_with_a_whole_file_or_an_error(server, monkeypatch, behavior):
  server.choose = lambda file: behavior if is_detectable(behavior, file, "etag") else "honest"
  attempt()
  check_files(server)
  check_honest_ending(server, monkeypatch)
  check_token(server)


@pytest.mark.parametrize("seed", range(8))
def test_random_behavior_never_leaves_a_wrong_file(server, monkeypatch, seed):
  run_random_sequence(server, seed, FAST, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1600))
def test_random_behavior_never_leaves_a_wrong_file_in_many_downloads(server, monkeypatch, seed):
  set_limits(monkeypatch, idle=0.3, opening=0.3, window=0.3)
  run_random_sequence(server, seed, sorted(BEHAVIORS), monkeypatch)
