"""Parts that a plan adds to its network by name: what sees the image first, or stands inside, and whose arrays it has.

A part says of each of its arrays which sites change it and whether it leaves them; nothing here knows sites or FLARE.
"""
