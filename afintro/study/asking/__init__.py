"""Ask one trained model: queries, sessions, steered and unsteered readings, predictions of the model's own answers."""
