"""The architectures, by the model_type of a checkpoint's config.json. Only this file lists them all."""

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
}  # model_type to module
