"""What tells one tokenizer from another, whatever file it was read from."""

from __future__ import annotations

import hashlib

from llama.tokenizer.base import Tokenizer

PROBE_TEXT = (
    "The quick brown fox can\u2019t jump 1234567890 times over 3.14 lazy dogs; it wouldn't!\n\n"
    "    def f(x):\n\treturn x**2  # été, straße, Привет, 日本語\n"
    "https://example.org/a_b-c?d=e&f=%20  ANTIDISESTABLISHMENTARIANISM  "
)
"""Words, contractions, digits, code, other scripts and runs of spaces: where tokenizers differ."""


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256, in hex, of the text of every id, the id that ends a text, and the ids of a probe.

    It is of what the tokenizer does: the same vocabulary in `tokenizer.json`, in a
    `tokenizer.model` or inside a GGUF file has one hash. Chat templates and the tokens that end an
    answer are not in it: they may be mended beside a model whose tokens stay the same."""
    whole = hashlib.sha256(f"{tokenizer.eos_id} {tokenizer.encode(PROBE_TEXT)}".encode())
    for id_ in range(tokenizer.vocab_size):
        whole.update(tokenizer.decode([id_]).encode(errors="surrogatepass") + b"\0")
    return whole.hexdigest()
