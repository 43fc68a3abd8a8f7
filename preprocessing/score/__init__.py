"""Stage `score`: quality scores of each picture, measured and predicted by models. No row is dropped here."""
