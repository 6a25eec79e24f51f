"""Other ways to serve the same weights, as fair as we can make them."""
