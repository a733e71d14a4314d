"""Images brought in before anybody asks: once, as jobs, or by rules."""
