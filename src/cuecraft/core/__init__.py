"""What all packages share: errors, events, files, seeds, checkpoints, options, assets, the time limit."""
