"""Bugs planted in tinyformer/interpret; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug('a scale frozen before the sublayer', 'tinyformer/interpret/attribution.py', 'parts', 'through(s.norm, s.x + s.added)', 'through(s.norm, s.x)', 'interpret'),
  Bug('heads side by side in another way', 'tinyformer/interpret/attribution.py', 'parts', 's.out[:, h*K:(h + 1)*K]', 's.out[:, h::len(s.heads)]', 'interpret'),
  Bug("a norm's bias adds nothing", 'tinyformer/interpret/attribution.py', 'parts.through', 'if norm.bias is not None: biases', 'if norm.bias is None: biases', 'interpret'),
  Bug('every head taken for linear', 'tinyformer/interpret/attribution.py', 'directions', 'return (g, b) if np.abs(', 'return (g, b) if True or np.abs(', 'interpret'),
  Bug('a lens without the last norm', 'tinyformer/interpret/logit_lens.py', 'normed', 'record.last(stream) if record.last else stream', 'stream', 'interpret'),
  Bug('directions through a mean', 'tinyformer/interpret/activations.py', 'Norm.back', 'return g - g.mean(-1, keepdims=True) if self.centred else g', 'return g', 'interpret'),
  Bug('an RMS norm centred', 'tinyformer/interpret/activations.py', 'Norm.of', 'array(norm.weight), None, norm.eps, False)', 'array(norm.weight), None, norm.eps, True)', 'interpret'),
  Bug('weights of the sublayer before', 'tinyformer/interpret/recorder.py', 'StreamRecorder.of.residual.added', 'seen["call"] = before if', 'seen["call"] = before - 1 if', 'interpret'),
  Bug('the previous token is the token itself', 'tinyformer/interpret/head_types.py', 'kinds', 'every, every - 1]', 'every, every]', 'interpret'),
  Bug('induction looks at the token itself', 'tinyformer/interpret/head_types.py', 'kinds', 'again - half + 1]', 'again - half]', 'interpret'),
  Bug('places among the tokens', 'tinyformer/interpret/activations.py', 'run.part', 'array(embed(model.tokens, x)[0]) * getattr(model, "scale", 1.0)', 'embedded', 'interpret'),
  Bug('a model that goes on being watched', 'tinyformer/interpret/activations.py', 'Watch.on', 'for block, residual in zip(blocks, plain): block.residual = residual', 'pass', 'interpret'),
  Bug('weights in 8 bits rounded each by itself', 'tinyformer/interpret/page.py', 'quantised', '(whole + (rank < left)).astype(np.uint8)', 'np.rint(exact).astype(np.uint8)', 'page'),
  Bug("a text that ends the page's script", 'tinyformer/interpret/page.py', 'page', '.replace("<", "\\\\u003c")', '', 'page'),
  Bug('a page that may ask for anything', 'tinyformer/interpret/page.html', '', "default-src 'none'; ", '', 'page'),
  Bug('the bytes of a character each by itself', 'tinyformer/interpret/labels.py', 'labels', 'except UnicodeDecodeError: continue', 'except UnicodeDecodeError: break', 'page'),
  Bug('directions of text shown as they are', 'tinyformer/interpret/labels.py', 'safe', 'c if c.isprintable() else', 'c if ord(c) > 127 else', 'page'),
  Bug('the head that looks least at one token', 'tinyformer/interpret/page.py', 'sharpest', '.mean(-1).argmax()', '.mean(-1).argmin()', 'page'),
  Bug('any number of tokens shown', 'tinyformer/interpret/inspection.py', 'short', 'if count > MOST', 'if count > 9 * MOST', 'page'),
]
