"""The packaged TOML recipes: each a complete set of settings for one data set."""
