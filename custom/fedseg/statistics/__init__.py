"""What the images and labels of sites are like, as numbers that merge over sites, and how far two sites are apart."""
