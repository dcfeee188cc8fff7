"""One job on many machines: cut into shards, which are jobs themselves."""
