"""Execution of units, inline or on Ray Data, with the same three stages."""
