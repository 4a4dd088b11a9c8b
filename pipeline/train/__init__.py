"""Training: from pairs of texts to an adapter or a model that the encoder loads."""
