"""The server's side of training between sites: it starts rounds and hears of them, and sees no model."""
