"""What users would pick instead, written as most people write it; each is a process of its own."""
