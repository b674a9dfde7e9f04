"""From raw text to token shards, with the tools that people already use; see corpora/README.md."""
