"""What is trained: each task is a package that the engine, `aigc_ext.training`, knows nothing of."""
