"""Events as plain values: what happened, who is informed of it, and when a delivery is tried again."""
