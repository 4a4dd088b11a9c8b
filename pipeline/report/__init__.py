"""Report of a run: measured from its ledger, stored in it as `report.json`, shown as one HTML page."""
