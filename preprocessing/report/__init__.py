"""What a stage tells when it is done: report.json and report.html."""
