"""Moving many things: images into the cache, into bundles and out of them."""
