"""Bugs planted in tinyformer/generation; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug('a cache one place late', 'tinyformer/generation/kv_cache.py', 'Cache.layer.extend', 'self.k[i][:, :, :end], self.v[i][:, :, :end]', 'self.k[i][:, :, :end], self.v[i][:, :, 1:end+1]', 'kv_cache'),
  Bug("one place alone, and no other's keys written", 'tinyformer/generation/kv_cache.py', 'one_place.write', 'cache(turn(k) if turn else k, v)', 'pass', 'kv_cache decoders'),
  Bug('keys not turned before one place alone', 'tinyformer/generation/kv_cache.py', 'one_place.write', 'cache(turn(k) if turn else k, v)', 'cache(k, v)', 'decoders'),
  Bug('a last block that sees its input without a norm', 'tinyformer/generation/kv_cache.py', 'one_place', 'block.residual(x, write, block.attn_norm)   #', 'write(x)   #', 'kv_cache decoders'),
  Bug('another number of likeliest tokens by the same kept kernels', 'tinyformer/generation/engine.py', 'Reader.__init__', 'key = key and f"{key} {head.count}"', 'pass', 'exact_top_k'),
  Bug('a last block that sees its norm where the norm comes after', 'tinyformer/generation/kv_cache.py', 'one_place', 'block.residual(x, write, block.attn_norm)   #', 'write(block.attn_norm(x))   #', 'gpt1'),
  Bug('a bounded cache that keeps a key too few', 'tinyformer/generation/kv_cache.py', 'Cache.row', 'place - dropped - (self.window - 1), place - dropped', 'place - dropped - (self.window - 2), place - dropped', 'decoders'),
  Bug('padding that is seen', 'tinyformer/generation/kv_cache.py', 'padded', 'mask + padding_mask(keep)', 'mask + 0 * padding_mask(keep).maximum(0)', 'decoders'),
  Bug('top-p without the token that reaches it', 'tinyformer/generation/engine.py', 'probabilities', 'before >= top_p', 'before + p[order] >= top_p', 'engine'),
  Bug('beams that do not change places', 'tinyformer/generation/kv_cache.py', 'Cache.reorder', 'memory[:, :, :end] = memory[rows, :, :end]', 'pass', 'encoder_decoders'),
  Bug('a text that begins with its end', 'tinyformer/generation/engine.py', 'respond', '[settings.decoder_start_token_id], settings.eos', '[settings.eos_token_id], settings.eos', 'encoder_decoders'),
  Bug('beams that hope for no more than they have', 'tinyformer/generation/engine.py', 'respond', '(length - 1 if power > 0 else n)', 'n', 'encoder_decoders'),
  Bug('beams without what is forbidden and forced', 'tinyformer/generation/engine.py', 'respond', 'lambda n: n**power, end, constraints,', 'lambda n: n**power, end, (),', 'encoder_decoders'),
  Bug('the last of a run may stand twice', 'tinyformer/generation/generation_config.py', 'no_repeats.constrain', 'for i in range(len(ids) - n + 1)', 'for i in range(len(ids) - n)', 'generation_config'),
  Bug('an end one token early', 'tinyformer/generation/generation_config.py', 'not_before', 'if len(ids) < length else scores', 'if len(ids) < length - 1 else scores', 'generation_config'),
  Bug('a forced token one place late', 'tinyformer/generation/generation_config.py', 'forced', 'if len(ids) == length else scores', 'if len(ids) == length + 1 else scores', 'generation_config'),
]
