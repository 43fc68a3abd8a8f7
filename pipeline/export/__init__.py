"""`realcustom export`: an adapter as a folder in the layout of a model hub."""
