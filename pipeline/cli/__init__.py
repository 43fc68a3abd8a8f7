"""The command line `realcustom`: one file per group of verbs."""
