"""Execution of units: inline or on Ray Data, through the same three stages."""
