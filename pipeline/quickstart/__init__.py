"""`realcustom quickstart`: a run of the whole system on the synthetic world, with one page of results."""
