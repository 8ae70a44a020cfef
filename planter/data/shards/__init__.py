"""Images that come many in one: shards of WebDataset, parquet files, torch's loaders and sets."""
