"""Stage `views`: each record linked with those that show its subject in other pictures, found by an image encoder."""
