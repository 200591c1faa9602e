"""What server and sites must agree on: plan, settings, report, update, and names in messages.

Values and their checks; nothing is trained or sent here.
"""
