"""What learns: networks, their training and what a run leaves behind."""
