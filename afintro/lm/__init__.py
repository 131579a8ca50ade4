"""The substrate: loading and LoRA, interventions, packed attention, generation. Knows nothing of tasks."""
