"""LoRA fine-tuning for LLaMA models: model, adapters, data, training, and the proofs of each."""
