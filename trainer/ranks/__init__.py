"""Which of how many processes this one is, what it says to the others, and who asks it to stop."""
