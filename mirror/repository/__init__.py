"""What the product does: pull-through, flights, eviction. Talks to the outside only through `mirror.ports`."""
