"""`realcustom rehearse`: every model of a recipe at its real size with random weights, through the real code."""
