"""How content gets into the store, in which order it is written, and which repository may then serve it."""
