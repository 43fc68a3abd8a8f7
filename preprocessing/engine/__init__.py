"""What runs a stage, whichever it is: units, plan, fingerprint, row ledger, models, executors. Names no stage."""
