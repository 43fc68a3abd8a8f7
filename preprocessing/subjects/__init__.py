"""Stage `subjects`: each target word found in its picture, segmented, checked, and written as a training record."""
