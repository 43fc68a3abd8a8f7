"""The engine that runs any stage: units, plan, fingerprint, row ledger, models, executors. Names no stage."""
