"""A job, run by the clock: manifests for what a machine or a cluster has to run things by the clock with.

    cron.py          a cron expression that means the same everywhere, and the same for systemd
    kubernetes.py    CronJob and RayCronJob
    machine.py       crontab and systemd
    apply.py         hands a manifest to kubectl, crontab or systemctl

Used by `jobs schedule`. Nothing here imports ray.
"""
