"""Images that a program draws, with the layout and the labels of real ones."""
