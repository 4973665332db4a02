"""The demo: a web page that samples a teacher and its students side by side, from the same noises."""
