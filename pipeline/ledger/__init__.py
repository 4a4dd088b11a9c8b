"""The folder of a run with its plan and receipts, the table lock, and the check for duplicate ids."""
