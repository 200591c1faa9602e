"""A kit at work on this machine: started, stopped, looked at."""
