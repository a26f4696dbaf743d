"""Where it runs: the stacks. Each reads like its diagram."""
