"""Option chains: asked from the best provider, completed with volatility and greeks, kept for a while."""
