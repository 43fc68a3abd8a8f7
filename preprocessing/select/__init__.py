"""Stage `select`: rows kept or dropped by thresholds over the scores; copies found in the whole corpus."""
