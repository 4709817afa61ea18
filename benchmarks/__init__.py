"""The same work on the same data, done by us and by a peer in one run. `make bench`."""
