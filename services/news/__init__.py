"""News: asked of a provider for what somebody is interested in, told once, kept in a stream."""
