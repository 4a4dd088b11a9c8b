"""Sets of negations (anchor, entailment, negative), made from pairs of texts of which the second follows from the first."""
