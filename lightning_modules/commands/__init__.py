"""What is done with runs, one command a file."""
