"""Stage `caption`: a synthetic caption for each picture, and the words of a caption that can name a subject."""
