"""Which architectures run, and how: a tiny model of every family against transformers and PEFT."""
