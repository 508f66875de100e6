"""What a person starts: `python launch/NAME.py`. What the scripts share is in commands/."""
