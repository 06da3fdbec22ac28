"""Several processes that train one model: whole in each, or cut into shards."""
