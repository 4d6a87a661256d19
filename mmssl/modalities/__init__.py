"""One folder per modality: its adapter, sets, views and tokenizer. Nothing outside asks which one it is."""
