"""The site's guard: looks at every result and event before it leaves."""
