"""Computation: device, linear layers, int8, attention, threads, memory allocation."""
