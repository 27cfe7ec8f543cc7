"""Two passes under what a Trainer offers: its features, several processes and nodes, sharding, compiling."""
