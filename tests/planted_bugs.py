"""Tests the tests: plants each of these bugs in a copy of the project and runs tests of the default suite there, one of which must fail.

`python tests/planted_bugs.py` prints a line for each, with the test that caught it; its exit status is 1 if one was not caught.
"""
import re, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
GPT2, CORE, VIT, PICTURES = "models/gpt2.py", "transformer.py", "models/vit.py", "models/pictures.py"
BASELINES = "experiments/baselines.py"
T5, BART, PAIR = "models/t5.py", "models/bart.py", "models/encoder_decoder.py"
BUGS = [   # what is wrong, where, the right text, the wrong text; and, where the name of the file does not say it, which tests should notice
  ("exact GELU for the tanh form", "models/config.py", '"gelu_new": Tensor.gelu', '"gelu_new": functools.partial(Tensor.gelu, approximate="none")', "gpt2"),
  ("another epsilon in the blocks", GPT2, "lambda: layer_norm(dim, eps)", "lambda: layer_norm(dim, eps / 10)"),
  ("another epsilon in the last norm", GPT2, "self.norm = layer_norm(dim, eps)", "self.norm = layer_norm(dim, 1e-12)"),
  ("q, k, v in another order", CORE, "self.q, self.k, self.v = (linear(dim, n", "self.k, self.q, self.v = (linear(dim, n", "gpt2"),
  ("values read as keys", CORE, "return self.split(self.k(memory)), self.split(self.v(memory))", "return self.split(self.v(memory)), self.split(self.k(memory))"),
  ("a square matrix not transposed", GPT2, r'turned=r"c_(attn|proj|fc)\.weight$"', r'turned=r"(c_attn|mlp\.c_proj|c_fc)\.weight$"'),
  ("no matrix transposed", GPT2, r'turned=r"c_(attn|proj|fc)\.weight$"', r'turned=r"$^"'),
  ("norms swapped", GPT2, r'attn_norm": r"transformer.h.\1.ln_1", r"blocks\.(\d+)\.ff_norm": r"transformer.h.\1.ln_2"',
   r'attn_norm": r"transformer.h.\1.ln_2", r"blocks\.(\d+)\.ff_norm": r"transformer.h.\1.ln_1"'),
  ("post-norm for pre-norm", CORE, "return x + sublayer(norm(x)).dropout(dropout)", "return norm(x + sublayer(x).dropout(dropout))", "gpt2"),
  ("pre-norm for post-norm", CORE, "return norm(x + sublayer(x).dropout(dropout))", "return x + sublayer(norm(x)).dropout(dropout)", "transformer"),
  ("a mask of -1e4", CORE, "Tensor.full((T, S), -math.inf, buffer=False)", "Tensor.full((T, S), -1e4, buffer=False)"),
  ("a padding mask of -1e4", CORE, "keep.bool().where(0.0, -math.inf)", "keep.bool().where(0.0, -1e4)"),
  ("a mask that lets the next token through", CORE, ".triu(S - T + 1)", ".triu(S - T + 2)"),
  ("a mask that hides the token itself", CORE, ".triu(S - T + 1)", ".triu(S - T)"),
  ("a mask aligned with the first key", CORE, ".triu(S - T + 1)", ".triu(1)", "cache"),
  ("a head of its own", GPT2, "return self.product(x, self.tokens.weight)", "return self.product(x, Tensor.normal(self.vocab, self.dim, std=0.02))"),
  ("a head that learns apart", GPT2, "return self.product(x, self.tokens.weight)", "return self.product(x, self.tokens.weight.detach())"),
  ("unscaled scores", CORE, "return dot_product(q, k) / math.sqrt(q.shape[-1])", "return dot_product(q, k)"),
  ("scores scaled by the model's width", CORE, "return dot_product(q, k) / math.sqrt(q.shape[-1])", "return dot_product(q, k) / math.sqrt(q.shape[-1] * q.shape[1])"),
  ("heads split the wrong way round", CORE, '"b t (h k) -> b h t k", k=', '"b t (k h) -> b h t k", k='),
  ("NaN where all keys are masked", CORE, "(top == -math.inf).where(0, top)", "top"),
  ("positions that ignore the cache", GPT2, "self.positions.weight[start:start+T]", "self.positions.weight[:T]", "cache"),
  ("a cache one place late", "parts/cache.py", "self.k[i][:, :, :end], self.v[i][:, :, :end]", "self.k[i][:, :, :end], self.v[i][:, :, 1:end+1]", "cache"),
  ("no last norm", GPT2, "return stored(self.norm(x))", "return x"),
  ("dropout outside training", CORE, "return x + sublayer(norm(x)).dropout(dropout)", "return x + sublayer(norm(x)) * (1 - dropout * 0.1 - 0.01)", "gpt2"),
  ("cosines before sines", CORE, "Tensor.stack(angle.sin(), angle.cos(), dim=-1)", "Tensor.stack(angle.cos(), angle.sin(), dim=-1)"),
  ("embeddings not scaled", CORE, "self.tokens(ids) * math.sqrt(self.dim)", "self.tokens(ids)"),
  ("padding counts in the loss", CORE, "/ keep.sum()", "/ keep.numel()"),
  ("residual weights as large as the rest", GPT2, "0.02 / math.sqrt(2*layers)", "0.02", "transformer"),
  ("a turned matrix read by the wrong stride", "parts/linear.py", "AC=M if turned_a else 1", "AC=K if turned_a else 1"),
  ("a step's last columns left out of its sums", "parts/linear.py", "for (long l = k; l < K; l++) y += one(row[r][l]) * x[m*K + l];", ""),
  ("bytes without their scale", "parts/linear.py", "BYTES ? y * *(const loose *)(row[r] + K) : y", "y"),
  ("a kernel whose causal mask lets the next token through", "parts/attention.py", "least(n, keys - T + t + 1 - s)", "least(n, keys - T + t + 2 - s)"),
  ("sums not scaled down when a larger score comes", "parts/attention.py", "if (fade[0] != 1) for", "if (0) for"),
  ("keys of another head", "parts/attention.py", "enum { BLOCK = 64, VECTORS = (K + W - 1) / W };", "enum { BLOCK = 64, VECTORS = (K + W - 1) / W };\n#undef GROUP\n#define GROUP 1"),
  ("a replayed step at its first place", "parts/replay.py", "self.table[words] = variables[name]", "self.table[words] = self.table[words] or variables[name]", "jit"),
  ("the first part of a kernel done again for each other", "parts/replay.py", "perform(c, ticket & 0xffffffff);", "perform(c, 0);", "jit"),
  ("kernels kept for other sources", "parts/jit.py", "for name, t in self.known.items()], machine()]", "for name, t in self.known.items()]]"),
  ("pairs of another rotation", "parts/positions.py", "a, b = x.chunk(2, dim=-1)", "a, b = x[..., 0::2], x[..., 1::2]", "llama"),
  ("a gate that is not activated", "parts/feedforward.py", "self.activation(self.gate(x)) * self.up(x)", "self.gate(x) * self.up(x)"),
  ("keys shared by every other head", CORE, "x.repeat_interleave(int(q.shape[-3] // x.shape[-3]), -3)", "x.repeat(1, int(q.shape[-3] // x.shape[-3]), 1, 1)", "llama"),
  ("experts chosen, and their shares not made to add up to 1", "parts/feedforward.py", "share = share / share.sum(-1, keepdim=True)", "share = share"),
  ("the next expert for the chosen one", "parts/feedforward.py", "choice.flatten()", "(choice.flatten() + 1) % self.experts"),
  ("every expert's gate where its up belongs", "models/mixtral.py", 'ff\\.gate": EXPERTS + ".w1", r"blocks\\.(\\d+)\\.ff\\.up": EXPERTS + ".w3"', 'ff\\.gate": EXPERTS + ".w3", r"blocks\\.(\\d+)\\.ff\\.up": EXPERTS + ".w1"', "llama"),
  ("experts in the order of their names", "models/checkpoint.py", "Joined([by_number[i] for i in range(len(by_number))])", "Joined([by_number[i] for i in reversed(range(len(by_number)))])", "llama"),
  ("rotations that forget what a bounded cache dropped", "models/llama.py", "cache.place(start) if cache else start", "start", "decoders"),
  ("a bounded cache that keeps a key too few", "parts/cache.py", "place - dropped - (self.window - 1), place - dropped", "place - dropped - (self.window - 2), place - dropped", "decoders"),
  ("places that count the padding", GPT2, "keep.int().cumsum(1) - 1", "keep.int().cumsum(1) * 0 + Tensor.arange(keep.shape[1])", "decoders"),
  ("padding that is seen", "parts/cache.py", "mask + padding_mask(keep)", "mask + 0 * padding_mask(keep).maximum(0)", "decoders"),
  ("a window one key too wide", "parts/positions.py", "(d < window)", "(d <= window)"),
  ("rope scaling left out", "models/llama.py", "frequencies(head_dim, theta, rope)", "frequencies(head_dim, theta)"),
  ("RoBERTa's places from 0", "models/bert.py", "return word.cumsum(1) * word + pad", "return word.cumsum(1) * word - word", "encoders bert"),
  ("RoBERTa's places by column", "models/bert.py", "return word.cumsum(1) * word + pad", "return Tensor.arange(1, ids.shape[1] + 1) + 0*word + pad", "encoders bert"),
  ("BERT's places count padding", "models/bert.py", "(keep.int().cumsum(1) - 1).maximum(0)", "Tensor.arange(ids.shape[1])"),
  ("RoBERTa's epsilon for another", "models/bert.py", 'config.get("layer_norm_eps", 1e-12)', "1e-12", "encoders bert"),
  ("BERT's epsilon for another", "models/bert.py", 'config.get("layer_norm_eps", 1e-12)', "1e-5", "encoders bert"),
  ("tanh GELU for the exact form", "models/config.py", '"gelu": functools.partial(Tensor.gelu, approximate="none")', '"gelu": Tensor.gelu', "bert"),
  ("segments left out", "models/bert.py", "ids*0 if segments is None else segments", "ids*0", "encoders bert"),
  ("BERT's padding seen", "models/bert.py", "mask=None if keep is None else padding_mask(keep)", "mask=None", "encoders bert"),
  ("BERT's feed-forward norm for its attention's", "models/bert.py", r'ff_norm": layer + "output.LayerNorm"', r'ff_norm": layer + "attention.output.LayerNorm"', "encoders bert"),
  ("a pooler without tanh", "models/heads.py", "self.classes(self.activation(self.pool(x[:, 0])))", "self.classes(self.pool(x[:, 0]))", "encoders"),
  ("the pooler of the last token", "models/heads.py", "self.pool(x[:, 0])", "self.pool(x[:, -1])", "encoders"),
  ("a decoder without its bias", "models/heads.py", "linear.product(x, tokens.weight) + self.bias", "linear.product(x, tokens.weight) + 0*self.bias", "encoders"),
  ("a word's layer without its norm", "models/heads.py", "self.norm(self.activation(self.dense(x)))", "self.activation(self.dense(x))", "encoders"),
  ("padding in the mean", "models/heads.py", "/ kept.sum(1).maximum(1)", "/ x.shape[1]", "bert"),
  ("labels in the order of their names", "models/heads.py", "sorted(names, key=int)", "sorted(names, key=names.get, reverse=True)", "bert"),
  ("DeBERTa's content scaled as BERT's", "models/deberta.py", "self.attend(q / math.sqrt(terms), k", "self.attend(q, k", "encoders deberta"),
  ("DeBERTa's positions scaled as BERT's", "models/deberta.py", "/ math.sqrt(self.head_dim * terms)", "/ math.sqrt(self.head_dim)", "encoders deberta"),
  ("c2p and p2c swapped", "models/deberta.py", 'place("c2p", self.k), place("p2c", self.q)', 'place("c2p", self.q), place("p2c", self.k)', "encoders deberta"),
  ("p2c at j - i", "models/deberta.py", ".gather(-1, delta.transpose(-2, -1))", ".gather(-1, delta)", "encoders deberta"),
  ("distances not in buckets", "models/deberta.py", "if self.buckets else d), 0)", "if 0 else d), 0)", "encoders deberta"),
  ("buckets that are linear", "parts/positions.py", "math.log(abs(distance) / exact) / math.log((most - 1) / exact)", "(abs(distance) - exact) / (most - 1 - exact)", "deberta"),
  ("relative vectors without their norm", "models/deberta.py", "self.norm(vectors) if self.norm else vectors", "vectors", "encoders deberta"),
  ("DeBERTa's padding seen", "models/deberta.py", "None if keep is None else padding_mask(keep), self", "None, self", "encoders deberta"),
  ("a convolution that reads the block", "models/deberta.py", "self.convolution(embedded, x)", "self.convolution(x, x)", "encoders deberta"),
  ("a convolution that reads padding", "models/deberta.py", "x if keep is None else keep.bool().unsqueeze(-1).where(x, 0)", "x", "encoders deberta"),
  ("distances of T5 the wrong way round", "parts/positions.py", "after = (distance < 0)", "after = (distance > 0)"),
  ("the first GPT with its norms before the sublayers", "models/gpt.py", ", residual=post_norm, **more)", ", **more)", "gpt1"),
  ("the first GPT with a norm at its end", "models/gpt.py", "self.norm = lambda x: x ", "self.norm = self.norm ", "gpt1"),
  ("the first GPT's gelu taken for the exact one", "models/gpt.py", 'activation = Tensor.gelu if config.get("afn", "gelu") == "gelu" else config', "activation = config", "gpt1"),
  ("patches column after column", VIT, '"b c (h p) (w q) -> b (h w) (c p q)"', '"b c (h p) (w q) -> b (w h) (c p q)"'),
  ("a patch's channels side by side", VIT, '"b c (h p) (w q) -> b (h w) (c p q)"', '"b c (h p) (w q) -> b (h w) (p q c)"'),
  ("the class token after the patches", VIT, "self.class_token.expand(B, 1, self.dim).cat(self.patches(pixels), dim=1)", "self.patches(pixels).cat(self.class_token.expand(B, 1, self.dim), dim=1)"),
  ("a class read from the mean of all rows", VIT, "self.hidden(pixels)[:, 0]", "self.hidden(pixels).mean(1)"),
  ("the Vision Transformer without its last norm", VIT, "return stored(self.norm(x))", "return x"),
  ("the Vision Transformer with its norms after the sublayers", VIT, "lambda: layer_norm(dim, eps), pre_norm)", "lambda: layer_norm(dim, eps))"),
  ("the Vision Transformer with another epsilon", VIT, 'config.get("layer_norm_eps", 1e-12)', "1e-12"),
  ("its two norms swapped", VIT, r'attn_norm": r"vit.encoder.layer.\1.layernorm_before", r"blocks\.(\d+)\.ff_norm": r"vit.encoder.layer.\1.layernorm_after"',
   r'attn_norm": r"vit.encoder.layer.\1.layernorm_after", r"blocks\.(\d+)\.ff_norm": r"vit.encoder.layer.\1.layernorm_before"'),
  ("the tanh form of GELU for the exact one", "models/config.py", 'functools.partial(Tensor.gelu, approximate="none")', "Tensor.gelu", "vit"),
  ("positions stretched from corner to corner", VIT, "(np.arange(new)[:, None] + 0.5) * old / new - 0.5", "np.arange(new)[:, None] * (old - 1) / max(1, new - 1)"),
  ("positions stretched with another a", VIT, "a, points = -0.75,", "a, points = -0.5,"),
  ("positions stretched with nothing beyond the ends", VIT, "(points.clip(0, old - 1)[:, None] == np.arange(old))", "(points[:, None] == np.arange(old))"),
  ("a new head that is not zero", VIT, "if self.head: self.head.weight = Tensor.zeros(len(labels), self.dim)", "pass"),
  ("mean and deviation swapped", PICTURES, '(("mean", 0), ("std", 1))', '(("std", 0), ("mean", 1))'),
  ("a picture's height taken for its width", PICTURES, 'width, height = self.size["width"], self.size["height"]', 'height, width = self.size["width"], self.size["height"]'),
  ("the longer side for the shorter", PICTURES, "/ min(picture.size)", "/ max(picture.size)"),
  ("pictures as the camera held them", PICTURES, "ImageOps.exif_transpose(Image.open(f))", "Image.open(f)"),
  ("black in the wrong half of an odd rim", PICTURES, "((lack + 1) // 2, lack // 2)", "(lack // 2, (lack + 1) // 2)"),
  ("an answer that ends before it begins", "ask.py", "np.triu(starts[:, None] * ends) -", "starts[:, None] * ends -"),
  ("windows that leave gaps in a passage", "ask.py", "len(spans) - room // 2), room // 2)", "len(spans) - room // 2), room * 2)"),
  ("a word with the label of its last token", "ask.py", "firsts.setdefault(word, chance)", "firsts.update({word: chance})"),
  ("padding that an encoder sees", "ask.py", "padded([1] * len(ids), 0)", "padded([1] * len(ids), 1)"),
  ("a text not begun with a blank", "text/sentencepiece.py", "*([steps.prepend(\"▁\")] if self.dummy else []), ", ""),
  ("unknown neighbours not one token", "text/sentencepiece.py", "spans.pop()[1] if fused else s.starts[a]", "s.starts[a]"),
  ("the least likely cut", "text/sentencepiece.py", "rounded(best[i] + score)) > best[j]", "rounded(best[i] + score)) > -best[j]"),
  ("the second sentence in the first's segment", "text/special.py", "[self.second] * len(second)", "[0] * len(second)", "wordpiece"),
  ("top-p without the token that reaches it", "text/generate.py", "before >= top_p", "before + p[order] >= top_p"),
  ("T5's scores scaled", T5, "plain, dot_product, attend, head_dim", "plain, attend=attend, head_dim", "encoder_decoders"),
  ("T5's distances in the first block alone", PAIR, "memories[i] if memories else None, mask,", "memories[i] if memories else None, mask if i == 0 or not self.bias else None,", "encoder_decoders"),
  ("T5's encoder sees every later word at one distance", T5, "RelativeBias(heads, True,", "RelativeBias(heads, False,", "encoder_decoders"),
  ("T5's decoder shares its buckets with what comes after", T5, "RelativeBias(heads, False,", "RelativeBias(heads, True,", "encoder_decoders"),
  ("T5's head unscaled", T5, "linear.product(x * dim**-0.5,", "linear.product(x,", "encoder_decoders"),
  ("the exact GELU in T5's gates", T5, 'activation=Tensor.gelu if proj == "gated-gelu" else activation', "activation=activation", "encoder_decoders"),
  ("T5 with another epsilon", T5, 'config.get("layer_norm_epsilon", 1e-6)', "1e-6", "encoder_decoders"),
  ("no bias of BART's logits", BART, "self.product(x, self.tokens.weight) + self.head_bias", "self.product(x, self.tokens.weight)", "encoder_decoders"),
  ("BART's positions two rows early", BART, "self.weight[start+2:start+T+2]", "self.weight[start:start+T]", "encoder_decoders"),
  ("BART's cross-attention with the encoder's heads", BART, "cross=attn(n) if n", "cross=attn(0) if n", "encoder_decoders"),
  ("Marian's sines and cosines side by side", "models/marian.py", "sinusoids_in_halves(T, dim, start)", 'sinusoids_in_halves(T, dim, start).rearrange("t (s i) -> t (i s)", s=2)', "encoder_decoders"),
  ("Marian's positions ignore the cache", "models/marian.py", "sinusoids_in_halves(T, dim, start)", "sinusoids_in_halves(T, dim)", "encoder_decoders"),
  ("Marian's embeddings unscaled", PAIR, "embed(self.tokens, ids) * self.scale", "embed(self.tokens, ids)", "encoder_decoders"),
  ("the keys of another layer kept", PAIR, "cache.memories, cache.mask", "cache.memories[::-1], cache.mask", "encoder_decoders"),
  ("a decoder that sees its source's padding", PAIR, "cache.memories, cache.mask", "cache.memories, None", "encoder_decoders"),
  ("an encoder that sees its source's padding", PAIR, "self.encoder(self.embed(source), padded(None, keep))", "self.encoder(self.embed(source))", "encoder_decoders"),
  ("a target that sees what follows", PAIR, "causal_mask(T, start + T) if T > 1 else None", "None", "encoder_decoders"),
  ("a bias kept in 16 bits", "models/checkpoint.py", ' and "bias" not in o', "", "encoder_decoders"),
  ("beams that do not change places", "parts/cache.py", "memory[:, :, :end] = memory[rows, :, :end]", "pass", "encoder_decoders"),
  ("a text that begins with its end", "text/generate.py", "[settings.decoder_start_token_id], settings.eos", "[settings.eos_token_id], settings.eos", "encoder_decoders"),
  ("beams that hope for no more than they have", "text/generate.py", "(length - 1 if power > 0 else n)", "n", "encoder_decoders"),
  ("beams without what is forbidden and forced", "text/generate.py", "lambda n: n**power, end, constraints,", "lambda n: n**power, end, (),", "encoder_decoders"),
  ("the last of a run may stand twice", "text/settings.py", "for i in range(len(ids) - n + 1)", "for i in range(len(ids) - n)"),
  ("an end one token early", "text/settings.py", "if len(ids) < length else scores", "if len(ids) < length - 1 else scores"),
  ("a forced token one place late", "text/settings.py", "if len(ids) == length else scores", "if len(ids) == length + 1 else scores"),
  ("gradients of pieces added up, not averaged", "parts/learner.py", "+ g / pieces)", "+ g)"),
  ("the gradient of the last step added to", "parts/learner.py", "s.assign(s * self.copied(keep) + g / pieces)", "s.assign(s + g / pieces)"),
  ("random numbers that are the same in each step", "parts/learner.py", "for device in self.devices or (Device.DEFAULT,): Tensor._next_counter(Device.canonicalize(device), 0)", "pass"),
  ("a loss that is told smoothed", "train.py", "smoothing=0),\n", "smoothing=args.smoothing),\n"),
  ("the last model for the best", "train.py", "        if now < best:\n", "        if True:\n"),
  ("weights before their config.json", "models/checkpoint.py", """  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\\n")
  write_safetensors(folder / "model.safetensors", tensors)""", """  write_safetensors(folder / "model.safetensors", tensors)
  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\\n")""", "train"),
  ("characters split in bytes", "text/tokenizer.py", "for b in map(str.encode, letters) for n in range(1, len(b))", "for b in map(str.encode, letters) for n in range(1, len(b) - 1)"),
  ("merges of the smallest pair first", "text/tokenizer.py", "return self.pair > other.pair", "return self.pair < other.pair"),
  ("a window's context counted again", "evaluate.py", "losses[row, first - 1 - begin:end - 1 - begin]", "losses[row, :end - 1 - begin]"),
  ("bits a character", "evaluate.py", "sum(len(t.encode()) for t in texts)", "sum(len(t) for t in texts)"),
  ("a first token that is not counted", "evaluate.py", "start = [] if tokenizer.end is None else [tokenizer.end]", "start = []"),
  ("a token predicted from itself", "evaluate.py", "documents[i][begin:end - 1], documents[i][begin + 1:end]", "documents[i][begin + 1:end], documents[i][begin + 1:end]"),
  ("a window that forgets its context", "evaluate.py", "yield max(0, end - 1 - context), first, end", "yield first - 1, first, end"),
  ("the discount of another order", BASELINES, "zip(self.keys, self.counts, self.discounts, [1,", "zip(self.keys, self.counts, self.discounts[1:] + self.discounts[:1], [1,"),
  ("shorter n-grams by their counts", BASELINES, "np.bincount(numbers[whole[first]], minlength=len(self.keys[-1]))", "np.bincount(numbers[whole], minlength=len(self.keys[-1]))"),
  ("one discount for all counts", BASELINES, "(count - d[count.clip(max=3)])", "(count - d[count.clip(max=1)])"),
  ("what the discounts took not given on", BASELINES, "+ left[history] * p, p)", "+ left[history] / self.vocab, p)"),
  ("discounts without Y", BASELINES, "(k + 1) * y * n[k + 1]", "(k + 1) * n[k + 1]"),
  ("a history that was never seen ends it", BASELINES, "np.where(total > 0, (count", "np.where(total >= 0, (count"),
  ("xz that has learned nothing", BASELINES, "return size(learn + held) - size(learn), window", "return size(held), window"),
  ("xz that begins with the first of what it learned", BASELINES, "learn = learn[max(0, len(learn) + len(held) - window):]", "learn = learn[:max(0, window - len(held))]"),
  ("what is held out learned too", BASELINES, "stream = tokenizer.encode_documents(learn)", "stream = tokenizer.encode_documents(learn + held)"),
]

def caught(bug:tuple[str, ...]) -> str|None:
  """The first test of the default suite, among those that should notice, that fails with the bug planted, or None."""
  _, file, right, wrong, *tests = bug
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv", ".hypothesis", ".pytest_cache", "weights"))
    text = (copy / file).read_text()
    assert text.count(right) == 1, f"{file} should have {right!r} once"
    (copy / file).write_text(text.replace(right, wrong))
    tested = [f"tests/test_{name}.py" for name in (tests[0] if tests else Path(file).stem).split()]
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tested], cwd=copy, capture_output=True, text=True)
    failures = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.M)
    return failures[0] if done.returncode == 1 and failures else None

def main() -> int:
  with ThreadPoolExecutor(2) as pool: results = list(zip(BUGS, pool.map(caught, BUGS)))
  for (title, *_), test in results: print(f"{'caught' if test else 'MISSED'}: {title}{f' by {test}' if test else ''}")
  missed = sum(test is None for _, test in results)
  print(f"{len(results) - missed} passed, {missed} failed")
  return int(missed > 0)

if __name__ == "__main__": sys.exit(main())
