"""Job folders: read, checked, changed, packaged; and the components that they may name."""
