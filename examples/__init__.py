"""Services as users write them. Each has a README that says how to run it; flights is the demo (`make demo`)."""
