"""What an adversary could learn from what leaves a site, measured."""
