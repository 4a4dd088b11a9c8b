"""The plan: the corpus listed and cut into units, and the resources that run them."""
