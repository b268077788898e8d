"""Text into training batches: sources, token shards on disk, packed rows in a fixed order."""
