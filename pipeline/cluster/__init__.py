"""Runs jobs on clusters and on schedules: submit, watch, schedule, doctor."""
