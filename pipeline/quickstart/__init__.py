"""`realcustom quickstart`: the whole system at work on the synthetic world, ending in one page."""
