"""What can be seen on real GPUs: sources that are rewritten too early, work that nothing orders."""
