"""Where files lie: on this machine, in object stores and on web servers, and what is kept of them here."""
