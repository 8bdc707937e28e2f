"""Text to ids and back for every tokenizer file a LLaMA model comes with, and its chat formats."""
