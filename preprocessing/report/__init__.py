"""Reports of a finished stage: report.json and report.html."""
