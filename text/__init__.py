"""Text in, text out: tokens and what is generated from them."""
