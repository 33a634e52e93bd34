"""What all packages share: errors, files, seeds, checkpoints, options, the time limit."""
