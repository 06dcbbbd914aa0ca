"""Bugs planted in tinyformer/checkpoints; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "the tensor of a tied head may differ from the embedding",
    "tinyformer/checkpoints/safetensors.py",
    "check_tied_heads",
    "all(map(np.array_equal, rows_of(a), rows_of(b)))",
    "True",
    "checkpoint::test_a_tensor_of_a_tied_head_must_equal_the_embedding",
  ),
  Bug(
    "a head for another task must equal the embedding",
    "tinyformer/checkpoints/safetensors.py",
    "check_tied_heads",
    "{original, *others} <= table.keys() and name not in table",
    "name not in table",
    "checkpoint::test_a_tied_head_that_the_model_does_not_have_is_ignored",
  ),
  Bug(
    "gelu_new is the exact GELU",
    "models/hf_config.py",
    "ACTIVATION_NAMES",
    '"gelu_new": "gelu_tanh"',
    '"gelu_new": "gelu"',
    "gpt2::test_logits_equal_hugging_face",
  ),
  Bug(
    "experts are concatenated in reverse order",
    "tinyformer/checkpoints/safetensors.py",
    "join",
    "ConcatenatedTensor([by_number[i] for i in range(len(by_number))])",
    "ConcatenatedTensor([by_number[i] for i in reversed(range(len(by_number)))])",
    "llama::test_logits_equal_hugging_face",
  ),
  Bug(
    "gelu is the tanh form in BERT",
    "models/hf_config.py",
    "ACTIVATION_NAMES",
    '"gelu": "gelu"',
    '"gelu": "gelu_tanh"',
    "bert::test_gradients_equal_hugging_faces",
  ),
  Bug(
    "gelu is the tanh form in ViT",
    "layers/activations.py",
    "gelu",
    'approximate="none"',
    'approximate="tanh"',
    "vit::test_logits_equal_hugging_faces",
  ),
  Bug(
    "biases are stored in 16 bits",
    "tinyformer/checkpoints/safetensors.py",
    "new_writers.dtype_of",
    'if t.ndim != 2 or "bias" in name:',
    "if t.ndim != 2:",
    "encoder_decoders::test_int8_models_have_float32_biases",
  ),
  Bug(
    "the weights are written before config.json",
    "tinyformer/checkpoints/safetensors.py",
    "write",
    '  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) '
    '+ "\\n")\n  # The weights come last: if they exist, everything else does.\n  '
    'write_safetensors(folder / "model.safetensors", tensors)',
    '  write_safetensors(folder / "model.safetensors", tensors)\n  write_text(folder / '
    '"config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\\n")',
    "train::test_a_kill_during_a_write_leaves_loadable_folders",
  ),
  Bug(
    "the weights are downloaded with a vocabulary",
    "tinyformer/checkpoints/hub.py",
    "download",
    "  if not weights: return\n",
    "",
    "hub::test_vocabulary_is_downloaded_without_weights_and_weights_later",
  ),
  Bug(
    "true is a size in config.json",
    "models/hf_config.py",
    "HFConfig.integer",
    "type(value) is int",
    "isinstance(value, int)",
    "hf_config::test_an_invalid_value_raises_an_error_that_names_the_file_the_key_and_the_value",
  ),
  Bug(
    "NaN is a number in config.json",
    "models/hf_config.py",
    "HFConfig.number",
    "minimum <= value <= maximum",
    "not (value < minimum or value > maximum)",
    "hf_config::test_a_config_with_any_value_is_read_or_raises_an_error_that_names_the_key",
  ),
  Bug(
    "control characters of a checkpoint are in error messages",
    "tinyformer/files.py",
    "printable",
    "c if c.isprintable() else repr(c)[1:-1]",
    "c",
    "cli::test_a_value_in_an_error_message_is_printable_and_short",
  ),
  Bug(
    "a JSON file may have any size",
    "tinyformer/files.py",
    "read_bytes",
    "len(data) > max_bytes",
    "False",
    "checkpoint::test_a_json_file_of_more_than_the_maximum_size_is_refused",
  ),
]
