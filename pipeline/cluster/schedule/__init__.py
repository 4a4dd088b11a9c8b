"""Schedules for a job: a Kubernetes CronJob, a crontab line, or a systemd service and timer.

    templates/    the text of each, and the RayJob that the CronJob creates
    render.py     fills the templates with the values of a job

Used by `vectide schedule`. Nothing here imports Ray.
"""
