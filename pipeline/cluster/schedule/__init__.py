"""Manifests that run a job by the clock: a Kubernetes CronJob, a line of a crontab, or a pair of systemd units.

    templates/    the text of each, and the RayJob that a CronJob creates
    render.py     puts the values of a job into them

Used by `jobs schedule`. Nothing here imports ray.
"""
