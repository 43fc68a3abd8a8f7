"""Stage `ingest`: a corpus of any supported form, read into one table of pictures with captions."""
