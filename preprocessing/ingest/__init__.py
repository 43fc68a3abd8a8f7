"""Stage `ingest`: a corpus, whatever its form, read into one table of pictures with captions."""
