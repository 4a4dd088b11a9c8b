"""Computation: device, linear layers, int8, attention, threads and memory allocation."""
