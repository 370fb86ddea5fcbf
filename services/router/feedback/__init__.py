"""What callers say of their answers: which ones they may judge, and what is counted."""
