"""What learns: classifiers, their training and what a run leaves behind."""
