"""Running elsewhere: submit, watch, doctor, schedules."""
