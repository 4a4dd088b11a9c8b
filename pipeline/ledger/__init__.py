"""The folder of a run: plan, receipts, the table lock, duplicate ids."""
