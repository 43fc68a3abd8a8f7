"""Stage `score`: what each picture is worth, measured and judged by models. No row leaves here."""
