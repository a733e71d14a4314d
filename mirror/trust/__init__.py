"""May the caller have it, and is it genuine: access verified upstream, and signatures."""
