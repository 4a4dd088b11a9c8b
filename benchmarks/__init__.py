"""Measurements, and the corpora that they and the demo run on. Imported by nothing."""
