"""A site's side of split training: features out, gradients in."""
