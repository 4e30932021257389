"""Training tasks: each is a package that the engine, `aigc_ext.training`, knows nothing about."""
