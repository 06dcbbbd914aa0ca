"""The architectures. Only this file lists them all."""

# The model_type of a checkpoint's config.json, and the module that implements it.
FAMILIES = {
  "gpt2": "gpt2",
  "openai-gpt": "gpt1",
  "llama": "llama",
  "mistral": "llama",
  "mixtral": "mixtral",
  "bert": "bert",
  "roberta": "bert",
  "camembert": "bert",
  "xlm-roberta": "bert",
  "deberta-v2": "deberta",
  "vit": "vit",
  "t5": "t5",
  "mt5": "t5",
  "bart": "bart",
  "marian": "marian",
}
