"""Ask one trained model: sessions, conditions and hypothetical questions."""
