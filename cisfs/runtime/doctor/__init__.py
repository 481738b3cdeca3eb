"""`cisfs doctor`: what this host can do, found out by trying where a look is not enough."""
