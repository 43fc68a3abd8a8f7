"""Stage `caption`: a synthetic caption beside the alt text, and the words that can name a subject."""
