"""How good each provider's data is, by exchange and day, and which mappings cannot be right."""
