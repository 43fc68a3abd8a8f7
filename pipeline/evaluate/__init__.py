"""`realcustom evaluate`: a suite drawn, measured and compared."""
