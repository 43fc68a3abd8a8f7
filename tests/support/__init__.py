"""What several tests build on: corpora, servers on loopback, tiny models, chaos."""
