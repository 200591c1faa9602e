"""Local methods, one file each: hooks that reach into a site's training."""
